"""PeftMixedModel: PEFT's, whose adapters may be of BitFit and bottlenecks too, with fused layers."""

import contextlib

import peft
from peft.mixed_model import _check_config_compatible, _prepare_model_for_gradient_checkpointing
from peft.utils.constants import DUMMY_MODEL_CONFIG
from torch import nn

from .fuse import fuse
from .joints import torch_encoder
from .tuners.configs import TunerConfig
from .tuners.mixed import MixedModel
from .wrapping import check_before, warn_after


class PeftMixedModel(peft.PeftMixedModel):
    """peft.PeftMixedModel, which takes BitFitConfig and BottleneckConfig beside what PEFT's takes; MixedModel says what
    adapters that are active together compute.

    Args:
        model: the user's model, changed in place; peft_config, adapter_name: the first adapter.

    Raises:
        ValueError: the config's method cannot be mixed.
    """

    def __init__(self, model, peft_config, adapter_name="default"):
        nn.Module.__init__(self)
        _check(model, peft_config, adapter_name)
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
        if adapter_name in self.peft_config:
            raise ValueError(f"adapter_name={adapter_name!r}: there is such an adapter already; delete it first")
        _check(self.base_model.model, peft_config, adapter_name)
        with contextlib.ExitStack() as undo:
            undo.callback(self.peft_config.pop, adapter_name)
            self.peft_config[adapter_name] = peft_config
            self.base_model.inject_adapter(self.base_model.model, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
            undo.pop_all()
        self.set_modules_to_save(peft_config, adapter_name)
        self.base_model._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        self._settle(adapter_name)

    def load_adapter(self, model_id, adapter_name, *args, **kwargs):
        """PEFT's; also an adapter whose layers lie inside of others."""
        self._loading = adapter_name
        try:
            return super().load_adapter(model_id, adapter_name, *args, **kwargs)
        finally:
            self._loading = None

    def load_state_dict(self, state_dict, *args, **options):
        """torch's. PEFT leaves a file's names as they are where other layers lie around the adapter's."""

        def in_file(name):
            return ".".join(part for part in name.split(".") if part not in ("base_layer", self._loading))

        own = {in_file(name): name for name in self.state_dict()} if self._loading else {}
        state_dict = {own.get(in_file(name), name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **options)

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


def _check(model, config, adapter_name) -> None:
    if not isinstance(config, TunerConfig):
        _check_config_compatible(config)
    check_before(model, config, adapter_name)
