"""The registration of the ops in torch.library: once a process, even if the package is imported again.

PyTorch keeps its registrations when test runners or notebooks delete the modules from sys.modules, and refuses a second
definition. So a registered op looks up its function at each call, in a table that lives as long as the registrations:
it is an attribute of torch.ops.pypeft_fast.
"""

import torch

_BOUND = vars(torch.ops.pypeft_fast).setdefault("bound", {})  # {(op, key): function}, and at "" the Library itself
if "" not in _BOUND:
    _BOUND[""] = torch.library.Library("pypeft_fast", "DEF")


def define(name: str, schema: str):
    """Defines the op and returns it. RuntimeError if an earlier import has defined it with another schema."""
    if _BOUND.setdefault((name, "schema"), schema) != schema:
        raise RuntimeError(
            f"pypeft_fast was imported before in this process and defined {name} as {_BOUND[name, 'schema']}, now as "
            f"{schema}; PyTorch keeps the first: restart Python"
        )
    if not hasattr(torch.ops.pypeft_fast, name):
        _BOUND[""].define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    return getattr(torch.ops.pypeft_fast, name).default


def bind(name: str, key: str, function, **options) -> None:
    """Binds the function that PyTorch runs for a dispatch key of the op."""
    if _bind(name, key, function):
        _BOUND[""].impl(name, _looked_up(name, key), key, **options)


def bind_fake(name: str, function) -> None:
    if _bind(name, "fake", function):
        torch.library.register_fake(f"pypeft_fast::{name}", _looked_up(name, "fake"), lib=_BOUND[""])


def _bind(name, key, function) -> bool:
    """Whether it is the first one."""
    first = (name, key) not in _BOUND
    _BOUND[name, key] = function
    return first


def _looked_up(name, key):
    table, entry = _BOUND, (name, key)
    return lambda *args: table[entry](*args)
