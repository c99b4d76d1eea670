"""Entry: the data, besides an op's schema, that is needed to call and test every kernel of the op."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .._op import Op
from .case import Case


@dataclass(frozen=True)
class Variant:
    """A way to call an op; every variant is tested, timed and compiled."""

    options: dict  # Case.options
    spoiled: dict[str, Callable]  # the mutants: {fault: spoil(kernel, *arguments) -> wrong outputs}


@dataclass(frozen=True)
class Limits:
    """The calls that a kernel takes, where it does not take every call of its op."""

    cut: Callable[[Case], Case]  # a case, cut to what the kernel takes
    unfelt: tuple[str, ...]  # the mutants that change nothing in such a case


@dataclass(frozen=True)
class Entry:
    op: Op
    arguments: Callable[..., tuple]  # Operands -> the op's arguments
    eager: Callable  # the op's arguments -> eager PyTorch's outputs, each step rounded to its dtype
    variants: dict[str, Variant]  # by name; "" is the op called without options
    limits: dict[str, Limits] = field(default_factory=dict)  # by kernel; no entry for one that takes every call


def title(op: str, variant: str) -> str:
    """The name of a variant in reports, such as "lora_linear" or "lora_linear, scale"."""
    return f"{op}, {variant}" if variant else op
