"""What this package does as soon as another is imported, before it or after it; it imports neither itself.

PyTorch: our ops are registered, for whoever loads an exported program or calls torch.ops.pypeft_fast. PEFT: our methods
are in its registry, which `peft.PeftModel.from_pretrained` of a BitFit or bottleneck adapter's folder asks; PEFT loads
no plugins. Where a package is not imported yet, a finder waits for its import. It finds nothing itself.
"""

import importlib
import importlib.abc
import sys


def watch() -> None:
    """For both packages: now if it is imported, else when it will be."""
    # Those of an earlier import, if this package was deleted from sys.modules: they would ask each other for ever.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]
    for name, then in (("torch", _register_ops), ("peft", _register_methods)):
        if name in sys.modules:
            then()
        else:
            sys.meta_path.insert(0, _WhenItLoads(name, then))


def _register_ops():
    """All of them; none if it is a module of this package that imports PyTorch first, which brings what it needs."""
    ours = (module for name, module in sys.modules.items() if name.startswith(f"{__package__}."))
    if not any(getattr(module.__spec__, "_initializing", False) for module in ours):
        importlib.import_module(f"{__package__}._own")


def _register_methods():
    tuners = f"{__package__}.model.tuners"
    if tuners not in sys.modules:
        _take_back(tuners)
    importlib.import_module(tuners)


def _take_back(tuners):
    """Takes from PEFT's tables what an earlier import has put there: PEFT keeps it, and takes no name twice."""
    mapping = importlib.import_module("peft.mapping")
    ours = [
        kind for kind, config in mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items() if config.__module__.startswith(tuners)
    ]
    for table in ("CONFIG", "TUNER", "MIXED_MODEL", "PREFIX"):
        for kind in ours:
            getattr(mapping, f"PEFT_TYPE_TO_{table}_MAPPING").pop(kind, None)


class _WhenItLoads(importlib.abc.MetaPathFinder):
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
