"""Adapters over a quantised layer compute the same as over the decoded weight, in every method; merging."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from pypeft_fast import recording
from pypeft_fast.frozen.formats import FORMATS

EVERY_FORMAT = pytest.mark.parametrize("format", [name for name, its in FORMATS.items() if its.quantize is not None])
K, N = 128, 96


def _functions(p):
    """{name: (function(x, weight, *parameters), the shapes of the parameters)}"""
    options = dict(scaling=0.5, dropout_p=p)
    return {
        "lora": (lambda x, w, A, B: pf.lora_linear(x, w, A, B, **options), [(4, K), (N, 4)]),
        "dora": (lambda x, w, A, B, m: pf.dora_linear(x, w, A, B, m, **options), [(4, K), (N, 4), (N,)]),
        "ia3": (lambda x, w, factors: pf.ia3_linear(x, w, factors), [(N,)]),
        "ia3, feedforward": (lambda x, w, factors: pf.ia3_linear(x, w, factors, feedforward=True), [(K,)]),
        "gated": (lambda x, w, A, B: pf.lora_gated_linear(x, x + 1, w, A, B, **options), [(4, K), (N, 4)]),
    }


def _step(function, weight, x, parameters):
    x, *parameters = (t.detach().clone().requires_grad_() for t in (x, *parameters))
    torch.manual_seed(1)
    y = function(x, weight, *parameters)
    return y, *torch.autograd.grad(y.square().sum(), (x, *parameters))


@EVERY_FORMAT
@pytest.mark.parametrize("name", list(_functions(0)))
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_values_and_gradients_are_those_over_the_decoded_weight(format, name, p):
    function, shapes = _functions(p)[name]
    frozen = pf.quantize(torch.randn(N, K), format)
    x, parameters = torch.randn(3, 20, K), [torch.randn(shape) for shape in shapes]
    with recording() as ran:
        got = _step(function, frozen, x, parameters)
    decoded_before = {kernel for _, kernel in ran} != {"cpu"}
    assert not (FORMATS[format].native and decoded_before), "the weight was decoded beforehand"
    for a, b in zip(got, _step(function, frozen.dequantize(), x, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4 * b.abs().max().item())


@pytest.mark.parametrize("name", list(_functions(0)))
def test_values_without_gradients_are_those_over_the_decoded_weight(name):
    function, shapes = _functions(0.0)[name]
    frozen = pf.quantize(torch.randn(N, K))
    arguments = [torch.randn(shape) for shape in shapes]
    x = torch.randn(5, K)
    with torch.no_grad():
        torch.testing.assert_close(
            function(x, frozen, *arguments), function(x, frozen.dequantize(), *arguments), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("name", list(_functions(0)))
def test_compiled_with_dropout_and_checkpointed(name):
    function, shapes = _functions(0.3)[name]
    frozen, x, parameters = pf.quantize(torch.randn(N, K)), torch.randn(6, K), [torch.randn(shape) for shape in shapes]
    expected = _step(function, frozen, x, parameters)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for got in (
        _step(compiled, frozen, x, parameters),
        _step(lambda *a: checkpoint(function, *a, use_reentrant=False), frozen, x, parameters),
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "change,words",
    [
        (dict(x=torch.randn(5, K + 1)), rf"x has shape \(5, {K + 1}\), expected \(.., {K}\)"),
        (dict(x=torch.randn(5, K).bfloat16()), "weight is torch.float32 but x is torch.bfloat16"),
        (dict(lora_B=torch.randn(N + 1, 4)), rf"lora_B has shape \({N + 1}, 4\), expected \({N}, 4\)"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_unsupported_arguments_are_named(change, words, grad):
    arguments = dict(x=torch.randn(5, K), weight=pf.quantize(torch.randn(N, K)), lora_A=torch.randn(4, K))
    arguments = arguments | dict(lora_B=torch.randn(N, 4)) | change
    arguments["lora_A"].requires_grad_(grad)
    with pytest.raises((ValueError, TypeError), match=words):
        pf.lora_linear(**arguments)


def _linear_4bit(weight, **options):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    linear = bitsandbytes.nn.Linear4bit(K, N, quant_type="nf4", **options)
    linear.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    return linear.to("cpu")


def test_layers_over_bitsandbytes():
    linear = _linear_4bit(torch.randn(N, K), compute_dtype=torch.bfloat16)
    before, x = linear.weight.clone(), torch.randn(7, K)
    dense = nn.Linear(K, N)
    dense.weight.data, dense.bias.data = pf.frozen_of(linear).dequantize(), linear.bias.detach().bfloat16()
    for make in (
        lambda base: pf.nn.LoRALinear.from_linear(base, r=4),
        lambda base: pf.nn.LoRALinear.from_linear(base, r=4, use_dora=True),
        lambda base: pf.nn.IA3Linear.from_linear(base),
    ):
        layer, plain = make(linear), make(copy.deepcopy(dense))
        trained = {n: p for n, p in layer.named_parameters() if p.requires_grad}
        own = dict(plain.named_parameters())
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.uniform_(0.5, 1.0)
                own[name].copy_(parameter)
        y = layer(x)
        assert y.dtype == x.dtype and layer.base_layer is linear
        expected = plain(x.bfloat16()).float()
        assert (y - expected).norm() < 1e-2 * expected.norm()
        y.sum().backward()
        assert all(p.grad is not None for p in trained.values()) and linear.weight.grad is None
        assert torch.equal(linear.weight, before)


def test_merging_reports_the_rounding_error():
    layer = pf.nn.LoRALinear.from_linear(_linear_4bit(torch.randn(N, K)), r=4)
    x, codes = torch.randn(7, K), layer.base_layer.weight.clone()
    unmerged = layer(x)
    with torch.no_grad():
        layer.lora_B.fill_(1e-4)
    with pytest.raises(RuntimeError, match=r"merge: \d+% of the update would survive.* less than 90%"):
        layer.merge()
    assert not layer.merged
    with torch.no_grad():
        layer.lora_B.normal_().mul_(3.0)
    expected = layer(x)
    share = layer.merge()
    assert share > 0.9 and layer.merged
    merged = layer(x)
    assert (merged - expected).norm() < 0.2 * (expected - unmerged).norm()
    layer.unmerge()
    assert torch.equal(layer(x), expected) and torch.equal(layer.base_layer.weight, codes)
    with torch.no_grad():
        layer.lora_B.fill_(1e-4)
    assert layer.merge(force=True) < 0.9 and layer.merged


@pytest.mark.parametrize("bias", [True, False])
def test_repr_tells_the_bias_of_the_layer_below(bias):
    layer = pf.nn.LoRALinear.from_linear(_linear_4bit(torch.randn(N, K), bias=bias), r=4)
    assert f"in_features={K}, out_features={N}, bias={bias}, r=4" in layer.extra_repr()


def test_a_bottleneck_or_bitfit_over_a_quantised_layer_is_refused():
    with pytest.raises(TypeError, match="linear is a Linear4bit"):
        pf.nn.BitFitLinear.from_linear(_linear_4bit(torch.randn(N, K)))


def test_an_input_that_is_no_tensor_is_named():
    for made in (pf.nn.LoRALinear, pf.nn.IA3Linear, pf.nn.MultiLoRALinear):
        layer = made.from_linear(_linear_4bit(torch.randn(N, K)))
        with pytest.raises(TypeError, match=f"{made.__name__}: x is a list"):
            layer([1.0], *([[None]] if made is pf.nn.MultiLoRALinear else []))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_layer_cast_to_half_precision_computes_as_the_quantised_layer_below(dtype):
    """As Lightning's "bf16-true" casts a model; bitsandbytes still computes in the dtype that was quantised."""
    for made in (
        lambda linear: pf.nn.LoRALinear.from_linear(linear, r=4),
        lambda linear: pf.nn.LoRALinear.from_linear(linear, r=4, use_dora=True),
        lambda linear: pf.nn.IA3Linear.from_linear(linear, init_ia3_weights=False),
        lambda linear: pf.nn.MultiLoRALinear.from_linear(linear, max_adapters=2, max_rank=4),
    ):
        layer, rows = made(_linear_4bit(torch.randn(N, K))), ()
        if isinstance(layer, pf.nn.MultiLoRALinear):
            layer.add("a", torch.randn(2, K), torch.randn(N, 2))
            rows = ([None, "a", "a"],)
        elif isinstance(layer, pf.nn.LoRALinear):
            nn.init.normal_(layer.lora_B)
        x = torch.randn(3, K).to(dtype)
        wide, y = layer(x.float(), *rows), layer.to(dtype)(x, *rows)
        assert y.dtype == dtype and y.requires_grad
        torch.testing.assert_close(y.float(), wide, rtol=0.02, atol=0.02 * wide.abs().max().item())
