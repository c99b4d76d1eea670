"""What torch.library holds of the ops: made once a process, and bound anew if the package is imported again.

PyTorch keeps its registrations when the modules are deleted from sys.modules, as test runners and notebooks do, and
refuses a second definition. So what is registered looks up its function at each call, in a table that lies where the
registrations do, on torch.ops.pypeft_fast.
"""

import torch

_BOUND = vars(torch.ops.pypeft_fast).setdefault("bound", {})  # {(op, key): function}, and at "" the Library itself
if "" not in _BOUND:
    _BOUND[""] = torch.library.Library("pypeft_fast", "DEF")


def define(name: str, schema: str):
    """The op of that schema. RuntimeError if an earlier import has defined it otherwise."""
    if _BOUND.setdefault((name, "schema"), schema) != schema:
        raise RuntimeError(
            f"pypeft_fast was imported before in this process and defined {name} as {_BOUND[name, 'schema']}, now as "
            f"{schema}; PyTorch keeps the first: restart Python"
        )
    if not hasattr(torch.ops.pypeft_fast, name):
        _BOUND[""].define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    return getattr(torch.ops.pypeft_fast, name).default


def bind(name: str, key: str, function, **options) -> None:
    """What PyTorch runs of the op for a dispatch key."""
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
