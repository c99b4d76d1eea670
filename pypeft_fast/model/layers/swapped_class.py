"""Sets the class of a module to a fused subclass and back, and cleans up what wrappers left on the instance."""

_OURS = __package__.rpartition(".")[0] + "."  # pypeft_fast.model.


def has_own_forward(module) -> bool:
    """Whether calls do not reach the forward of the module's class: accelerate's hooks stand there, or a function.

    Removed accelerate hooks leave a forward on the instance: the method of its class, or of a fused class that the
    module no longer has and that calls the method of its class. Neither counts.
    """
    forward = vars(module).get("forward")
    if forward is None:
        return False
    function = getattr(forward, "__func__", None)
    if function is None or forward.__self__ is not module:
        return True
    return function is not type(module).forward and not function.__module__.startswith(_OURS)


def set_class(module, kind) -> None:
    """Removes the instance's forward that accelerate leaves behind, which would hide the forward of the class."""
    if "forward" in vars(module) and not has_own_forward(module):
        del module.forward
    module.__class__ = kind


def why_not_forward(layer) -> str | None:
    """Why calls of the layer do not reach the forward of its class, if they do not."""
    return "the layer has a forward of its own" if has_own_forward(layer) else None
