"""An error if switching adapters froze a parameter between forward and backward, which would lose its gradient."""

import torch


def still_trains(function, name, parameter, needed) -> None:
    """RuntimeError if switching adapters (`frozen_by_switching`, which model/layers sets) has frozen the parameter
    since the forward pass and this backward pass would have given it a gradient."""
    if needed and not parameter.requires_grad and getattr(parameter, "frozen_by_switching", False) and _is_lost():
        raise RuntimeError(
            f"{function}: {name} stopped requiring grad between forward and backward, so its gradient would be lost; "
            "call backward before set_adapter, disable_adapter or delete_adapter"
        )


def _is_lost() -> bool:
    """Whether the engine accumulates gradients into all leaves, as .backward() does; autograd.grad names its inputs."""
    if torch.compiler.is_compiling():
        return False
    node = torch._C._current_autograd_node()
    leaves = [leaf for leaf, _ in node.next_functions if leaf is not None and hasattr(leaf, "variable")]
    try:
        return any(torch._C._will_engine_execute_node(leaf) for leaf in leaves)
    except RuntimeError:  # under autograd.grad
        return False
