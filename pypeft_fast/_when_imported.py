"""Registers our ops when PyTorch is imported, and our methods when PEFT is, without importing either.

Ops: for programs that load an exported model or call torch.ops.pypeft_fast. Methods: for
`peft.PeftModel.from_pretrained` on the folder of a BitFit or bottleneck adapter, since PEFT has no plugin mechanism. If
a package is not imported yet, a finder in sys.meta_path waits for its import; the other finders locate the package.
"""

import importlib
import importlib.abc
import sys


def watch() -> None:
    """Registers for each of the two packages: at once if it is imported, else after its import."""
    # Remove our finders of an earlier import, if this package was deleted from sys.modules: they would call each other.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]
    for name, then in (("torch", _register_ops), ("peft", _register_methods)):
        if name in sys.modules:
            then()
        else:
            sys.meta_path.insert(0, _ImportFinder(name, then))


def _register_ops():
    """Registers all ops; none if a module of this package is importing PyTorch, which imports its own ops."""
    ours = (module for name, module in sys.modules.items() if name.startswith(f"{__package__}."))
    if not any(getattr(module.__spec__, "_initializing", False) for module in ours):
        importlib.import_module(f"{__package__}._own")


def _register_methods():
    tuners = f"{__package__}.model.tuners"
    if tuners not in sys.modules:
        _remove_registrations(tuners)
    importlib.import_module(tuners)


def _remove_registrations(tuners):
    """Removes the entries of an earlier import from PEFT's tables: PEFT refuses a name that is registered already."""
    mapping = importlib.import_module("peft.mapping")
    ours = [
        kind for kind, config in mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items() if config.__module__.startswith(tuners)
    ]
    for table in ("CONFIG", "TUNER", "MIXED_MODEL", "PREFIX"):
        for kind in ours:
            getattr(mapping, f"PEFT_TYPE_TO_{table}_MAPPING").pop(kind, None)


class _ImportFinder(importlib.abc.MetaPathFinder):
    def __init__(self, name, then):
        self.name, self.then = name, then

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_act(module):
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.then()

            spec.loader.exec_module = load_and_act
        return spec
