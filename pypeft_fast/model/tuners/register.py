"""Registers BitFit and bottleneck adapters with PEFT: PeftType.BITFIT, PeftType.BOTTLENECK, configs and models."""

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from .bitfit import BitFitModel
from .bottleneck import BottleneckModel
from .configs import BitFitConfig, BottleneckConfig


def register() -> None:
    """Registers both methods; a second call does nothing. KeyError if PEFT has another method of one of the names."""
    for name, config, model in (
        ("BITFIT", BitFitConfig, BitFitModel),
        ("BOTTLENECK", BottleneckConfig, BottleneckModel),
    ):
        if PEFT_TYPE_TO_CONFIG_MAPPING.get(name) is not config:
            _add_member(name)
            options = dict(prefix=model.prefix, is_mixed_compatible=True)
            register_peft_method(name=name.lower(), config_cls=config, model_cls=model, **options)


def _add_member(name) -> None:
    """Adds the member PeftType.<name>, if there is none: register_peft_method accepts only members of PeftType.

    enum has no function to add a member to an existing class. So this function sets the attributes that the class
    statement would set: the member itself (read by Python 3.12 and later), the list of names, and the maps from names
    and from values.
    """
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType)
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member


register()
