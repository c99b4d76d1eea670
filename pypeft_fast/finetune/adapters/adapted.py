"""A base model with the adapter that a run trains: a new adapter, or an adapter from a folder."""

import copy
import re

import pypeft_fast
from pypeft_fast._heap import give_back_freed

from ..errors import UserError, as_user_error
from ..library_errors import LIBRARY_ERRORS
from ..text import quoted
from .methods import method_config
from .targets import check_expression, check_targets, short_names, shortened_targets


def adapted(base, settings, name: str = "default"):
    """The base model with the adapter of these settings, which it calls `name`.

    UserError if the model does not support the method or an option, or if the adapter's files do not fit the model.
    """
    if settings.adapter is not None:
        with as_user_error(f"`adapter` {settings.adapter} cannot be loaded", LIBRARY_ERRORS):
            return pypeft_fast.PeftModel.from_pretrained(base, settings.adapter, name, is_trainable=True)
    names = _layers(base)
    check_targets(settings.target_modules, names)
    check_expression(settings.target_modules, base)
    _check_virtual(base, settings.virtual_tokens)
    modules = [name for name, _ in base.named_modules()]
    check_rank(base, settings.rank)
    kinds = (ValueError, TypeError, RuntimeError, OverflowError, MemoryError, re.error)  # RuntimeError: out of memory
    try:
        with as_user_error("the adapter cannot be made", kinds):
            model = pypeft_fast.get_peft_model(base, method_config(pypeft_fast, settings), name)
    except UserError as error:
        if settings.target_modules in (None, "all-linear"):
            raise
        given = f"`target_modules` is {quoted(settings.target_modules)}"
        raise UserError(
            f"{error}; {given}, and the layers of this model are called {', '.join(short_names(names))}"
        ) from error
    give_back_freed()  # DoRA's first norms take as much as the weights, in pieces that the C library would keep
    if settings.target_modules == "all-linear":
        (config,) = model.peft_config.values()
        config.target_modules = shortened_targets(set(config.target_modules), modules)
    return model


def _check_virtual(base, tokens: int | None) -> None:
    """UserError for more virtual tokens than the model has positions."""
    most = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if tokens is not None and most is not None and tokens >= most:
        raise UserError(f"`virtual_tokens` {tokens} leaves no position for an example: this model has {most}")


def check_rank(base, rank: int | None) -> None:
    """UserError if the rank is larger than each width of each layer of the model, which may be on the meta device."""
    widest = max((_width(base.get_submodule(name)) for name in _layers(base)), default=0)
    if rank is not None and rank > widest:
        raise UserError(f"`rank` {rank} is more than the widest layer of this model has, {widest}")


def _layers(base) -> list[str]:
    return [name for name, its in base.named_modules() if getattr(getattr(its, "weight", None), "ndim", 0) == 2]


def add_adapter(model, settings, name: str) -> None:
    """A further adapter of these settings beside the first one of a model that `adapted` returned; not yet active."""
    if settings.adapter is not None:
        with as_user_error(f"`adapter` {settings.adapter} cannot be loaded", LIBRARY_ERRORS):
            model.load_adapter(settings.adapter, name, is_trainable=True)
        return
    first = next(iter(model.peft_config.values()))  # its targets are those of the base model's layers alone
    model.add_adapter(name, copy.deepcopy(first))


def _width(layer) -> int:
    """The larger of K and N. bitsandbytes' 4-bit layers store the weight as one column, so its shape is not read."""
    if hasattr(layer, "in_features"):
        return max(layer.in_features, layer.out_features)
    return max(layer.weight.shape)
