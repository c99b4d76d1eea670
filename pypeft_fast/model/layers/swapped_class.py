"""Sets the class of a module to a fused subclass and back, and removes a stale forward from the instance."""

_OURS = __package__.rpartition(".")[0] + "."  # pypeft_fast.model.


def has_own_forward(module) -> bool:
    """Whether the instance has a forward that replaces the forward of its class, such as accelerate's hooks.

    accelerate leaves a forward on the instance when it removes its hooks: the method of the module's class, or of a
    fused class from before unfuse, which calls the method of the module's class. The result is False for both.
    """
    forward = vars(module).get("forward")
    if forward is None:
        return False
    function = getattr(forward, "__func__", None)
    if function is None or forward.__self__ is not module:
        return True
    return function is not type(module).forward and not function.__module__.startswith(_OURS)


def set_class(module, kind) -> None:
    """Sets the module's class, and removes a forward that accelerate left on the instance and that would hide the
    class's."""
    if "forward" in vars(module) and not has_own_forward(module):
        del module.forward
    module.__class__ = kind


def why_not_forward(layer) -> str | None:
    """Why calls of the layer do not reach the forward of the layer's class, or None."""
    return "the layer has a forward of its own" if has_own_forward(layer) else None
