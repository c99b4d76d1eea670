"""PeftMixedModel: PEFT's, whose adapters may be of BitFit and bottlenecks too, with fused layers."""

import peft
from peft.mixed_model import _check_config_compatible, _prepare_model_for_gradient_checkpointing
from peft.utils.constants import DUMMY_MODEL_CONFIG
from torch import nn

from .fuse import fuse
from .joints import torch_encoder
from .tuners.config import TunerConfig
from .tuners.mixed import MixedModel
from .tuners.nesting import arrange
from .wrapping import check_before, warn_after


class PeftMixedModel(peft.PeftMixedModel):
    """peft.PeftMixedModel, which takes BitFitConfig and BottleneckConfig beside what PEFT's takes.

    Adapters that are active together give y = N(V x + b') for each linear layer, in whatever order they were added: V
    is what PEFT's methods make of the weight, b' the BitFit adapter's bias and N the bottlenecks.

    Args:
        model: the user's model, changed in place; peft_config, adapter_name: the first adapter.

    Raises:
        ValueError: the config's method cannot be mixed.
    """

    def __init__(self, model, peft_config, adapter_name="default"):
        nn.Module.__init__(self)
        _check_method(peft_config)
        check_before(model, peft_config, adapter_name)
        _prepare_model_for_gradient_checkpointing(model)
        self.modules_to_save = self._loading = None
        self.base_model = MixedModel(model, {adapter_name: peft_config}, adapter_name)
        if isinstance(peft_config, TunerConfig):
            self.base_model._cast_adapter_dtype(adapter_name)
        self.set_modules_to_save(peft_config, adapter_name)
        self.config = getattr(model, "config", DUMMY_MODEL_CONFIG)
        if hasattr(self.config, "pretraining_tp"):
            self.config.pretraining_tp = 1  # as in PEFT: the model must not cut its weights into slices
        self._settle(adapter_name)

    def add_adapter(self, adapter_name, peft_config, low_cpu_mem_usage=False, autocast_adapter_dtype=True):
        """An adapter beside the others, not yet active.

        Raises ValueError if the name is taken, the method cannot be mixed, or the config does not fit the model.
        """
        _check_method(peft_config)
        if adapter_name in self.peft_config:
            raise ValueError(f"adapter_name={adapter_name!r}: there is such an adapter already; delete it first")
        check_before(self.base_model.model, peft_config, adapter_name)
        self.peft_config[adapter_name] = peft_config
        model, added = self.base_model.model, False
        try:
            self.base_model.inject_adapter(model, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
            added = True
        finally:
            if not added:
                del self.peft_config[adapter_name]
        self.set_modules_to_save(peft_config, adapter_name)
        self.base_model._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        self._settle(adapter_name)
        arrange(model, first=self._loading)

    def load_adapter(self, model_id, adapter_name, *args, **kwargs):
        """PEFT's; an adapter of any place in the nest of layers may be loaded again."""
        self._loading = adapter_name
        arrange(self.base_model.model, first=adapter_name)
        try:
            return super().load_adapter(model_id, adapter_name, *args, **kwargs)
        finally:
            self._loading = None
            arrange(self.base_model.model)

    def delete_adapter(self, adapter_name):
        """PEFT's; a gated feedforward module that has lost its last LoRA adapter runs its own forward again."""
        super().delete_adapter(adapter_name)
        if self.peft_config:
            fuse(self.base_model.model)

    def merge_and_unload(self, *args, **kwargs):
        """PEFT's: the user's model with the adapters folded into its weights; ValueError for a bottleneck."""
        return self._unloaded(super().merge_and_unload(*args, **kwargs))

    def unload(self, *args, **kwargs):
        """PEFT's: the user's model with its weights as they were, without adapters."""
        return self._unloaded(super().unload(*args, **kwargs))

    def _settle(self, adapter_name):
        torch_encoder.keep_layers_called(self.base_model.model)
        warn_after(self.base_model.model, self.peft_config[adapter_name], adapter_name)
        fuse(self.base_model.model)

    def _unloaded(self, model):
        torch_encoder.as_it_was(model)
        return model


def _check_method(config) -> None:
    if not isinstance(config, TunerConfig):
        _check_config_compatible(config)
