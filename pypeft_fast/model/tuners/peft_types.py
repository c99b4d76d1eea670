"""PeftType.BITFIT and PeftType.BOTTLENECK: the methods that PEFT lacks, in its own enumeration of methods."""

from peft import PeftType


def _member(name) -> PeftType:
    """The member of that name, added if PEFT has none.

    register_peft_method takes only members of PeftType, and enum has no way to add one to a class that exists. So this
    writes what the class statement would have: the attribute (found by Python 3.12 and later), the list of names, and
    the maps from names and from values.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType)
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    return member


BITFIT, BOTTLENECK = _member("BITFIT"), _member("BOTTLENECK")
