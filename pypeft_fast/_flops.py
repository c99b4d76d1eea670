"""FLOP formulas of the ops for torch.utils.flop_counter, which counts nothing for an op without a formula.

The formulas are registered when a counter first becomes active: importing that module takes 0.2 s (it imports triton).
"""

import sys

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

FORMULAS = {}  # {op: formula(*args) -> floating-point operations, a multiplication and an addition counted as two}


def tell_counters() -> None:
    """Adds every formula to PyTorch's registry, and to the active counters, which hold a copy of the registry."""
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    for op, formula in FORMULAS.items():
        if op not in module.flop_registry:
            module.register_flop_formula(op, get_raw=True)(_ignoring_the_result(formula))
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, module._FlopCounterMode):
            for op in FORMULAS:
                mode.counter.flop_registry.setdefault(op, module.flop_registry[op])


def _ignoring_the_result(formula):
    return lambda *args, out_val=None: formula(*args)
