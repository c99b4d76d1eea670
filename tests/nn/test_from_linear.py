"""from_linear accepts a plain linear layer, and refuses a layer with hooks, a changed forward or a computed weight."""

import pytest
from torch import nn
from torch.nn.utils import prune

import pypeft_fast as pf

CLASSES = pytest.mark.parametrize("cls", [pf.nn.LoRALinear, pf.nn.IA3Linear, pf.nn.BitFitLinear])


def nothing(*args):
    return None


def own_forward(linear):
    linear.forward = lambda x: 2 * nn.Linear.forward(linear, x)


REASONS = {
    "forward hooks": lambda linear: linear.register_forward_hook(nothing),
    "forward pre hooks": lambda linear: linear.register_forward_pre_hook(nothing),
    "backward hooks": lambda linear: linear.register_full_backward_hook(nothing),
    "backward pre hooks": lambda linear: linear.register_full_backward_pre_hook(nothing),
    "forward": own_forward,
}


@CLASSES
@pytest.mark.parametrize("reason", list(REASONS))
def test_hooks_and_an_own_forward_are_refused(cls, reason):
    linear = nn.Linear(4, 4)
    undo = REASONS[reason](linear)
    with pytest.raises(ValueError, match=f"linear has {reason} of its own, which the new layer would"):
        cls.from_linear(linear)
    assert linear.weight.requires_grad and linear.bias.requires_grad
    if undo is None:
        del linear.forward
    else:
        undo.remove()
    assert cls.from_linear(linear).weight is linear.weight


@CLASSES
def test_pruned_and_normalised_layers_are_refused(cls):
    pruned = prune.random_unstructured(nn.Linear(4, 4), "weight", amount=0.5)
    with pytest.raises(ValueError, match="forward pre hooks of its own, .*pruning"):
        cls.from_linear(pruned)
    prune.remove(pruned, "weight")
    assert not cls.from_linear(pruned).weight.all()
    with pytest.raises(TypeError, match="linear is a ParametrizedLinear, expected a torch.nn.Linear"):
        cls.from_linear(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))


@CLASSES
def test_from_linear_refuses_other_classes(cls):
    with pytest.raises(TypeError, match="linear is a Conv1d, expected a torch.nn.Linear"):
        cls.from_linear(nn.Conv1d(1, 1, 1))
    with pytest.raises(TypeError, match="linear is a LoRALinear"):
        cls.from_linear(pf.nn.LoRALinear(4, 4))


@CLASSES
def test_the_training_mode_is_copied(cls):
    assert not cls.from_linear(nn.Linear(4, 4).eval()).training and cls.from_linear(nn.Linear(4, 4)).training
