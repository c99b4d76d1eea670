"""Writes a LoRA adapter as a GGUF file for llama.cpp's --lora.

Keys: general.type "adapter", general.architecture, adapter.type "lora", adapter.lora.alpha; llama.cpp scales each
update by alpha / r. Tensors: NAME.lora_a [r, K] and NAME.lora_b [N, r], where NAME is the base weight's name in GGUF,
such as blk.0.attn_q.weight. llama.cpp stores the rows of q and k of Llama's architecture in another order (a head's
first and second half interleaved, as its rotary embedding reads them), and the rows of B follow the rows of W.

Source: docs/ and convert_lora_to_gguf.py of https://github.com/ggml-org/llama.cpp, and the package gguf.
"""

import math
import re
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from ..errors import UserError, as_user_error
from .difference import scaling
from .files import WEIGHTS, read_adapter

# {model_type of transformers: (architecture of GGUF, whether the rows of q and k have another order)}
ARCHITECTURES = {
    "llama": (gguf.MODEL_ARCH.LLAMA, True),
    "mistral": (gguf.MODEL_ARCH.LLAMA, True),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, False),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, False),
}


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """rows [N, r] of `heads` heads in llama.cpp's order: row 2 i + j of a head is its row j N / (2 heads) + i."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def tensors_for_gguf(folder: Path, config) -> dict[str, np.ndarray]:
    """{name in GGUF: values in float32} of an adapter; config: that of its base model.

    UserError for a method or an architecture that the format does not cover, or a layer without a name in GGUF.
    """
    adapter = read_adapter(folder)
    its = adapter.config
    if its["peft_type"] != "LORA" or its.get("use_dora"):
        kind = "DORA" if its.get("use_dora") else its["peft_type"]
        raise UserError(f"{folder} is of the method {kind}; a GGUF adapter holds LoRA only; merge it instead")
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"`model` is of the type {config.model_type}; exported are adapters for {', '.join(ARCHITECTURES)}; for "
            "another type use convert_lora_to_gguf.py of llama.cpp"
        )
    architecture, permutes = ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        parts = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        mapped = names.get_name(f"{parts[1]}.weight", try_suffixes=(".weight",)) if parts else None
        if mapped is None or parts[1] == "lm_head" and config.tie_word_embeddings:
            raise UserError(f"{folder}: the tensor {name} has no place in a GGUF adapter; merge the adapter instead")
        values = tensor.float()
        if parts[2] == "B":
            last = parts[1].rpartition(".")[2]
            if permutes and last in heads:
                values = interleaved(values, heads[last])
            # llama.cpp knows one alpha; B takes what a layer's own scaling has beyond it.
            values = values * (scaling(its, parts[1], values.shape[1]) * values.shape[1] / alpha_of(its))
        found[f"{mapped}.lora_{parts[2].lower()}"] = values.contiguous().numpy()
    return found


def alpha_of(config: dict) -> float:
    """The alpha of the file, which llama.cpp divides by the rank of each layer."""
    alpha = float(config.get("lora_alpha") or 8)
    return alpha * math.sqrt(config["r"]) if config.get("use_rslora") else alpha


def write_gguf(folder: Path, config, output: Path) -> int:
    """Writes the adapter in `folder` to a new GGUF file, and returns the number of its tensors.

    UserError as from `tensors_for_gguf`, or if the file cannot be written; no partial file stays.
    """
    tensors = tensors_for_gguf(folder, config)
    its = read_adapter(folder).config
    scratch = output.with_name(f".{output.name}.part")
    with as_user_error(f"`output` {output} cannot be written", (OSError,)):
        try:
            writer = gguf.GGUFWriter(scratch, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type][0]])
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_name(folder.resolve().name)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha_of(its))
            for name, values in tensors.items():
                writer.add_tensor(name, values)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            scratch.rename(output)
        finally:
            scratch.unlink(missing_ok=True)
    return len(tensors)
