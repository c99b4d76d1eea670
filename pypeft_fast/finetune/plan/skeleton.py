"""A base model as its config alone describes it: on the meta device, with all of its blocks or with a few."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

from .. import hub
from ..base_models import SMOLLM2, base_path, check_base
from ..errors import UserError, as_user_error
from ..library_errors import LIBRARY_ERRORS

# The names of decoders with an output layer; their classes in AutoModelForCausalLM would be imported, all of them.
DECODERS = {name for names in NAMES.values() for name in ([names] if isinstance(names, str) else names)}


@dataclass(frozen=True)
class Skeleton:
    """A config, and how a model is made from it. A decoder has its output layer; an encoder is made without a head."""

    name: str
    config: transformers.PretrainedConfig
    causal: bool

    @property
    def depth(self) -> int:
        return self.config.get_text_config().num_hidden_layers

    @property
    def task(self) -> str:
        return "CAUSAL_LM" if self.causal else "FEATURE_EXTRACTION"

    def model(self, dtype: str, depth: int | None = None, device: str = "meta") -> nn.Module:
        """The model in this dtype; of its first `depth` blocks if a depth is given. Without memory on the meta device,
        else with random weights.

        UserError if transformers cannot make the model.
        """
        # A copy, since from_config writes the dtype into the config; self.config has the dtype of the file.
        config = copy.deepcopy(self.config) if depth is None else shortened(self.config, depth)
        kind = AutoModelForCausalLM if self.causal else AutoModel
        with as_user_error(f"`model` {self.name} cannot be made from its config", LIBRARY_ERRORS):
            with torch.device(device):
                return kind.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)


def read_skeleton(name: str) -> Skeleton:
    """The skeleton of a folder's config.json, of a model on the Hub, or of "smollm2"; weights are not read.

    UserError if there is no such model or no config, and for an encoder-decoder model or a model without blocks.
    """
    check_base(name)
    if name == SMOLLM2 or Path(name).is_dir():
        path = base_path(name)
    else:
        path = hub.download(name, "model", ["config.json"], "model")
    with as_user_error(f"`model` {name} has a config that cannot be read", LIBRARY_ERRORS):
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    if config.is_encoder_decoder or not isinstance(depth, int) or depth < 1:
        raise UserError(
            f"`model` {name} is of the type {config.model_type}, without num_hidden_layers or with an encoder and a "
            "decoder; give a decoder such as a Llama, or an encoder such as a BERT"
        )
    config.use_cache = False
    kinds = config.architectures or []
    causal = any(kind in DECODERS for kind in kinds) if kinds else config.model_type in NAMES
    return Skeleton(name, config, causal)


def shortened(config, depth: int):
    """A copy of a config for a model of the first `depth` blocks."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    was = text.num_hidden_layers
    text.num_hidden_layers = depth
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == was:  # such as layer_types, with an entry for each block
            setattr(text, name, value[:depth])
    return config


def blocks_of(model: nn.Module, depth: int) -> nn.ModuleList:
    """The list of the model's `depth` blocks. UserError if no list of modules has this length."""
    lists = [its for its in model.modules() if isinstance(its, nn.ModuleList) and len(its) == depth]
    if not lists:
        raise UserError(f"`model` {type(model).__name__} has no list of {depth} blocks; its costs cannot be planned")
    return max(lists, key=lambda its: sum(p.numel() for p in its.parameters()))


def remarks(model: nn.Module, depth: int) -> list[str]:
    """What is counted of weights that are shared, of experts, and of blocks that differ, one sentence each."""
    found = []
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and head.weight is model.get_input_embeddings().weight:
        found.append("the output layer and the embeddings are one tensor (tied weights), which is counted once")
    stacks = [p for p in model.parameters() if p.ndim == 3]
    if stacks:
        weights = sum(p.numel() for p in stacks)
        found.append(
            f"{weights:,} weights of experts are stacked tensors: they count as weights of the base model in its "
            "dtype; the candidates add no adapter to them and do not quantise them"
        )
    kinds = {tuple((n, p.shape) for n, p in block.named_parameters()) for block in blocks_of(model, depth)}
    if len(kinds) > 1:
        found.append(
            f"the blocks have {len(kinds)} different shapes: activations and time are those of the second block, times "
            "the number of blocks"
        )
    return found
