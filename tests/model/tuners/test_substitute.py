"""BitFit on modules of every kind: their bias is substituted in a call, and the modules are not changed."""

import copy
import threading

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pypeft_fast.model.joints import rows
from pypeft_fast.model.tuners import BitFitConfig
from pypeft_fast.model.tuners.bitfit_layer import BitFitLayer
from tests.model.zoo import assert_same, build, liven


def adapted(base):
    model = peft.get_peft_model(base, BitFitConfig())
    liven(model)
    return model


def layers(model):
    return [m for m in model.modules() if isinstance(m, BitFitLayer)]


def give_biases(model, base):
    """Copies the biases of the adapter into the model `base` without adapters."""
    for name, parameter in base.named_parameters():
        module, _, kind = name.rpartition(".")
        if kind == "bias":
            parameter.data.copy_(model.base_model.model.get_submodule(module).bitfit_bias["default"])


class Mixed(nn.Module):
    """Modules with a bias: no linear layers, a layer with its own forward, and a layer with a hook."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.scaled, self.hooked = Scaled(6, 6), nn.Linear(6, 6)
        self.hooked.register_forward_hook(lambda module, args, y: y * 3)

    def forward(self, x):
        return self.hooked(self.scaled(input=self.norm(self.conv(x))))


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_other_modules_forwards_of_their_own_and_hooks():
    torch.manual_seed(0)
    base = Mixed()
    model = adapted(copy.deepcopy(base))
    give_biases(model, base)
    x = torch.randn(5, 4, 6)
    assert_same(model(x), base(x))
    norm = model.base_model.model.norm
    assert torch.equal(norm.running_mean, base.norm.running_mean) and norm.num_batches_tracked == 1


def test_a_forward_that_was_replaced_is_refused():
    base = Mixed()
    base.conv.forward = lambda x: x
    with pytest.raises(ValueError, match="conv, a Conv1d, has a forward of its own: use exclude_modules"):
        peft.get_peft_model(base, BitFitConfig())


@pytest.mark.parametrize("offload", [False, True])
def test_under_accelerates_hooks(offload):
    """The hooks of accelerate replace the forward of a module; with offloading they load the weights."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    model = adapted(Mixed()).eval()
    x = torch.randn(5, 4, 6)
    expected = model(x)
    for layer in layers(model):
        weights = {n: p.detach().clone() for n, p in layer.base_layer.state_dict().items()} if offload else None
        add_hook_to_module(
            layer.base_layer, AlignDevicesHook("cpu", offload=offload, io_same_device=True, weights_map=weights)
        )
    assert_same(model(x), expected)
    for layer in layers(model):
        remove_hook_from_module(layer.base_layer)  # leaves the method of the class as an attribute
    assert "forward" in vars(layers(model)[0].base_layer)
    assert_same(model(x), expected)


def test_attention_that_reads_the_bias_instead_of_calling_the_layer():
    torch.manual_seed(0)
    base = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = adapted(copy.deepcopy(base))
    give_biases(model, base)
    x = torch.randn(3, 5, 8)
    for mode in (False, True):
        model.train(mode)
        base.train(mode)
        with torch.set_grad_enabled(mode):
            torch.manual_seed(1)
            ours = model(x)
            torch.manual_seed(1)
            assert_same(ours, base(x))
    ours.sum().backward()
    assert all(p.grad.any() for n, p in model.named_parameters() if "self_attn" in n and p.requires_grad)
    with (
        pytest.raises(ValueError, match="the model reads the bias of this module"),
        rows.using(rows.Rows(("default",) * 3)),
    ):
        model.eval()(x)


class Meeting(nn.LayerNorm):
    """A layer norm whose calls wait at `meet`, if it is set, before they read the bias."""

    meet = None

    def forward(self, x):
        if self.meet is not None:
            self.meet.wait()
        return super().forward(x)


def test_concurrent_calls_use_their_own_biases():
    """Two concurrent calls of one module use different biases; the bias of the module is never changed."""
    norm = Meeting(4)
    own = norm.bias.detach().clone()
    model = adapted(nn.Sequential(norm)).eval()
    x = torch.randn(3, 4)
    expected = {"default": model(x), "__base__": F.layer_norm(x, (4,), norm.weight, own)}
    norm.meet = threading.Barrier(2, timeout=60)
    found = {}

    def run(name):
        with torch.no_grad(), rows.using(rows.Rows((name,) * 3, features=True)):
            found[name] = model(x)

    threads = [threading.Thread(target=run, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(norm.bias, own)


def test_compiled_without_graph_breaks():
    model = adapted(build("bert")).eval().bert.encoder.layer[0].output.LayerNorm
    x = torch.randn(3, 32)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(x)
    assert explained.graph_break_count == 0
    assert torch.equal(torch.compile(model, backend="eager")(x), model(x))
