"""The entries of all ops, and tables made from the entries. A new op's file must be added to _FILES."""

from .case import Case
from .entry import Entry, title
from .operands import Operands
from .ops import (
    dequantize,
    dora_norm,
    ia3_dx_dl,
    ia3_linear,
    lora_backward,
    lora_da,
    lora_ds_db,
    lora_dx,
    lora_forward,
    lora_linear,
    lora_shrink,
    multi_lora_backward,
    multi_lora_forward,
    swiglu,
    swiglu_backward,
)

_FILES = (
    lora_shrink, lora_linear, lora_forward, lora_ds_db, lora_dx, lora_da, lora_backward, ia3_linear, ia3_dx_dl,
    multi_lora_forward, multi_lora_backward, dora_norm, swiglu, swiglu_backward, dequantize,
)  # fmt: skip
ENTRIES: dict[str, Entry] = {file.ENTRY.op.name: file.ENTRY for file in _FILES}
# {op: eager PyTorch's function}.
EAGER = {op: entry.eager for op, entry in ENTRIES.items()}
# {title: (op, options)}; a title is for example "lora_linear, scale".
VARIANTS = {title(op, name): (op, v.options) for op, entry in ENTRIES.items() for name, v in entry.variants.items()}
# {title: {fault: spoil(kernel, *arguments)}}.
SPOILED = {title(op, name): v.spoiled for op, entry in ENTRIES.items() for name, v in entry.variants.items()}


def sample(op_name: str, case: Case, draw: int = 0) -> tuple:
    """Arguments of the op for this case, scaled so that the low-rank term and the frozen term have the same size.

    The tensors are on PyTorch's default device: inside `with torch.device("meta")` they take no memory.
    """
    if op_name not in ENTRIES:
        raise ValueError(f"op_name={op_name!r} has no sample arguments; ops with samples are {', '.join(ENTRIES)}")
    return ENTRIES[op_name].arguments(Operands(case, draw))


def cut(op_name: str, kernel: str, case: Case) -> Case:
    """The case, cut to what the kernel takes: the case itself for a kernel that takes every call of its op."""
    limits = ENTRIES[op_name].limits.get(kernel)
    return case if limits is None else limits.cut(case)


def felt(variant: str, kernel: str) -> list[str]:
    """The names of the mutants in SPOILED[variant] that change the results of the kernel."""
    limits = ENTRIES[VARIANTS[variant][0]].limits.get(kernel)
    return [name for name in SPOILED[variant] if limits is None or name not in limits.unfelt]
