"""Tied parameters in a state dict: one name each, so that safetensors, and with it Trainer, can write the dict."""


def drop(module, state_dict, prefix, _):
    """A state-dict hook: leaves out every further name of a parameter."""
    for name in _further_names(module):
        state_dict.pop(prefix + name, None)


def restore(module, state_dict, prefix, *_):
    """A load hook: fills in the names that `drop` left out, so that strict loading finds them."""
    for name, first in _further_names(module).items():
        if prefix + first in state_dict:
            state_dict.setdefault(prefix + name, state_dict[prefix + first])


def _further_names(module) -> dict[str, str]:
    """{further name: first name} of the parameters that have several."""
    first: dict[int, str] = {}
    names = [(name, first.setdefault(id(p), name)) for name, p in module.named_parameters(remove_duplicate=False)]
    return {name: other for name, other in names if name != other}
