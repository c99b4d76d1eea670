"""PeftType.BITFIT and PeftType.BOTTLENECK, and their configs and models among those that PEFT makes and loads."""

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from .bitfit import BitFitModel
from .bottleneck import BottleneckModel
from .configs import BitFitConfig, BottleneckConfig


def register() -> None:
    """Once a process; KeyError if this PEFT has a method of one of the names."""
    for name, config, model in (
        ("BITFIT", BitFitConfig, BitFitModel),
        ("BOTTLENECK", BottleneckConfig, BottleneckModel),
    ):
        if PEFT_TYPE_TO_CONFIG_MAPPING.get(name) is not config:
            _add_member(name)
            options = dict(prefix=model.prefix, is_mixed_compatible=True)
            register_peft_method(name=name.lower(), config_cls=config, model_cls=model, **options)


def _add_member(name) -> None:
    """PeftType.<name>, if PEFT has none: register_peft_method takes only members of PeftType.

    enum has no way to add one to a class that exists. So this writes what the class statement would have: the attribute
    (found by Python 3.12 and later), the list of names, and the maps from names and from values.
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
