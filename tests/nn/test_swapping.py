"""Tools that replace every nn.Linear by another layer: the adapter is kept, or the replacement raises an error.

The functions here copy what the tools do.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pypeft_fast as pf
from pypeft_fast.nn import IA3Linear, LoRALinear
from tests.interpreter import python

K = 8


class Low(nn.Linear):
    """The layer that such a tool creates."""

    def forward(self, x):
        return F.linear(x, self.weight.to(torch.bfloat16).float(), self.bias)


def sharing(old):
    """The new layer shares the parameters, as torchao's Float8Linear and FakeQuantizedLinear do."""
    with torch.device("meta"):
        new = Low(old.in_features, old.out_features, bias=False)
    new.weight, new.bias = old.weight, old.bias
    return new


def viewing(old):
    new = Low(old.in_features, old.out_features, bias=False)
    new.weight = nn.Parameter(old.weight.data, requires_grad=False)
    return new


def copying(old):
    """The new layer copies the weight, as in accelerate's converter for Transformer Engine."""
    new = Low(old.in_features, old.out_features, bias=old.bias is not None)
    with torch.no_grad():
        new.weight.copy_(old.weight)
    return new


def copying_to_half(old):
    return copying(old).to(torch.bfloat16)


def within(old):
    """A module with the new layer inside."""
    return nn.Sequential(nn.Identity(), copying(old))


def swap(module, make, assign=setattr, take=lambda m: True):
    """Replaces layers as torchao's swap_linear_layers does."""
    for name, child in list(module.named_children()):
        swap(child, make, assign, take)
        if isinstance(child, nn.Linear) and take(child):
            assign(module, name, make(child))
    return module


LAYERS = {
    "lora": lambda: pf.nn.LoRALinear(K, K, r=2),
    "dora": lambda: pf.nn.LoRALinear(K, K, r=2, use_dora=True),
    "ia3": lambda: pf.nn.IA3Linear(K, K, init_ia3_weights=False),
}
EVERY = pytest.mark.parametrize("name", list(LAYERS))
MAKE = pytest.mark.parametrize("make", [sharing, viewing, copying, copying_to_half, within])
ERROR = r"Sequential\.1: a \w+ takes the weight of the (LoRA|IA3)Linear in this place and drops its adapter \(in_fea"


def model(name):
    layer = LAYERS[name]()
    for parameter in layer.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return nn.Sequential(nn.Linear(K, K), layer, nn.ReLU())


@EVERY
@MAKE
@pytest.mark.parametrize("assign", [setattr, nn.Module.add_module, lambda m, name, new: m.set_submodule(name, new)])
def test_a_swap_that_drops_the_adapter_is_an_error(name, make, assign):
    net, x = model(name), torch.randn(3, K)
    layer, before = net[1], net(x)
    with pytest.raises(RuntimeError, match=ERROR):
        swap(net, make, assign, take=lambda m: m is layer)
    assert net[1] is layer and torch.equal(net(x), before)


@EVERY
def test_containers_are_watched_too(name):
    for container, key in ((nn.Sequential(LAYERS[name]()), 0), (nn.ModuleList([LAYERS[name]()]), 0)):
        with pytest.raises(RuntimeError, match="drops its adapter"):
            container[key] = sharing(container[key])
    held = nn.ModuleDict({"a": LAYERS[name]()})
    with pytest.raises(RuntimeError, match=r"ModuleDict\.a"):
        held["a"] = sharing(held["a"])


@EVERY
@MAKE
def test_a_merged_layer_may_be_swapped(name, make):
    net = model(name)
    net[1].merge()
    merged = net[1].weight
    swap(net, make, take=lambda m: m is net[1])
    assert not hasattr(net[1], "merged") and any(torch.equal(p, merged.to(p.dtype)) for p in net[1].parameters())


@EVERY
def test_layers_that_a_filter_excludes_stay(name):
    net = swap(model(name), sharing, take=lambda m: type(m) is nn.Linear)
    assert type(net[0]) is Low and type(net[1]) in (pf.nn.LoRALinear, pf.nn.IA3Linear)


class Holds(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def rebuilt(old):
    if isinstance(old, pf.nn.IA3Linear):
        new = pf.nn.IA3Linear.from_linear(plain(old))
    else:
        new = pf.nn.LoRALinear.from_linear(plain(old), r=4)
    return new


def plain(old):
    new = nn.Linear(K, K)
    new.weight, new.bias = old.weight, old.bias
    return new


def knowing(old):
    """A tool that moves the adapter to the new layer."""
    new = sharing(old)
    for i, parameter in enumerate(p for p in old.parameters() if p.requires_grad):
        new.register_parameter(f"adapter_{i}", parameter)
    return new


@EVERY
@pytest.mark.parametrize(
    "make",
    [Holds, nn.Sequential, copy.deepcopy, torch.compile, rebuilt, knowing, lambda old: nn.Linear(K, K)]
    + [lambda old: nn.Identity(), lambda old: old, lambda old: None],
)
def test_a_module_with_the_adapter_or_with_another_weight_may_replace_a_layer(name, make):
    net = model(name)
    net[1] = new = make(net[1])
    assert net[1] is new


@EVERY
def test_an_adapter_is_dropped_on_purpose(name):
    parent = Holds(LAYERS[name]())
    weight, new = parent.inner.weight, plain(parent.inner)
    del parent.inner
    parent.inner = new
    assert parent.inner.weight is weight


def test_a_swap_of_a_bitfit_layer_is_allowed():
    """Only the bias trains, and the new layer keeps the bias."""
    net = swap(nn.Sequential(pf.nn.BitFitLinear(K, K)), sharing)
    assert type(net[0]) is Low and net[0].bias.requires_grad


def test_layers_on_meta_are_known_by_their_parameter():
    net = nn.Sequential(pf.nn.LoRALinear(K, K, device="meta"))
    with pytest.raises(RuntimeError, match="drops its adapter"):
        swap(net, sharing)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor|Please use quant_min:UserWarning:torch.ao")
def test_pytorch_s_own_quantisation_leaves_the_layers():
    net, x = model("lora").eval(), torch.randn(3, K)
    out = net[1](x)
    dynamic = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    assert type(dynamic[1]) is pf.nn.LoRALinear and torch.equal(dynamic[1](x), out)
    net.train().qconfig = torch.ao.quantization.default_qat_qconfig
    prepared = torch.ao.quantization.prepare_qat(net)
    assert type(prepared[1]) is pf.nn.LoRALinear and torch.equal(prepared[1](x), out)
    assert type(prepared[0]) is not nn.Linear


def test_a_layer_from_a_file_is_watched_in_a_new_process(tmp_path):
    (tmp_path / "net").write_bytes(pickle.dumps(nn.Sequential(pf.nn.LoRALinear(K, K))))
    code = (
        "import pickle, sys, torch\n"
        "net = pickle.load(open(sys.argv[1], 'rb'))\n"
        "new = torch.nn.Linear(8, 8); new.weight = net[0].weight\n"
        "try: net[0] = new\n"
        "except RuntimeError as error: print(error)"
    )
    result = python("-c", code, tmp_path / "net")
    assert "drops its adapter" in result.stdout, result.stderr


@pytest.mark.parametrize(
    "made",
    [
        lambda linear: LoRALinear.from_linear(linear, r=4),
        lambda linear: IA3Linear.from_linear(linear, feedforward=True),
    ],
)
@pytest.mark.parametrize("name", ["linear1", "linear2"])
def test_the_fast_path_of_an_encoder_layer_does_not_skip_the_adapter(made, name):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    setattr(layer, name, made(getattr(layer, name)))
    for parameter in getattr(layer, name).parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    expected = layer.eval()(x := torch.randn(2, 5, 16))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected)


def test_an_encoder_layer_without_our_layers_has_its_fast_path_again():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    before, plain = layer.activation_relu_or_gelu, (layer.linear1, layer.linear2)
    layer.linear1, layer.linear2 = (LoRALinear.from_linear(each, r=4) for each in plain)
    with pytest.raises(RuntimeError, match="drops its adapter"):
        layer.linear1 = plain[0]
    layer.linear1.merge(), layer.linear2.merge()
    layer.linear1 = plain[0]
    assert layer.activation_relu_or_gelu == 0  # linear2 is ours
    layer.linear2 = Holds(plain[1])
    assert layer.activation_relu_or_gelu == 0  # another library's layer, which the fast path might skip too
    layer.linear2 = plain[1]
    assert layer.activation_relu_or_gelu == before == 1
    layer.linear2 = IA3Linear.from_linear(plain[1])
    assert copy.deepcopy(layer).activation_relu_or_gelu == 0
    layer.activation = nn.functional.silu  # which the fast path does not have
    layer.linear2.merge()
    layer.linear2 = plain[1]
    assert layer.activation_relu_or_gelu == 0


def test_nested_tensors_of_an_encoder_are_an_error_with_the_remedy():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    encoder.layers[1].linear1 = LoRALinear.from_linear(encoder.layers[1].linear1, r=4)
    mask = torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    with torch.no_grad(), pytest.raises(TypeError, match="nested tensor; .*enable_nested_tensor=False"):
        encoder(torch.randn(2, 5, 16), src_key_padding_mask=mask)


def test_a_layer_that_attention_would_never_call_is_an_error():
    attention = nn.MultiheadAttention(16, 2)
    with pytest.raises(RuntimeError, match="MultiheadAttention.out_proj: .* a LoRALinear here would do nothing"):
        attention.out_proj = LoRALinear(16, 16, r=4)


_A, _B, _W = torch.randn(2, 8), torch.randn(6, 2), torch.randn(6, 8)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: pf.lora_linear(x, _W, _A, _B),
        lambda x: pf.dora_linear(x, _W, _A, _B, torch.ones(6)),
        lambda x: pf.ia3_linear(x, _W, torch.ones(6)),
        lambda x: pf.multi_lora_linear(x, _W, [_A], [_B], torch.zeros(2, dtype=torch.int64), scalings=1.0),
    ],
)
def test_a_nested_tensor_is_refused_by_every_function(function):
    with pytest.raises(TypeError, match="_linear: x is a nested tensor"):
        function(torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)]))
