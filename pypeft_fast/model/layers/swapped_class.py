"""The class of a module set to a fused subclass and back, with what wrappers have left on the instance."""

_OURS = __package__.rpartition(".")[0] + "."  # pypeft_fast.model.


def has_own_forward(module) -> bool:
    """Whether calls do not reach the forward of the module's class: accelerate's hooks stand there, or a function.

    When accelerate's hooks are removed they leave the method of the class itself, and maybe that of a fused class which
    the module has no longer, which calls the one of the class: neither counts.
    """
    forward = vars(module).get("forward")
    if forward is None:
        return False
    function = getattr(forward, "__func__", None)
    if function is None or forward.__self__ is not module:
        return True
    return function is not type(module).forward and not function.__module__.startswith(_OURS)


def set_class(module, kind) -> None:
    """What accelerate leaves as the module's own forward would go on standing before that of its class: it goes too."""
    if "forward" in vars(module) and not has_own_forward(module):
        del module.forward
    module.__class__ = kind


def why_not_forward(layer) -> str | None:
    """Why calls of the layer do not reach the forward of its class, if they do not."""
    return "the layer has a forward of its own" if has_own_forward(layer) else None
