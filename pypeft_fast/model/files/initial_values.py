"""Adding an adapter whose values are all in a file: the random initial values, which nothing reads, are not drawn."""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLS = (nn.init.kaiming_uniform_, nn.init.uniform_, torch.Tensor.uniform_)


class without_initial_values(TorchFunctionMode):  # noqa: N801, a context manager that is used like a function
    """In the block, and in this thread alone, uniform draws are left out. The end of the block makes up for those whose
    tensor nothing has written to since, so that no tensor keeps what its memory happens to hold."""

    def __init__(self):
        super().__init__()
        self._left_out = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in _FILLS:
            return function(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        self._left_out.append((tensor, tensor._version, function, args, kwargs))
        return tensor

    def __exit__(self, kind, error, traceback):
        super().__exit__(kind, error, traceback)
        left_out, self._left_out = self._left_out, []
        with torch.no_grad():
            for tensor, version, function, args, kwargs in left_out if kind is None else ():
                if tensor._version == version:
                    function(*args, **kwargs)
