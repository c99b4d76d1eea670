"""Where each of several adapters goes in a model, and whether all fit, before any of them is loaded."""

import peft

from .check import check
from .config import check_alike
from .dry_run import Place, present, rehearse
from .lora_fields import unusual
from .own_tensors import METHODS, like_another, shaping
from .plain_lora import place_of_plain_lora


def places_of(model, contents: dict, options: dict) -> dict[str, Place | None]:
    """{name: Place} of {name: Contents}, on a base model or a PeftModel; None if there is no dry run.

    ValueError, or what PEFT raises, if an adapter does not fit, or the adapters are of several methods. The model does
    not change. Configs with the same tensors have one dry run, unless PEFT compares adapters of this kind: then each
    has a dry run on a skeleton that has those before it.
    """
    known = getattr(model, "peft_config", None) if isinstance(model, peft.PeftModel) else None
    known = known or {}
    methods = {name: its.config.peft_type for name, its in contents.items()}
    methods = {name: config.peft_type for name, config in known.items()} | methods
    if len(set(methods.values())) > 1:
        shown = ", ".join(f"{name} of {kind.value}" for name, kind in methods.items())
        raise ValueError(f"one model holds adapters of one method, and there are {shown}; give `names` of one method")
    found, rehearsed, all_so_far = {}, [], model
    together = not all(map(_is_alone, (*known.values(), *(its.config for its in contents.values()))))
    for name, its in contents.items():
        config = its.config
        if name in known:
            check_alike(its.pair.config_path, name, known[name], config)
            place = None if config.is_adaption_prompt else present(model, name)
        elif known and config.is_adaption_prompt:  # PEFT keeps inactive ones outside of the model
            place = None
        elif together:
            place = _beside(all_so_far, its, name, [*known, *(other for other in found if other not in known)])
            all_so_far = all_so_far if place is None else place.model
        else:
            place = like_another(model, config) if known else None
            place = place or place_of_plain_lora(model, config, name, its.tensors, options)
            place = place or next((place for fields, place in rehearsed if fields == shaping(config)), None)
            if place is None:
                place = rehearse(model, config, name)
                rehearsed.append((shaping(config), place))
        check(its.pair.weights_path, its.tensors, known.get(name, config), place, dict(options))
        found[name] = place
    return found


def _is_alone(config) -> bool:
    """Whether PEFT adds an adapter of this config beside any other one: the adapter has tensors of its own only."""
    if config.peft_type == "LORA":
        return config.bias == "none" and not unusual(config)
    if config.is_adaption_prompt:  # PEFT keeps inactive ones outside of the model
        return True
    return config.peft_type in METHODS and not getattr(config, "modules_to_save", None)


def _beside(model, its, name, others) -> Place | None:
    """The Place of an adapter on a model, or a skeleton, that has the `others`. ValueError names the file and them."""
    try:
        return rehearse(model, its.config, name)
    except (ValueError, TypeError) as error:
        if not others:
            raise
        raise ValueError(
            f"{its.pair.config_path}: PEFT does not add {name} beside {', '.join(others)}: {error}; give `names` of "
            "adapters that go together"
        ) from error
