"""PeftModel and its task classes: PEFT's classes with fused layers, checked files, and several adapters in a batch."""

import contextlib
import warnings
from typing import Any

import peft
import torch
from peft import get_peft_model as peft_get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .files import SafeFiles
from .fuse import fuse
from .joints import rows, torch_encoder
from .joints.row_names import rows_of_call
from .mixed_model import PeftMixedModel
from .wrapping import check_before, name_head, warn_after


class PeftModel(SafeFiles, peft.PeftModel):
    """peft.PeftModel whose layers run on the fused ops if the ops support them; `pf.fuse(model)` returns a report.

    Everything else is PEFT's, with these stricter rules. Files are checked before the model changes, and saving is
    atomic. Unmerging restores the base weights bit for bit. An adapter's name must be a valid folder name. A setting
    that would silently have no effect is an error or a warning.
    """

    def __init__(self, model: nn.Module, peft_config: peft.PeftConfig, adapter_name: str = "default", *args, **options):
        check_before(model, peft_config, adapter_name)
        name_head(peft_config)
        super().__init__(model, peft_config, adapter_name, *args, **options)
        self._after_adding(adapter_name)

    @classmethod
    def _adopt(cls, model, is_loaded=True):
        """Sets the class of a PeftModel that PEFT has made to `cls` or to this package's class of the same task."""
        if type(model) in OURS:
            kind = OURS[type(model)]
            model.__class__ = cls if issubclass(cls, kind) else kind
            model._is_loading = is_loaded
            for name in model.peft_config:
                model._after_adding(name)
            model._is_loading = False
        return model

    _is_loading = False  # True while an adapter is loaded from a file: no warnings about a config from a file

    def _after_adding(self, adapter_name):
        """Finishes adding an adapter: warnings, and fusing of the new layers."""
        config = self.peft_config[adapter_name]
        name_head(config)  # PEFT has appended the head once more; this removes the duplicate
        if not self._is_prompt_learning:
            base = self.base_model.model
            torch_encoder.switch_off_fast_path(base)
            if not self._is_loading:
                warn_after(base, config, adapter_name)
            if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
                fuse(base)

    def _load(self, *args, **options):
        self._is_loading = True
        try:
            return super()._load(*args, **options)
        finally:
            self._is_loading = False

    def add_adapter(self, adapter_name: str, peft_config: peft.PeftConfig, *args, **options) -> None:
        """PEFT's add_adapter: adds another adapter, which is not active yet; the adapter's layers are fused."""
        check_before(self.get_base_model(), peft_config, adapter_name)
        name_head(peft_config)
        super().add_adapter(adapter_name, peft_config, *args, **options)
        if "_adapters_disabled" in vars(self):  # else PEFT's constructor is adding the first adapter
            self._after_adding(adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's delete_adapter; a gated feedforward module without LoRA adapters is unfused."""
        super().delete_adapter(adapter_name)
        # PEFT takes the next active adapter from one layer, which may have no other adapter.
        if self.peft_config and self.active_adapter == adapter_name:
            self.set_adapter(next(iter(self.peft_config)))
        if self.peft_config and not self._is_prompt_learning:
            fuse(self.base_model.model)

    def set_adapter(self, adapter_name: str | list[str], *args, **options) -> None:
        """PEFT's set_adapter; a list makes several adapters active, and the layers add up their updates."""
        if isinstance(adapter_name, str) or self._is_prompt_learning:
            super().set_adapter(adapter_name, *args, **options)
            return
        unknown = [name for name in adapter_name if name not in self.peft_config]
        if unknown or not adapter_name:
            raise ValueError(
                f"adapter_name={adapter_name!r}: give names of adapters; there are {list(self.peft_config)}"
            )
        self.base_model.set_adapter(list(adapter_name), *args, **options)
        self.active_adapter = adapter_name[0]

    def get_base_model(self) -> nn.Module:
        """The user's model, with the adapters in its layers; works also when no adapter is left."""
        return self.base_model if self._is_prompt_learning else self.base_model.model

    @property
    def active_peft_config(self) -> peft.PeftConfig:
        """PEFT's active_peft_config; an empty config when no adapter is left."""
        return self.peft_config[self.active_adapter] if self.peft_config else peft.PeftConfig()

    # Rows of several adapters

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        names = kwargs.pop("adapter_names", None)
        if not self.peft_config:  # PEFT's code needs an active adapter
            yield
            return
        with super()._enable_peft_forward_hooks(*args, **kwargs), rows_of_call(self, names, args, kwargs):
            yield

    def generate(self, *args, **kwargs) -> Any:
        """PEFT's generate. ValueError for prompt learning with a cache that is not empty: the cache's length counts the
        virtual tokens too, so PEFT would cut off too much of the input."""
        cache = kwargs.get("past_key_values", kwargs.get("cache"))  # its name since transformers 5.24
        length = getattr(cache, "get_seq_length", lambda: 0)()
        if length and self._is_prompt_learning and not self._adapters_disabled:
            raise ValueError(
                f"past_key_values holds {length} tokens: with {self.peft_type.value} each turn starts from the whole "
                "text; leave past_key_values out"
            )
        with rows.generating():
            return super().generate(*args, **kwargs)

    # The user's model

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """The base model's resize_token_embeddings. ValueError if the embeddings or the head have an adapter, which the
        resizing would remove."""
        model = self.get_base_model()
        size = args[0] if args else kwargs.get("new_num_tokens")
        if size in (None, model.get_input_embeddings().weight.shape[0]) and not kwargs.get("pad_to_multiple_of"):
            return model.resize_token_embeddings(*args, **kwargs)
        for side in ("input", "output"):
            layer = getattr(model, f"get_{side}_embeddings", lambda: None)()
            if isinstance(layer, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                raise ValueError(
                    f"resize_token_embeddings would replace the {side} embeddings and remove the adapter on them; "
                    "resize before get_peft_model, or call merge_and_unload first"
                )
        return model.resize_token_embeddings(*args, **kwargs)

    def merge_adapter(self, *args, **kwargs) -> None:
        """PEFT's merge_adapter. After an error exactly the adapters are merged that were merged before the call."""
        layers = [module for module in self.base_model.modules() if isinstance(module, BaseTunerLayer)]
        before = [list(layer.merged_adapters) for layer in layers]
        try:
            self.base_model.merge_adapter(*args, **kwargs)
        except (ValueError, RuntimeError):
            for layer, names in zip(layers, before, strict=True):
                if layer.merged_adapters != names:
                    layer.unmerge()
                    layer.merge(adapter_names=names)
            raise

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """PEFT's merge_and_unload: the user's model with the adapters merged into its weights.

        With safe_merge an error is raised before any layer is unloaded.
        """
        if safe_merge:
            self.merge_adapter(adapter_names, safe_merge=True)
            return self.unload()
        return self._unloaded(self.base_model.merge_and_unload(progressbar, False, adapter_names))

    def unload(self) -> nn.Module:
        """PEFT's unload: the user's model without adapters. Merged adapters stay merged; call unmerge_adapter() first
        to get the base weights."""
        return self._unloaded(self.base_model.unload())

    def _unloaded(self, model):
        torch_encoder.restore_fast_path(model)
        _untie(model)
        return model


def _untie(model) -> None:
    """Sets config.tie_word_embeddings to False if the head and the embeddings differ after training: otherwise loading
    the model, or resizing the vocabulary, would tie the weights again."""
    config = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False):
        return
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embeddings is None or head.weight is embeddings.weight:
        return
    warnings.warn("the trained head and embeddings differ: config.tie_word_embeddings is now False", stacklevel=3)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    config.tie_word_embeddings = text.tie_word_embeddings = False
    if hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


class PeftModelForCausalLM(PeftModel, peft.PeftModelForCausalLM):
    """peft.PeftModelForCausalLM with what PeftModel adds."""


class PeftModelForSeq2SeqLM(PeftModel, peft.PeftModelForSeq2SeqLM):
    """peft.PeftModelForSeq2SeqLM with what PeftModel adds."""


class PeftModelForSequenceClassification(PeftModel, peft.PeftModelForSequenceClassification):
    """peft.PeftModelForSequenceClassification with what PeftModel adds."""

    def forward(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, *args, **kwargs
    ) -> Any:
        """PEFT's forward. ValueError for right padding if a decoder with virtual tokens scores a row's last token."""
        # With prefix tuning the decoder gets input_ids, in which it finds the last token that is not padding.
        pools_last = hasattr(self.get_base_model(), "score") and self.peft_type != PeftType.PREFIX_TUNING
        if self._is_prompt_learning and pools_last and attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError(
                f"attention_mask: with {self.peft_type.value} this decoder classifies by the last token of a row, "
                "which is padding here; pad on the left (tokenizer.padding_side='left')"
            )
        return super().forward(input_ids, attention_mask, *args, **kwargs)


class PeftModelForTokenClassification(PeftModel, peft.PeftModelForTokenClassification):
    """peft.PeftModelForTokenClassification with what PeftModel adds."""


class PeftModelForQuestionAnswering(PeftModel, peft.PeftModelForQuestionAnswering):
    """peft.PeftModelForQuestionAnswering with what PeftModel adds."""


class PeftModelForFeatureExtraction(PeftModel, peft.PeftModelForFeatureExtraction):
    """peft.PeftModelForFeatureExtraction with what PeftModel adds."""


OURS = {
    getattr(peft, kind.__name__): kind
    for kind in (
        PeftModel,
        PeftModelForCausalLM,
        PeftModelForSeq2SeqLM,
        PeftModelForSequenceClassification,
        PeftModelForTokenClassification,
        PeftModelForQuestionAnswering,
        PeftModelForFeatureExtraction,
    )
}


def get_peft_model(
    model: nn.Module, peft_config: peft.PeftConfig, adapter_name: str = "default", mixed: bool = False, *args, **options
) -> "PeftModel | peft.PeftMixedModel":
    """peft.get_peft_model with this package's layers: adds the adapter of peft_config to the model in place.

    Args:
        model, peft_config, adapter_name, mixed, further arguments: as in peft.get_peft_model.

    Returns:
        A PeftModel of the config's task, a subclass of peft.PeftModel; with mixed=True a PeftMixedModel.

    Raises:
        ValueError: before any change, adapter_name is not a valid name, or a module in modules_to_save would not be
            trained. Also what PEFT raises.
    """
    check_before(model, peft_config, adapter_name)
    if mixed:
        peft_config.base_model_name_or_path = vars(model).get("name_or_path") or None  # as PEFT does
        return PeftMixedModel(model, peft_config, adapter_name=adapter_name)
    name_head(peft_config)
    made = peft_get_peft_model(model, peft_config, adapter_name, False, *args, **options)
    return PeftModel._adopt(made, is_loaded=False)
