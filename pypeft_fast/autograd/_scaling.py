"""The factor of an adapter where it is no plain number."""

import torch


def scaling_into(function, scaling, *parameters):
    """The scaling as a number and the parameters that it multiplies, or 1.0 and the products.

    A tensor is multiplied in, so that it has its gradient, no host waits for its value, and torch.compile reads none.
    So is a number that torch.compile keeps open: an op takes it as a constant, and every value would be a graph.
    The product is float32 for a parameter in half precision. ValueError if a tensor is not one number.
    """
    if isinstance(scaling, torch.Tensor):
        if scaling.numel() != 1:
            raise ValueError(
                f"{function}: scaling has shape {tuple(scaling.shape)}; give one number, or a tensor of one"
            )
        factor = scaling.reshape(())
    elif torch.compiler.is_compiling() and _is_open(scaling):
        factor = scaling
    else:
        return float(scaling), *parameters
    return 1.0, *(p.to(torch.promote_types(p.dtype, torch.float32)) * factor for p in parameters)


def _is_open(number) -> bool:
    from torch.fx.experimental.symbolic_shapes import has_static_value  # it imports sympy

    return not has_static_value(number)
