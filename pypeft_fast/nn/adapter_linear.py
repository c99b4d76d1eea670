"""AdapterLinear: the base class of the drop-in layers, an nn.Linear with merge and unmerge of an adapter."""

import torch
from torch import nn

from ..autograd._autocast import autocast_lora
from ..frozen.merging import check_share, requantized
from ..frozen.modules import frozen_of, is_conv1d, weight_of
from ..frozen.quantized_modules import is_linear_4bit, is_quantized
from ..ops import _check
from .swapping import watch

# Hooks and overrides of an instance's forward, in the order in which from_linear checks them.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class AdapterLinear(nn.Linear):
    """The base class of the layers, with merge and unmerge; it adds nothing to the frozen layer.

    To put another layer over the same weight in the place of such a layer is an error (swapping.py).
    A subclass calls `_freeze()` when it creates its parameters. It defines `_merged_values()`, a dict of "weight" and
    "bias" as merged, if merging changes them, and `_reset_adapter()`, which sets the adapter's initial values.

    Over a quantised layer, which it holds as `base_layer`, weight and bias are None.
    """

    _reads_frozen = False  # whether a subclass's ops take a quantised weight

    @classmethod
    def _sharing(cls, linear):
        """A layer that shares the Parameters of `linear`, without an adapter yet; the weight of a Conv1D becomes a
        transposed view.

        Raises TypeError if `linear` is not exactly an nn.Linear, transformers' Conv1D, or a quantised layer that
        frozen_of reads: a subclass may compute something else; ValueError if it has hooks or a forward of its own,
        which the new layer would not run.
        """
        if type(linear) is not nn.Linear and not is_conv1d(linear) and not (is_quantized(linear) and cls._reads_frozen):
            raise TypeError(f"from_linear: linear is a {type(linear).__qualname__}, expected a torch.nn.Linear")
        own = [name for name in _HOOKS if getattr(linear, name)] + ["forward"] * ("forward" in vars(linear))
        if own:
            raise ValueError(
                f"from_linear: linear has {own[0].strip('_').replace('_', ' ')} of its own, which the new layer would "
                "not run (pruning, weight_norm and accelerate set such); take them off, and put them on the new layer"
            )
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.training = linear.training
        if is_quantized(linear):
            layer.out_features, layer.in_features = frozen_of(linear).shape
            layer.base_layer = linear
            layer.register_parameter("weight", None)
            layer.register_parameter("bias", None)
            return layer
        layer.weight, layer.bias = linear.weight, linear.bias
        if is_conv1d(linear):
            layer.weight = nn.Parameter(weight_of(linear).detach())
        layer.out_features, layer.in_features = layer.weight.shape
        return layer

    def _freeze(self):
        """Freezes weight and bias; returns an adapter's device and dtype, float32 over a half-precision weight."""
        watch(AdapterLinear)
        self._frozen = None  # the original parameters by name, while merged: a dict, which nn.Module does not register
        self._requantized = None  # over a quantised layer, while merged: the weight with the adapter in it
        if self._quantized is not None:
            self._quantized.requires_grad_(False)
            return dict(device=self._quantized.weight.device, dtype=torch.float32)
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        half = self.weight.dtype in (torch.bfloat16, torch.float16)
        return dict(device=self.weight.device, dtype=torch.float32 if half else self.weight.dtype)

    def reset_parameters(self) -> None:
        """Sets initial values of weight and bias, as nn.Linear does, and of the adapter, as after to_empty().

        A merged adapter is unmerged first.
        """
        built = "_frozen" in vars(self)  # nn.Linear's constructor calls this before the adapter exists
        if built:
            self.unmerge()
        if self._quantized is None:
            super().reset_parameters()
        if built:
            self._reset_adapter()

    def _reset_adapter(self):
        raise NotImplementedError

    @property
    def _quantized(self):
        """The quantised layer below, if it is one."""
        return self._modules.get("base_layer")

    def _over(self, x, function, *parameters):
        """function(x, weight, bias, *parameters) of the frozen layer and the adapter, in the dtype that the layer
        computes in. For a quantised layer it may be another than that of an adapter cast to half precision."""
        if self._quantized is None:
            return function(x, self.weight, self.bias, *parameters)
        _check.tensors(type(self).__name__, x=x)
        frozen = frozen_of(self._quantized) if self._requantized is None else self._requantized
        dtype = frozen.dtype if is_linear_4bit(self._quantized) else x.dtype
        bias = None if self._quantized.bias is None else self._quantized.bias.to(dtype)
        return function(x.to(dtype), frozen.to(dtype), bias, *autocast_lora(dtype, *parameters)).to(x.dtype)

    def _dense_weight(self):
        """The weight that an adapter is merged into; a quantised weight is decoded to float32."""
        return self.weight if self._quantized is None else frozen_of(self._quantized).dequantize(torch.float32)

    def _merged_values(self):
        raise NotImplementedError

    @property
    def merged(self) -> bool:
        """Whether the adapter is merged."""
        return self._frozen is not None or self._requantized is not None

    def merge(self, force: bool = False) -> float:
        """Merges the adapter, in float32, into new parameters: the layer is then a plain linear layer.

        The original parameters are kept, so that unmerge restores them bit for bit; a module that shares them does not
        change. The state dict stays that of the unmerged layer. RuntimeError, before any change, if weight or bias is
        parametrized or pruned.

        Over a quantised layer the sum is quantised again, and rounding may lose part of the update. Returns the share
        of the update that is left, 1.0 for a dense weight. RuntimeError, before any change, if it is under 0.9, unless
        `force`.
        """
        if self._quantized is not None:
            return self._merge_quantized(force)
        if not self.merged:
            values = self._merged_values()
            self._check_own("merge", values)
            frozen = {name: getattr(self, name) for name in values}
            for name, value in values.items():
                setattr(self, name, nn.Parameter(value, requires_grad=False))
            self._frozen = frozen
        return 1.0

    def _merge_quantized(self, force):
        if self._requantized is None:
            values = self._merged_values()
            if "bias" in values:
                raise RuntimeError("merge: cannot merge a bias into a quantised layer; keep the adapter unmerged")
            new, self._share = requantized(frozen_of(self._quantized), values["weight"])
            check_share(self._share, force)
            self._requantized = new
        return self._share

    def unmerge(self) -> None:
        """Puts the original parameters back, bit for bit. RuntimeError if one was parametrized or pruned meanwhile."""
        self._requantized = None
        if self._frozen is not None:
            self._check_own("unmerge", self._frozen)
            for name, parameter in self._frozen.items():
                setattr(self, name, parameter)
            self._frozen = None

    def _check_own(self, doing, names):
        """RuntimeError if one of these names is not a parameter of this layer but computed from other tensors."""
        for name in names:
            if self._parameters.get(name) is None:
                raise RuntimeError(
                    f"{doing}: {name} is not a parameter of this layer; parametrizations and pruning compute it from "
                    f"others. Remove them (torch.nn.utils.parametrize.remove_parametrizations, or remove of "
                    f"torch.nn.utils.prune), and if {name} then is a plain tensor, make it a torch.nn.Parameter"
                )

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda(): casts the originals and merges again
        merged = self.merged
        self.unmerge()
        super()._apply(fn, recurse)
        if merged:
            self.merge(force=True)
        return self

    def extra_repr(self) -> str:
        if self._quantized is None:
            return super().extra_repr()
        bias = self._quantized.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"

    def __setstate__(self, state):
        watch(AdapterLinear)
        super().__setstate__(state)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, parameter in (self._frozen or {}).items():
            destination[prefix + name] = parameter if keep_vars else parameter.detach()

    def _load_from_state_dict(self, *args):
        self.unmerge()
        super()._load_from_state_dict(*args)
