"""quantize_model(): the linear layers of a transformers model as bitsandbytes' own modules, in place."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from ..frozen.modules import weight_of

FORMATS = ("nf4", "fp4", "int8")
BLOCK_SIZES = tuple(2**i for i in range(5, 13))  # that bitsandbytes quantises with
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantize_model(
    model: PreTrainedModel,
    format: str = "nf4",
    *,
    skip: Sequence[str] = ("lm_head",),
    block_size: int = 64,
    nested: bool = True,
    compute_dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The model, in place, with its linear layers as bitsandbytes' Linear4bit or Linear8bitLt: a base for adapters.

    It is what `from_pretrained(..., quantization_config=BitsAndBytesConfig(...))` returns, from a model that is in
    memory already: the same bytes, and what transformers and PEFT look at says so (`model.is_loaded_in_4bit` or
    `is_loaded_in_8bit`, `model.config.quantization_config`, `model.hf_quantizer`). The bytes are those of `quantize`,
    for int8 of the weight rounded to float16. One layer is quantised at a time, and its dense weight goes. As in
    transformers, the output embeddings, what is tied to them and the last module of the model stay dense, and every
    layer of the type torch.nn.Linear or transformers' Conv1D is quantised otherwise.

    On a CPU the layers keep their bytes as they are when the model is evaluated, where bitsandbytes would reorder them
    and round their scales to bfloat16 at the first call.

    Args:
        model: a transformers model without adapters, its weights float32, bfloat16 or float16.
        format: "nf4" or "fp4" (4 bits a weight, QLoRA, arXiv:2305.14314) or "int8" (LLM.int8, arXiv:2208.07339).
        skip: further layers that stay dense: full names, the beginnings of such up to a dot, their endings, or regular
            expressions for the beginnings.
        block_size: of nf4 and fp4, a power of two from 32 to 4096: the weights that share a scale.
        nested: of nf4 and fp4, whether the scales are stored in 8 bits ("double quantisation").
        compute_dtype: of nf4 and fp4, of the products; None: the weight's dtype.

    Raises:
        ImportError: bitsandbytes is not installed.
        TypeError: model is no PreTrainedModel, or a weight or compute_dtype is of a dtype that is not accepted.
        ValueError: an unknown format or block size, a model that is quantised already or has weights without memory,
            a name in skip that no linear layer has, or no layer to quantise. Nothing is changed before any of these.
    """
    bitsandbytes = _bitsandbytes()
    _check(model, format, block_size, compute_dtype)
    kept = AutoHfQuantizer.from_config(_config(format, nested, torch.float32, []), pre_quantized=False)
    patterns = kept.get_modules_to_not_convert(model, list(skip), model._keep_in_fp32_modules, add_default_skips=True)
    names = _layers(model, patterns, skip)
    dtype = compute_dtype or model.get_submodule(names[0]).weight.dtype
    for name in names:
        linear = model.get_submodule(name)
        if format == "int8":
            new = _eight_bit(bitsandbytes, linear)
        else:
            new = _four_bit(bitsandbytes, linear, format, block_size, nested, compute_dtype or linear.weight.dtype)
        new.source_cls = type(linear)
        new.bias = linear.bias
        new.requires_grad_(False).train(linear.training)
        model.set_submodule(name, new)
        del linear
    _tell(model, _config(format, nested, dtype, sorted(patterns)), patterns)
    return model


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            "quantize_model makes modules of bitsandbytes, which is not installed here; run: pip install bitsandbytes"
        ) from error
    return bitsandbytes


def _check(model, format, block_size, compute_dtype):
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"quantize_model: model is a {type(model).__name__}, expected a transformers.PreTrainedModel: quantise the "
            "base model first, then add adapters with get_peft_model"
        )
    if format not in FORMATS:
        raise ValueError(f"quantize_model: format={format!r}; choose one of {', '.join(FORMATS)}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(
            f"quantize_model: block_size={block_size}; bitsandbytes has {', '.join(map(str, BLOCK_SIZES))}"
        )
    if compute_dtype not in (None, *DTYPES):
        raise TypeError(f"quantize_model: compute_dtype={compute_dtype}; accepted are float32, bfloat16 and float16")
    if getattr(model, "hf_quantizer", None) is not None:
        method = getattr(model.hf_quantizer.quantization_config.quant_method, "value", "some method")
        raise ValueError(
            f"quantize_model: model is quantised already, by {method}; load it without quantization_config"
        )


def _layers(model, patterns, skip) -> list[str]:
    """The names of the layers to quantise: of the linear ones those that no pattern fits."""
    linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear or isinstance(m, Conv1D)}
    for given in skip:
        if given != "lm_head" and all(should_convert_module(name, [given]) for name in linear):
            raise ValueError(
                f"quantize_model: skip: no linear layer is called {given!r}; {next(iter(linear))!r} is one"
            )
    names = [name for name in linear if should_convert_module(name, patterns)]
    if not names:
        raise ValueError(f"quantize_model: no linear layer of {type(model).__name__} is left beside skip={skip}")
    for name in names:
        weight = linear[name].weight
        if weight.is_meta:
            raise ValueError(f"quantize_model: {name} has no memory (device meta); load it without offloading")
        if weight.dtype not in DTYPES:
            raise TypeError(
                f"quantize_model: the weight of {name} is {weight.dtype}; accepted are float32, bfloat16 and float16"
            )
    return names


def _config(format, nested, compute_dtype, skipped) -> BitsAndBytesConfig:
    if format == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=format,
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skipped,
    )


def _four_bit(bitsandbytes, linear, format, block_size, nested, compute_dtype) -> nn.Module:
    weight = weight_of(linear).detach()
    N, K = weight.shape
    options = {"compress_statistics": nested, "quant_type": format}
    new = bitsandbytes.nn.Linear4bit(K, N, False, compute_dtype, device="meta", **options)
    params = bitsandbytes.nn.Params4bit(weight, requires_grad=False, blocksize=block_size, module=new, **options)
    new.weight = params.to(weight.device)  # quantises
    # Else the first evaluation on a CPU with AVX-512 BF16 reorders the codes and rounds the scales to bfloat16.
    new.support_avx512bf16_for_cpu = False
    return new


def _eight_bit(bitsandbytes, linear) -> nn.Module:
    weight = weight_of(linear).detach()
    N, K = weight.shape
    threshold = BitsAndBytesConfig(load_in_8bit=True).llm_int8_threshold
    new = bitsandbytes.nn.Linear8bitLt(K, N, False, has_fp16_weights=False, threshold=threshold, device="meta")
    params = bitsandbytes.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    new.weight = params.to(weight.device)  # quantises, what is on a CPU
    return new


def _tell(model, config, patterns):
    """What transformers' own loading leaves: it is read by Trainer, by PEFT and by save_pretrained."""
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    quantizer.modules_to_not_convert = patterns
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = config.quant_method
    quantizer.postprocess_model(model)
