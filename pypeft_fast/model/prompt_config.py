"""PromptTuningConfig and PrefixTuningConfig: PEFT's fields, names, order and defaults."""

import enum
from dataclasses import dataclass

from . import validate
from .config import PeftConfig, PeftType


@dataclass
class PromptLearningConfig(PeftConfig):
    """What both methods have.

    Args:
        num_virtual_tokens: how many tokens are put before the text; required.
        token_dim, num_attention_heads, num_layers: of the model; filled in from its config where they are None.
        num_transformer_submodules: 2 for an encoder-decoder model, else 1; filled in where it is None.
        modules_to_save: names of modules that train and are saved whole.
    """

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    SEQUENCE_METHOD = True

    def __post_init__(self):
        super().__post_init__()
        validate.rank("num_virtual_tokens", self.num_virtual_tokens)
        for name in ("token_dim", "num_attention_heads", "num_layers"):
            validate.optional_rank(name, getattr(self, name))
        validate.choice("num_transformer_submodules", self.num_transformer_submodules, (None, 1, 2))
        self.modules_to_save = validate.module_names("modules_to_save", self.modules_to_save)


class PromptTuningInit(str, enum.Enum):
    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning (arXiv:2104.08691): trained embeddings before those of the text.

    Args:
        prompt_tuning_init: "RANDOM" (normal values), "SAMPLE_VOCAB" (embeddings of random tokens) or "TEXT" (those of
            the tokens of prompt_tuning_init_text, again and again until they suffice).
        prompt_tuning_init_text, tokenizer_name_or_path, tokenizer_kwargs: for "TEXT".

    Raises TypeError or ValueError that names the field, its value and what is accepted. A text of more tokens than
    num_virtual_tokens is a ValueError when the adapter is made; PEFT cuts it.
    """

    prompt_tuning_init: str | PromptTuningInit = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict | None = None

    KIND = PeftType.PROMPT_TUNING

    def __post_init__(self):
        super().__post_init__()
        validate.choice("prompt_tuning_init", self.prompt_tuning_init, [kind.value for kind in PromptTuningInit])
        if self.tokenizer_kwargs is not None and not isinstance(self.tokenizer_kwargs, dict):
            raise TypeError(f"tokenizer_kwargs={self.tokenizer_kwargs!r} must be a dict or None")
        if self.prompt_tuning_init == PromptTuningInit.TEXT:
            for name in ("tokenizer_name_or_path", "prompt_tuning_init_text"):
                if not isinstance(getattr(self, name), str) or not getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)!r} must be a string with prompt_tuning_init='TEXT'")
        elif self.tokenizer_kwargs:
            raise ValueError(f"tokenizer_kwargs={self.tokenizer_kwargs!r} is for prompt_tuning_init='TEXT' only")


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning (arXiv:2101.00190): trained keys and values before those of the text, in every attention layer.

    Args:
        init_weights: None (normal values) or "zero".
        encoder_hidden_size: of the projection; token_dim where it is None.
        prefix_projection: the prefix is computed by a two-layer network from trained embeddings. A file holds its
            result, as PEFT's does: what is loaded is a prefix without a projection.
    """

    init_weights: str | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False

    KIND = PeftType.PREFIX_TUNING

    def __post_init__(self):
        super().__post_init__()
        validate.choice("init_weights", self.init_weights, (None, "zero"))
        validate.optional_rank("encoder_hidden_size", self.encoder_hidden_size)
        validate.flag("prefix_projection", self.prefix_projection)
