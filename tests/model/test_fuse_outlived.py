"""The classes of fused modules: FSDP2 derives from them, accelerate replaces forward, pickle stores them by name."""

import copy
import pickle

import accelerate
import peft
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers.models.llama.modeling_llama import LlamaMLP

import pypeft_fast as pf
from tests.interpreter import python
from tests.model import zoo

ATTENTION, MLP = (f"base_model.model.model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp"))


def ran(model):
    """(logits, {op: number of calls})."""
    with pf.recording() as seen:
        logits = zoo.logits(model)
    ops = [op for op, _ in seen]
    return logits, {op: ops.count(op) for op in sorted({*ops})}


def lora():
    return zoo.adapted(peft, "llama")


def ia3():
    config = peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = peft.get_peft_model(zoo.build("llama"), config)
    zoo.liven(model)
    return model.eval()


def kinds(model):
    return {name: type(module) for name, module in model.named_modules()}


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.DeviceMesh("cpu", [0])
    dist.destroy_process_group()


@pytest.mark.parametrize("name", [ATTENTION, MLP])
def test_unfuse_refuses_a_class_that_fsdp2_has_derived_from(mesh, name):
    model = lora()
    before = zoo.logits(model)
    pf.fuse(model)
    unit = fully_shard(model.get_submodule(name), mesh=mesh)
    was = kinds(model)
    with pytest.raises(
        ValueError, match=rf"1 fused modules now have a class derived .*: {name} is a FSDPFused\w+. Call"
    ):
        pf.unfuse(model)
    assert kinds(model) == was and isinstance(unit, FSDPModule)
    assert pf.fuse(model).gated == [MLP, MLP.replace("0", "1")] and kinds(model) == was
    logits, ops = ran(model)
    zoo.assert_same(logits, before)
    assert ops["swiglu"] == 2


def test_unfuse_refuses_an_ia3_class_that_fsdp2_has_derived_from(mesh):
    model = ia3()
    pf.fuse(model)
    fully_shard(model.get_submodule(ATTENTION), mesh=mesh)
    with pytest.raises(ValueError, match=f"{ATTENTION} is a FSDPFusedLinear"):
        pf.unfuse(model)


def test_fsdp2_units_of_whole_blocks_can_be_unfused(mesh):
    model = lora()
    was, before = kinds(model), zoo.logits(model)
    pf.fuse(model)
    for block in model.base_model.model.model.layers:
        fully_shard(block, mesh=mesh)
    assert pf.unfuse(model) == 4
    assert {n: k for n, k in kinds(model).items() if not issubclass(k, FSDPModule)}.items() <= was.items()
    zoo.assert_same(zoo.logits(model), before)


def test_a_derived_gated_module_computes_the_base_model_after_unload(mesh):
    """unload() inserts plain layers. The module is still a unit of FSDP, and runs its original forward."""
    model = lora()
    pf.fuse(model)
    fully_shard(model.get_submodule(MLP), mesh=mesh)
    bare = model.unload()
    logits, ops = ran(bare)
    assert isinstance(bare.model.layers[0].mlp, FSDPModule) and type(bare.model.layers[1].mlp) is LlamaMLP
    zoo.assert_same(logits, zoo.logits(zoo.build("llama")))
    assert ops == {}


def hook_and_remove(model):
    for name in (ATTENTION, MLP, f"{MLP}.down_proj", f"{MLP}.act_fn"):
        module = model.get_submodule(name)
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
        accelerate.hooks.remove_hook_from_module(module)
        assert "forward" in vars(module)


@pytest.mark.parametrize("make", [lora, ia3])
@pytest.mark.parametrize("when", ["before", "while fused", "before and while fused"])
def test_the_forward_that_accelerate_leaves_on_a_module_does_not_stop_fusing(make, when):
    """After the hook is removed, accelerate leaves the method of the class as the attribute `module.forward`."""
    model, twin = make(), make()
    pf.fuse(twin)
    _, fast = ran(twin)
    if "before" in when:
        hook_and_remove(model)
    expected, report = zoo.logits(model), pf.fuse(model, strict=True)
    if "while fused" in when:
        hook_and_remove(model)
    logits, ops = ran(model)
    zoo.assert_same(logits, expected)
    assert ops == fast and report.calls() == {"fused": 4}
    assert report.gated == ([] if make is ia3 else [MLP, MLP.replace("0", "1")])
    assert pf.unfuse(model) == 4
    assert torch.equal(zoo.logits(model), expected)
    again = pf.fuse(model, strict=True)
    assert ran(model)[1] == fast and again.gated == report.gated


@pytest.mark.parametrize("make", [lora, ia3])
def test_a_model_can_be_fused_again_after_a_hook_that_was_removed_after_unfuse(make):
    """accelerate then restores the forward of a class that is no longer the class of the module."""
    model = make()
    before, report = zoo.logits(model), pf.fuse(model, strict=True)
    _, fast = ran(model)
    modules = [model.get_submodule(name) for name in (ATTENTION, MLP)]
    for module in modules:
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    pf.unfuse(model)
    for module in modules:
        accelerate.hooks.remove_hook_from_module(module)
    assert torch.equal(zoo.logits(model), before)
    again = pf.fuse(model, strict=True)
    logits, ops = ran(model)
    zoo.assert_same(logits, before)
    assert ops == fast and again.gated == report.gated


def test_a_gated_module_with_a_hook_is_not_fused_and_its_hook_is_called():
    model, calls = lora(), []

    class Counts(accelerate.hooks.ModelHook):
        def post_forward(self, module, output):
            calls.append(type(module))
            return output

    accelerate.hooks.add_hook_to_module(model.get_submodule(MLP), Counts())
    report = pf.fuse(model)
    assert report.gated == [MLP.replace("0", "1")]
    assert ran(model)[1]["swiglu"] == 1 and calls == [LlamaMLP]


# {method: the names of our classes in its fused model}.
METHODS = {
    "lora": "FusedLinear FusedLlamaMLP",
    "dora": "FusedLinear FusedLlamaMLP",
    "ia3": "FusedLinear",
    "ours": "FusedLinear FusedLlamaMLP",
}


def make_fused(method):
    if method == "ours":
        return zoo.adapted(pf, "llama")
    model = ia3() if method == "ia3" else zoo.adapted(peft, "llama", use_dora=method == "dora")
    pf.fuse(model, strict=True)
    return model


READ = """
import sys, torch, pickle, pypeft_fast
foreign = lambda name: name.partition(".")[0] in ("peft", "transformers", "tests")
assert not any(map(foreign, sys.modules))
for path in sys.argv[1:]:
    for read in (lambda file: torch.load(file, weights_only=False), pickle.load):
        with open(path + "." + ("pickle" if read is pickle.load else "torch"), "rb") as file:
            model, ids, expected, ops = read(file)
        with pypeft_fast.recording() as seen:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert [op for op, _ in seen] == ops and len(ops) >= 4, seen
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
        print(*sorted({type(m).__name__ for m in model.modules() if "Fused" in type(m).__name__}))
"""


def test_a_process_that_imports_this_package_alone_reads_fused_models(tmp_path):
    """The process has not imported PEFT or transformers, and the classes of gated modules are created at run time."""
    for method in METHODS:
        model = make_fused(method)
        with pf.recording() as seen:
            expected = zoo.logits(model).detach()
        stored = (model, zoo.IDS, expected, [op for op, _ in seen])
        torch.save(stored, tmp_path / f"{method}.torch")
        (tmp_path / f"{method}.pickle").write_bytes(pickle.dumps(stored))
    files = [tmp_path / method for method in METHODS]
    done = python("-W", "ignore", "-c", READ, *files, timeout=600, expect_success=True)
    assert done.stdout.splitlines() == [names for names in METHODS.values() for _ in range(2)]


@pytest.mark.parametrize("method", METHODS)
def test_copies_and_pickles_compute_the_same_and_share_no_parameters(method):
    model = make_fused(method)
    expected, ops = ran(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kinds(twin) == kinds(model)
        logits, theirs = ran(twin)
        assert torch.equal(logits, expected) and theirs == ops
        for parameter in twin.parameters():
            nn.init.zeros_(parameter)
        assert not torch.equal(zoo.logits(twin), expected)
    assert torch.equal(zoo.logits(model), expected)
