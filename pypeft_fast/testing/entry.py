"""Entry: what must be known of an op besides its schema, so that every kernel behind it can be called and judged."""

from collections.abc import Callable
from dataclasses import dataclass

from .._op import Op


@dataclass(frozen=True)
class Variant:
    """A way to call an op that is tested, timed and compiled beside the others."""

    options: dict  # Case.options
    spoiled: dict[str, Callable]  # {what is wrong: spoil(kernel, *arguments) -> wrong outputs}


@dataclass(frozen=True)
class Entry:
    op: Op
    arguments: Callable[..., tuple]  # Operands -> the op's arguments
    eager: Callable  # of the op's arguments: what PyTorch alone would run, each step rounded to a dtype
    variants: dict[str, Variant]  # by name; "" is the op called without options


def title(op: str, variant: str) -> str:
    """What a variant is called in reports: "lora_linear", "lora_linear, scale"."""
    return f"{op}, {variant}" if variant else op
