"""What a layer keeps of the adapters of a batch's rows: read once, and anew after any change."""

import collections
import concurrent.futures
import gc
import itertools
import sys
import weakref
from collections import OrderedDict

import peft
import pytest
import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.nn.utils import parametrize

import pypeft_fast as pf
from pypeft_fast.model.joints.named_rows import named_rows
from pypeft_fast.model.layers import peft_lora
from pypeft_fast.ops.adapter_table import AdapterTable

NAMES = ["a", "b", "__base__", "c", "b"]


@pytest.fixture(autouse=True, params=[True, False], ids=["graph", "no graph"])
def grad(request):
    """Without a graph, an AdapterTable has the adapters."""
    with torch.set_grad_enabled(request.param):
        yield request.param


def model_of(**options):
    """One layer with adapters a, b and c of other ranks and scalings."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9))
    for r, name in enumerate("abc", 2):
        config = peft.LoraConfig(r=r, lora_alpha=r * r, target_modules=["0"], init_lora_weights=False, **options)
        model = model if isinstance(model, peft.PeftModel) else peft.get_peft_model(model, config, name)
        if name != "a":
            model.add_adapter(name, config)
    return model.eval(), model.base_model.model[0]


def called(model, x, times=3):
    """The last result: without a graph, the second call of the same names hands the adapters to the library."""
    return [model(x, adapter_names=NAMES) for _ in range(times)][-1]


class Doubled(nn.Module):
    def forward(self, value):
        return value * 2


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


def patched(module):
    inner = module.forward
    module.forward = lambda x: 3 * inner(x)


def rehooked(module):
    module._forward_hooks = OrderedDict()
    module.register_forward_hook(lambda module, args, output: 3 * output)


class Other(nn.Parameter):
    pass


def replaced(holder):
    holder["b"] = nn.Linear(holder["b"].in_features, holder["b"].out_features, bias=False)


def doubled(layer):
    layer.lora_A["b"].weight.data, layer.lora_B["b"].weight.data = (
        layer.lora_A["b"].weight.data.double(), layer.lora_B["b"].weight.data.double(),
    )  # fmt: skip


def shortened(layer):
    for holder, part in (("lora_A", slice(0, 1)), ("lora_B", (slice(None), slice(0, 1)))):
        weight = getattr(layer, holder)["b"].weight
        weight.data = weight.data[part].clone()


# What is done to a layer after a call whose rows have several adapters -> whether the ops then still run.
CHANGES = {
    "nothing": (lambda layer: None, True),
    "a hook": (lambda layer: layer.lora_A["b"].register_forward_pre_hook(lambda m, args: (args[0] * 2,)), False),
    "a forward": (lambda layer: patched(layer.lora_B["b"]), False),
    "a class": (lambda layer: setattr(layer.lora_A["b"], "__class__", Scaled), False),
    "a parametrization": (
        lambda layer: parametrize.register_parametrization(layer.lora_A["b"], "weight", Doubled()), False,
    ),
    "a module": (lambda layer: replaced(layer.lora_A), True),
    "a parameter": (lambda layer: setattr(layer.lora_B["b"], "weight", nn.Parameter(torch.ones(9, 3))), True),
    "values": (lambda layer: layer.lora_B["b"].weight.data.mul_(3), True),
    "data": (lambda layer: setattr(layer.lora_B["b"].weight, "data", torch.ones(9, 3)), True),
    "the rank": (shortened, True),
    "a dtype": (doubled, False),
    "a bias": (lambda layer: setattr(layer.lora_B["b"], "bias", nn.Parameter(torch.ones(9))), False),
    "the scaling": (lambda layer: layer.set_scale("b", 5.0), True),
    "a tensor for the scaling": (lambda layer: layer.scaling.update(b=torch.tensor(5.0)), True),
    "the dropout's module": (lambda layer: layer.lora_dropout.update({"b": Doubled()}), False),
    "the base's weight": (lambda layer: layer.base_layer.weight.data.mul_(2), True),
    "the type of a parameter": (lambda layer: setattr(layer.lora_B["b"].weight, "__class__", Other), False),
    "new hooks in place of the old": (lambda layer: rehooked(layer.lora_B["b"]), False),
    "a hook on the base": (lambda layer: layer.base_layer.register_forward_hook(lambda *args: 2 * args[2]), False),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_a_call_is_seen_by_the_next(name):
    change, stays = CHANGES[name]
    (model, layer), x = model_of(), torch.randn(5, 12)
    report = pf.fuse(model, strict=True)
    before = called(model, x)
    change(layer)
    y = model(x, adapter_names=NAMES)
    assert report.calls()["fused"] == 3 + stays and sum(report.calls().values()) == 4, report.calls()
    pf.unfuse(model)
    torch.testing.assert_close(y, model(x, adapter_names=NAMES))
    assert torch.equal(y, before) == (name == "nothing")


def test_modes_and_rates_of_dropout_are_seen():
    (model, layer), x = model_of(lora_dropout=0.5), torch.randn(5, 12)
    report, exact = pf.fuse(model, strict=True), called(model, x)
    layer.lora_dropout["b"].train()
    dropped = layer(x, adapter_names=NAMES)
    assert [torch.equal(*rows) for rows in zip(dropped, exact, strict=True)] == [True, False, True, True, False]
    layer.lora_dropout["b"].p = 0.0
    assert torch.equal(layer(x, adapter_names=NAMES), exact)
    layer.lora_dropout["b"].p = 1.0
    layer(x, adapter_names=NAMES)
    assert report.calls() == {"fused": 5, "lora_dropout is in place or drops all: p=1.0": 1}


def test_casting_that_is_switched_off_is_seen():
    (model, layer), x = model_of(), torch.randn(5, 12, dtype=torch.bfloat16)
    layer.base_layer.bfloat16()
    report = pf.fuse(model, strict=True)
    called(model, x)
    with disable_input_dtype_casting(model):
        model(x, adapter_names=NAMES)  # in a mixed batch PEFT casts nonetheless
    assert report.calls() == {"fused": 3, "casting of the input is switched off": 1}


def test_the_model_can_be_moved_and_loaded_by_swaps_of_its_parameters():
    """PyTorch refuses to swap a tensor that anything beside its Python object owns."""
    (model, _), x = model_of(), torch.randn(5, 12)
    report = pf.fuse(model, strict=True)
    state = {name: 2 * value for name, value in model.state_dict().items()}
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for change in (lambda: model.load_state_dict(state), model.bfloat16):
            called(model, x)
            change()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    y = model(x.bfloat16(), adapter_names=NAMES)
    pf.unfuse(model)
    torch.testing.assert_close(y, model(x.bfloat16(), adapter_names=NAMES))
    assert y.dtype == torch.bfloat16 and report.calls() == {"fused": 7}


def test_moving_and_casting_the_whole_model_is_seen():
    (model, _), x = model_of(), torch.randn(5, 12)
    report = pf.fuse(model, strict=True)
    called(model, x)
    model.bfloat16()
    y = model(x.bfloat16(), adapter_names=NAMES)
    assert y.dtype == torch.bfloat16 and report.calls() == {"fused": 4}


def test_adapters_are_read_once_while_nothing_changes(monkeypatch):
    read, inner = [], peft_lora.RowAdapters
    monkeypatch.setattr(peft_lora, "RowAdapters", lambda *args: read.append(args[1]) or inner(*args))
    (model, layer), x = model_of(), torch.randn(6, 12)
    report, batches = pf.fuse(model, strict=True), (NAMES, NAMES[::-1], NAMES + ["a"], ["b", "b", "__base__"])
    for _ in range(2):
        for rows in batches:
            model(x[: len(rows)], adapter_names=rows)
    kept = [("a", "b", "c"), ("b", "c", "a"), ("b",)]
    assert read == kept and report.calls() == {"fused": 8}
    layer.lora_B["b"].weight = nn.Parameter(torch.ones(9, 3))  # which all kept batches must see
    y = [model(x[: len(rows)], adapter_names=rows) for rows in batches]
    assert read == 2 * kept
    pf.unfuse(model)
    torch.testing.assert_close(y, [model(x[: len(rows)], adapter_names=rows) for rows in batches])


def test_without_a_graph_the_library_has_the_adapters(grad, monkeypatch):
    (model, _), x, ran = model_of(), torch.randn(5, 12), []
    inner = AdapterTable.linear
    monkeypatch.setattr(AdapterTable, "linear", lambda *args: ran.append(inner(*args)) or ran[-1])
    pf.fuse(model, strict=True)
    y = called(model, x)
    assert [found is None for found in ran] == ([] if grad else [True, False, False])
    assert grad or torch.equal(y, ran[-1])
    with torch.enable_grad():
        assert torch.equal(called(model, x), y) and len(ran) == (0 if grad else 3)


def test_the_adapters_of_the_latest_batches_are_kept():
    (model, layer), x = model_of(), torch.randn(3, 12)
    pf.fuse(model, strict=True)
    orders = list(itertools.permutations("abc"))
    for rows in orders:
        model(x, adapter_names=list(rows))
    assert list(layer._call_cache.rows) == orders[-peft_lora.KEPT :]


def test_mappings_that_are_no_plain_dictionaries_are_read_at_each_call():
    (model, layer), x, factor = model_of(), torch.randn(5, 12), [1.0]

    class Warm(dict):
        def __getitem__(self, name):
            return factor[0] * super().__getitem__(name)

    pf.fuse(model, strict=True)
    scaling = layer.scaling
    for mapping in (Warm(scaling), collections.ChainMap({}, scaling)):
        layer.scaling = mapping
        for factor[0] in (1.0, 1.0, 0.5):
            y, alone = model(x, adapter_names=NAMES), layer(x[:1], adapter_names=["a"])
            torch.testing.assert_close(y[:1], alone)
        layer.scaling = scaling


def test_another_dictionary_of_a_holder_is_seen():
    (model, layer), x = model_of(), torch.randn(5, 12)
    pf.fuse(model, strict=True)
    before = called(model, x)
    holder = layer.lora_B
    other = {name: nn.Linear(module.in_features, 9, bias=False) for name, module in holder._modules.items()}
    holder.__dict__ = {**holder.__dict__, "_modules": other}
    y = model(x, adapter_names=NAMES)
    assert not torch.equal(y, before)
    pf.unfuse(model)
    torch.testing.assert_close(y, model(x, adapter_names=NAMES))


def test_eager_calls_between_compiled_ones_compile_nothing_again():
    (model, layer), x = model_of(), torch.randn(5, 12)
    pf.fuse(model, strict=True)
    compiled = torch.compile(lambda x: layer(x, adapter_names=NAMES), backend="eager")
    wanted = compiled(x)
    for _ in range(3):
        layer(x, adapter_names=NAMES)
        with torch.compiler.set_stance("fail_on_recompile"):
            torch.testing.assert_close(compiled(x), wanted)
    assert list(layer._call_cache.rows) == [("a", "b", "c")]


def test_threads_may_call_one_layer():
    (model, layer), x = model_of(), torch.randn(2, 12)
    pf.fuse(model, strict=True)
    pairs = list(itertools.permutations("abc", 2)) + [("a", "__base__"), ("b", "__base__"), ("c", "__base__")]
    wanted = {pair: layer(x, adapter_names=list(pair)) for pair in pairs}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as threads, torch.no_grad():
            calls = pairs * 200
            found = threads.map(lambda pair: layer(x, adapter_names=list(pair)), calls)
            assert all(torch.equal(y, wanted[pair]) for pair, y in zip(calls, found, strict=True))
    finally:
        sys.setswitchinterval(interval)
    assert len(layer._call_cache.rows) <= peft_lora.KEPT


def test_what_a_layer_keeps_leads_to_no_cycle():
    """A cycle would keep a model's memory until Python's collector runs."""
    (model, layer), x = model_of(), torch.randn(5, 12)
    pf.fuse(model, strict=True)
    called(model, x)
    assert layer._call_cache.rows
    gone = weakref.ref(layer)
    gc.collect()
    gc.disable()
    try:
        del model, layer
        assert gone() is None
    finally:
        gc.enable()


def test_a_parameter_that_leads_to_its_layer_keeps_no_model():
    (model, layer), x = model_of(), torch.randn(5, 12)
    pf.fuse(model, strict=True)
    weight = layer.lora_B["b"].weight.requires_grad_()
    weight.register_hook((lambda layer: lambda gradient: gradient * layer.scaling["b"])(layer))
    weight.owner = layer
    called(model, x)
    gone = weakref.ref(layer)
    del model, layer, weight
    gc.collect()
    assert gone() is None


def test_weights_that_are_no_parameters_are_read_at_each_call():
    """As FSDP leaves them: plain tensors among the attributes."""
    (model, layer), x = model_of(), torch.randn(5, 12)
    pf.fuse(model, strict=True)
    module = layer.lora_B["b"]
    weight = module._parameters.pop("weight").data
    object.__setattr__(module, "weight", weight)
    first = model(x, adapter_names=NAMES)
    object.__setattr__(module, "weight", 2 * weight)
    second = model(x, adapter_names=NAMES)
    base = layer.base_layer(x)
    torch.testing.assert_close((second - base)[[1, 4]], 2 * (first - base)[[1, 4]])
    assert torch.equal(second[[0, 2, 3]], first[[0, 2, 3]])


def test_rows_in_inference_mode_leave_nothing_that_training_cannot_use():
    (model, _), x = model_of(), torch.randn(5, 12)
    model.set_requires_grad(["a", "b", "c"])
    pf.fuse(model)
    with torch.inference_mode():
        y = called(model, x)
    with torch.enable_grad():
        again = model(x, adapter_names=NAMES)
        again.sum().backward()
    assert torch.equal(y, again)
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_" in n)


def test_a_forward_that_is_patched_restored_and_patched_again_is_seen():
    (model, layer), x = model_of(), torch.randn(5, 12)
    report, module = pf.fuse(model, strict=True), layer.lora_B["b"]
    inner, found = module.forward, []
    for forward in (inner, lambda x: 3 * inner(x), inner, lambda x: 3 * inner(x)):
        module.forward = forward
        found.append(model(x, adapter_names=NAMES))
    assert torch.equal(found[1], found[3]) and torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    assert report.calls()["lora_B has hooks or a forward of its own"] == 2


def test_a_scaling_that_begins_to_train_at_its_value_gets_its_gradient():
    (model, layer), x = model_of(), torch.randn(5, 12)
    pf.fuse(model, strict=True)
    model(x, adapter_names=NAMES)
    scaling = layer.scaling["b"] = nn.Parameter(torch.tensor(float(layer.scaling["b"])))
    with torch.enable_grad():
        model(x, adapter_names=NAMES).sum().backward()
    found, scaling.grad = scaling.grad, None
    pf.unfuse(model)
    with torch.enable_grad():
        model(x, adapter_names=NAMES).sum().backward()
    torch.testing.assert_close(found, scaling.grad)


def test_indices_of_one_length_are_kept_and_no_parameters_of_a_deleted_adapter():
    (model, layer), rows = model_of(), named_rows(NAMES)
    pf.fuse(model, strict=True)
    for length in range(1, 40):
        model(torch.zeros(5, length, 12), adapter_names=NAMES)
    assert sum(index.numel() for index in rows._indices.values()) <= 5 * 39
    called(model, torch.zeros(5, 12))
    gone = weakref.ref(layer.lora_B["b"].weight)
    model.delete_adapter("b")
    gc.collect()
    assert gone() is None


def test_a_name_that_is_none_is_refused():
    model = pf.get_peft_model(nn.Sequential(nn.Linear(12, 9)), pf.LoraConfig(target_modules=["0"]), "a").eval()
    with pytest.raises(TypeError, match="adapter_names holds None, which is no name; give '__base__' for no adapter"):
        model(torch.randn(2, 12), adapter_names=["a", None])
