"""Our methods are among PEFT's as soon as both libraries are imported, in either order; neither imports the other.

`peft.PeftModel.from_pretrained` of a BitFit or bottleneck adapter's folder needs the methods in PEFT's registry, and
PEFT loads no plugins. So where peft is not imported yet, a finder waits for its import. It finds nothing itself.
"""

import importlib
import importlib.abc
import sys


def register_with_peft() -> None:
    """Registers now if peft is imported, else when it will be."""
    # That of an earlier import, if this package was deleted from sys.modules: the two would ask each other for ever.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]
    if "peft" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _WhenPeftLoads())


def _register():
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


class _WhenPeftLoads(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module):
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    _register()

            spec.loader.exec_module = load_and_register
        return spec
