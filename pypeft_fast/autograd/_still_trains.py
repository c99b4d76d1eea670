"""A parameter that trained in the forward pass and no longer does in the backward pass: PyTorch drops its gradient."""

import torch


def still_trains(function, name, parameter, needed) -> None:
    """RuntimeError if the parameter's gradient is needed and it has ceased to require one since the forward pass.

    PEFT's set_adapter, disable_adapter and delete_adapter freeze the adapter that was active: between forward and
    backward that loses its gradients without a word.
    """
    if needed and not parameter.requires_grad and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{function}: {name} has ceased to require grad between forward and backward, so that its gradient would "
            "be lost; call backward before set_adapter, disable_adapter or requires_grad_(False)"
        )
