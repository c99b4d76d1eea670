"""Adding an adapter whose values are all in a file: the random initial values, which nothing reads, are not drawn."""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLS = (nn.init.kaiming_uniform_, nn.init.uniform_, torch.Tensor.uniform_)


class without_initial_values(TorchFunctionMode):  # noqa: N801, a context manager that is used like a function
    """In the block, and in this thread alone, new matrices keep what their memory holds instead of uniform draws."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in _FILLS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))
