"""Fused models with offloading, sharding, modules_to_save, and adapters that are added later."""

import accelerate
import peft
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DeviceMesh, Replicate, distribute_tensor

import pypeft_fast as pf
from tests.interpreter import python
from tests.model import zoo

LEFT = "base_model.model.model.layers.0.self_attn.q_proj"


HOOKED = "fused around the base: the base layer has hooks or a forward of its own"


def test_the_update_is_fused_around_accelerate_s_offloading():
    """The hooks of accelerate replace forward, and load the weight, otherwise on meta, for the length of a call."""
    model = zoo.adapted(peft, "llama")
    expected = zoo.logits(model)
    base = model.get_submodule(LEFT).base_layer
    accelerate.cpu_offload(base, execution_device=torch.device("cpu"))
    assert base.weight.is_meta
    report = pf.fuse(model)
    assert not report.left and len(report.fused) == 4
    zoo.assert_same(zoo.logits(model), expected)
    assert report.calls() == {"fused": 3, HOOKED: 1}


def test_offloading_after_fusing_runs_around_the_base():
    model = zoo.adapted(peft, "llama")
    expected, report = zoo.logits(model), pf.fuse(model, strict=True)
    accelerate.cpu_offload(model.get_submodule(LEFT).base_layer, execution_device=torch.device("cpu"))
    zoo.assert_same(zoo.logits(model), expected)
    assert report.calls() == {"fused": 3, HOOKED: 1}
    accelerate.hooks.remove_hook_from_module(model.get_submodule(LEFT).base_layer)
    zoo.assert_same(zoo.logits(model), expected)
    assert report.calls()["fused"] == 7


def test_a_layer_with_a_forward_of_its_own_is_not_fused():
    model = zoo.adapted(peft, "llama")
    layer = next(m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear))
    accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.ModelHook())
    assert list(pf.fuse(model).left.values()) == ["the layer has a forward of its own"]
    with pytest.raises(ValueError, match="a forward of its own"):
        pf.fuse(model, strict=True)


@pytest.mark.parametrize("end", [pf.unfuse, lambda model: model.merge_and_unload()])
def test_a_wrapper_outlives_the_fusion(end):
    model = zoo.adapted(peft, "llama")
    pf.fuse(model)
    for module in list(model.modules()):
        if type(module).__module__.startswith("pypeft_fast") or "Fused" in type(module).__name__:
            accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    expected = zoo.logits(model)
    ended = end(model)
    torch.testing.assert_close(zoo.logits(ended if isinstance(ended, nn.Module) else model), expected)


def test_saved_modules_train_and_are_saved_beside_fused_layers(tmp_path):
    results = []
    for fused in (False, True):
        model = zoo.adapted(peft, "llama", modules_to_save=["lm_head"])
        if fused:
            report = pf.fuse(model, strict=True)
        y = zoo.logits(model)
        y.square().mean().backward()
        model.save_pretrained(tmp_path / str(fused))
        results.append([y, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert report.calls() == {"fused": 4} and len(results[0]) == 1 + 8 + 1
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    again = pf.PeftModel.from_pretrained(zoo.build("llama"), tmp_path / "True")
    zoo.assert_same(zoo.logits(again), results[0][0])


def test_adapters_that_come_later_run_fused():
    model, outputs = zoo.adapted(peft, "llama"), []
    report = pf.fuse(model, strict=True)
    for options in (dict(r=2), dict(r=3, use_dora=True), dict(r=5, use_rslora=True)):
        name = f"later{options['r']}"
        config = peft.LoraConfig(target_modules=zoo.TARGETS["llama"], init_lora_weights=False, **options)
        model.add_adapter(name, config)
        model.set_adapter(name)
        outputs.append(zoo.logits(model))
    assert report.calls() == {"fused": 12}
    pf.unfuse(model)
    for name, ours in zip(("later2", "later3", "later5"), outputs, strict=True):
        model.set_adapter(name)
        zoo.assert_as_exact(ours, model)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-2)


def test_ia3_over_an_unusual_base_runs_in_peft():
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=[])
    model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 4).to(torch.float8_e4m3fn)), config)
    report = pf.fuse(model)
    assert list(report.left.values()) == ["the base weight is torch.float8_e4m3fn"]
    with pytest.raises(ValueError, match="float8"):
        pf.fuse(model, strict=True)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    dist.destroy_process_group()


def test_distributed_tensors_are_left_to_peft(one_process):
    """Tensor parallelism makes the weight a DTensor; such a layer runs in PEFT."""
    model = zoo.adapted(peft, "llama")
    report = pf.fuse(model)
    layer, x = model.get_submodule(LEFT), torch.randn(3, 32)
    expected = layer(x)
    weight = distribute_tensor(layer.base_layer.weight.data, one_process, [Replicate()])
    layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.base_layer.bias = nn.Parameter(distribute_tensor(layer.base_layer.bias.data, one_process, [Replicate()]))
    again = pf.fuse(model)
    assert not again.left
    x = distribute_tensor(x, one_process, [Replicate()])
    for part in (layer.lora_A["default"], layer.lora_B["default"]):
        part.weight = nn.Parameter(distribute_tensor(part.weight.data, one_process, [Replicate()]))
    torch.testing.assert_close(layer(x).full_tensor(), expected)
    assert report.calls() == {"fused": 1, "the input is a DTensor": 1}


FSDP2 = """
import sys, torch, peft
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import pypeft_fast as pf
from tests.model import zoo
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = dist.device_mesh.DeviceMesh("cpu", [0])
def grads(model):
    y = zoo.logits(model)
    y.square().mean().backward()
    full = lambda t: getattr(t, "full_tensor", lambda: t)()
    return [y, *(full(p.grad) for p in model.parameters() if p.requires_grad)]
def sharded(model, parts):
    for part in parts(model):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)
expected = grads(zoo.adapted(peft, "llama"))
blocks = lambda m: list(m.base_model.model.model.layers)
bases = lambda m: [m.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").base_layer]
for parts in (blocks, bases):
    model = zoo.adapted(peft, "llama")
    report = pf.fuse(model)
    sharded(model, parts)
    for a, b in zip(grads(model), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    print(dict(report.calls()))
model = sharded(zoo.adapted(peft, "llama"), blocks)
print(set(pf.fuse(model).left.values()))
dist.destroy_process_group()
"""


def test_fsdp2_around_and_inside_fused_layers():
    """A unit of a whole block gathers before the fused call; a base layer that is a unit is called as a module."""
    done = python("-W", "ignore", "-c", FSDP2, timeout=300, expect_success=True, OMP_NUM_THREADS="1")
    assert done.stdout.splitlines() == [
        "{'fused': 4}",
        "{'fused around the base: the base layer has hooks or a forward of its own': 1, 'fused': 3}",
        "{'lora_A is a DTensor'}",
    ]
