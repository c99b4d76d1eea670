"""PeftMixedModel and MixedModel: PEFT's classes with BitFit and bottleneck adapters too, and with fused layers."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import peft
from peft.mixed_model import _check_config_compatible, _prepare_model_for_gradient_checkpointing
from peft.tuners.mixed import MixedModel as PeftMixedTuner
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import DUMMY_MODEL_CONFIG
from torch import nn

from .fuse import fuse
from .joints import torch_encoder
from .tuners import BitFitConfig, BitFitModel, BottleneckModel
from .tuners.configs import TunerConfig
from .tuners.layer import TunerLayer
from .wrapping import check_before, warn_after


class PeftMixedModel(peft.PeftMixedModel):
    """peft.PeftMixedModel that also accepts BitFitConfig and BottleneckConfig.

    MixedModel gives the formula for several active adapters.

    Args:
        model: the user's model, changed in place.
        peft_config, adapter_name: the first adapter.

    Raises:
        ValueError: the config's method cannot be mixed.
    """

    def __init__(self, model: nn.Module, peft_config: peft.PeftConfig, adapter_name: str = "default"):
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
            self.config.pretraining_tp = 1  # as in PEFT: the model must not compute with slices of its weights
        self._after_adding(adapter_name)

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: peft.PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Adds another adapter, which is not active yet.

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
        self._after_adding(adapter_name)

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args, **kwargs) -> Any:
        """PEFT's load_adapter; also for an adapter whose layers are inside the layers of another adapter."""
        self._loading = adapter_name
        try:
            return super().load_adapter(model_id, adapter_name, *args, **kwargs)
        finally:
            self._loading = None

    def load_state_dict(self, state_dict: Mapping[str, Any], *args, **options) -> Any:
        """torch's load_state_dict. While an adapter is loaded, names in the file are mapped to names in the model: PEFT
        does not add `base_layer` for the layers of other adapters around this adapter's layers."""

        def in_file(name):
            return ".".join(part for part in name.split(".") if part not in ("base_layer", self._loading))

        own = {in_file(name): name for name in self.state_dict()} if self._loading else {}
        state_dict = {own.get(in_file(name), name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **options)

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's delete_adapter; a gated feedforward module without LoRA adapters is unfused."""
        super().delete_adapter(adapter_name)
        if self.peft_config:
            fuse(self.base_model.model)

    def _after_adding(self, adapter_name):
        torch_encoder.switch_off_fast_path(self.base_model.model)
        warn_after(self.base_model.model, self.peft_config[adapter_name], adapter_name)
        fuse(self.base_model.model)


class MixedModel(BitFitModel, BottleneckModel, PeftMixedTuner):
    """PEFT's mixed model with BitFit and bottleneck adapters.

    Around one module the layers are nested in a fixed order, whatever the order of adding: bottlenecks outermost, then
    BitFit, then PEFT's layers. So y = N(V x + b'): V is the weight with the updates of PEFT's methods (DoRA's norms
    included), b' the bias of the BitFit adapter and N the bottlenecks.
    """

    tuner_layer_cls = BaseTunerLayer

    def _check_new_adapter_config(self, config):
        if isinstance(config, TunerConfig):
            BaseTuner._check_new_adapter_config(self, config)
        else:
            super()._check_new_adapter_config(config)
        _check_biases(self.peft_config)

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **options):
        while not isinstance(config, TunerConfig) and isinstance(target, TunerLayer):
            parent, target_name, target = target, "base_layer", target.base_layer
        super()._create_and_replace(config, adapter_name, target, target_name, parent, current_key, **options)

    def _mark_only_adapters_as_trainable(self, model):
        ours = [p for layer in self.own_layers() for n in self.peft_config for p in layer.parameters_of(n)]
        trains = [p.requires_grad for p in ours]
        super()._mark_only_adapters_as_trainable(model)  # recognises only the parameter names of PEFT's methods
        for parameter, wanted in zip(ours, trains, strict=True):
            parameter.requires_grad = wanted

    def _unload_and_optionally_merge(self, *args, **options):
        model = super()._unload_and_optionally_merge(*args, **options)
        torch_encoder.restore_fast_path(model)
        return model


def _check(model, config, adapter_name) -> None:
    if not isinstance(config, TunerConfig):
        _check_config_compatible(config)
    check_before(model, config, adapter_name)


def _check_biases(configs) -> None:
    """ValueError if an adapter trains biases, or adds to biases, that a BitFit adapter replaces."""
    copies = [name for name, config in configs.items() if isinstance(config, BitFitConfig)]
    for name, config in configs.items() if copies else ():
        for field in ("bias", "lora_bias"):
            if getattr(config, field, False) not in (False, "none"):
                raise ValueError(
                    f"{field}={getattr(config, field)!r} of adapter {name!r} changes the biases that the BitFit "
                    f"adapter {copies[0]!r} replaces; leave it out"
                )
