"""The scaling of an adapter if it is not a plain number."""

import torch

from ..ops import _check


def scaling_into(function, scaling, *parameters):
    """(scaling as a float, the parameters), or (1.0, scaling * the parameters).

    A tensor is multiplied into the parameters: it gets a gradient, and the host does not wait for its value. So is a
    symbolic number of torch.compile: as an op's constant argument it would compile one graph per value.
    The product is float32 for a parameter in half precision. ValueError if a tensor is not one number; TypeError if
    scaling is no real number.
    """
    if isinstance(scaling, torch.Tensor):
        if scaling.numel() != 1:
            raise ValueError(
                f"{function}: scaling has shape {tuple(scaling.shape)}; give one number, or a tensor of one"
            )
        factor = scaling.reshape(())
        if scaling.is_complex():
            raise TypeError(f"{function}: scaling is {scaling.dtype}; give a real number")
    elif torch.compiler.is_compiling() and isinstance(scaling, (int, float)) and _is_open(scaling):
        factor = scaling
    elif type(scaling) is float:
        return scaling, *parameters
    else:
        return _check.number(function, "scaling", scaling), *parameters
    return 1.0, *(p.to(torch.promote_types(p.dtype, torch.float32)) * factor for p in parameters)


def _is_open(number) -> bool:
    from torch.fx.experimental.symbolic_shapes import has_static_value  # it imports sympy

    return not has_static_value(number)
