"""pf.load_adapters: a folder of adapters into a model, or into a bank of one layer, or nothing changes."""

import threading

import peft
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import pypeft_fast as pf
from pypeft_fast.model import load_adapters as module_under_test
from pypeft_fast.model.files import mixin, places
from tests.model.files.made import WEIGHTS, assert_untouched, edit, lora_A, rewrite, state
from tests.model.zoo import build, liven

LAYER = "model.layers.0.self_attn.q_proj"
NAMES = ["default", "billing", "desk"]


def config(**options):
    usual = dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], lora_dropout=0.1)
    return peft.LoraConfig(**usual | options)


@pytest.fixture(scope="module")
def model():
    """Three adapters, of which one has other ranks and scalings."""
    torch.manual_seed(0)
    made = pf.get_peft_model(build("llama"), config())
    made.add_adapter("desk", config())
    made.add_adapter("billing", config(rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 3}, use_rslora=True))
    for seed, name in enumerate(NAMES):
        made.set_adapter(name)
        liven(made, seed, name)
    made.set_adapter("default")
    return made.eval()


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


IDS = torch.arange(8)[None]


@torch.no_grad()
def logits(model, name):
    model.set_adapter(name)
    return model(IDS).logits


def check_same(found, model, names=NAMES):
    assert sorted(found.peft_config) == sorted(names)
    for name in names:
        assert torch.equal(logits(found, name), logits(model, name))
    model.set_adapter("default")


def base():
    torch.manual_seed(0)
    return build("llama")


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_a_base_model_gets_all_that_was_saved(model, folder, threads, monkeypatch):
    used, real = set(), module_under_test._read
    meet = threading.Barrier(threads or 3)

    def read(pair):
        meet.wait(timeout=30)  # so many threads read at once
        used.add(threading.get_ident())
        return real(pair)

    monkeypatch.setattr(module_under_test, "_read", read)
    found = pf.load_adapters(base(), folder, threads=threads)
    assert type(found) is pf.PeftModel and found.active_adapter == "default" and len(used) == (threads or 3)
    assert pf.fuse(found).fused and not found.training and not any(p.requires_grad for p in found.parameters())
    check_same(found, model)


def test_a_model_with_adapters_gets_others_and_other_values(model, folder):
    found = pf.get_peft_model(base(), config(), "desk")
    before = {name: p.data_ptr() for name, p in found.named_parameters()}
    assert pf.load_adapters(found, folder, is_trainable=True) is found and found.active_adapter == "desk"
    assert all(p.data_ptr() == before[name] for name, p in found.named_parameters() if name in before)
    assert all(p.requires_grad for name, p in found.named_parameters() if ".lora_" in name)
    check_same(found.eval(), model)


def test_only_some_in_their_order(model, folder):
    found = pf.load_adapters(base(), folder, ["desk", "default"])
    assert list(found.peft_config) == ["desk", "default"] and found.active_adapter == "desk"
    check_same(found, model, ["desk", "default"])


def test_adapters_alike_have_one_dry_run(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(places, "place_of_plain_lora", lambda *arguments: None)
    for module in (mixin, places):
        monkeypatch.setattr(module, "rehearse", lambda *a, real=module.rehearse: calls.append(a[2]) or real(*a))
    pf.load_adapters(base(), folder)
    assert calls == ["default", "billing"]


def of_weights(change):
    return lambda folder: rewrite(folder, change)


FAULTS = {
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "desk/.*truncated or corrupt"),
    "a shape": (of_weights(lambda t: t | {lora_A(t): t[lora_A(t)][:2].clone()}), "desk/.*does not fit.*has shape"),
    "a value": (of_weights(lambda t: t | {lora_A(t): t[lora_A(t)] / 0}), "desk/.*NaN or infinite"),
    "a method": (lambda f: edit(f, peft_type="X"), "desk/.*peft_type='X' is not a method"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "desk has no adapter_model.safetensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_file_at_fault_and_nothing_changes(folder, fault):
    damage, words = FAULTS[fault]
    damage(folder / "desk")
    for target in (base(), pf.get_peft_model(base(), config(), "billing2"), bank()):
        before = state(target)
        with pytest.raises(ValueError, match=words):
            pf.load_adapters(target, folder, module=LAYER if isinstance(target, pf.nn.MultiLoRALinear) else None)
        assert_untouched(target, before)


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda f: pf.load_adapters(base(), f / "desk" / "none"), FileNotFoundError, "has no adapter: neither"),
        (lambda f: pf.load_adapters(base(), f, ["gone"]), FileNotFoundError, "no adapter 'gone'; it has default, bil"),
        (lambda f: pf.load_adapters(base(), f, []), ValueError, r"names=\[\] must be a list of at least one name"),
        (lambda f: pf.load_adapters(base(), f, "desk"), ValueError, "names='desk' must be a list"),
        (lambda f: pf.load_adapters(base(), f, threads=0), ValueError, "threads=0 must be an integer of at least 1"),
        (lambda f: pf.load_adapters(base(), f, module=LAYER), ValueError, "is for a MultiLoRALinear; leave it out"),
        (lambda f: pf.load_adapters(peft.get_peft_model(base(), config()), f), TypeError, "model is peft's PeftModel;"),
        (
            lambda f: pf.load_adapters(pf.get_peft_model(base(), peft.IA3Config(target_modules=["q_proj"]), "o"), f),
            ValueError,
            "one model holds adapters of one method, and there are o of IA3, default of LORA",
        ),
        (lambda f: pf.load_adapters(bank(), f), ValueError, "module=None: the layers in .*q_proj.*; give one of them"),
        (lambda f: pf.load_adapters(bank(), f, module="x"), ValueError, "module='x': the layers in"),
        (lambda f: pf.load_adapters(bank(2), f, module=LAYER), ValueError, "has room for 1 more adapters of max_adapt"),
        (lambda f: pf.load_adapters(bank(r=2), f, module=LAYER), ValueError, "lora_A has shape .*max_rank=2"),
    ],
)
def test_what_is_refused(folder, call, error, words):
    with pytest.raises(error, match=words):
        call(folder)


def test_a_name_that_no_adapter_may_have(folder):
    (folder / "a.b").mkdir()
    for path in (folder / "desk").iterdir():
        (folder / "a.b" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="contains '.'"):
        pf.load_adapters(base(), folder)


def bank(max_adapters=4, r=4):
    """A bank over the layer of the model, with one adapter, "old"."""
    made = pf.nn.MultiLoRALinear.from_linear(base().get_submodule(LAYER), max_adapters=max_adapters, max_rank=r)
    made.add("old", torch.randn(1, made.in_features), torch.randn(made.out_features, 1))
    return made.eval()


def layers_own(model, name, x):
    model.set_adapter(name)
    with torch.no_grad():
        return model.get_base_model().get_submodule(LAYER)(x)


def test_a_bank_of_one_layer_is_restored(model, folder):
    made = pf.load_adapters(bank(), folder, module=LAYER, threads=2)
    assert made.adapter_names == ["old", *NAMES]
    x = torch.randn(3, made.in_features)
    for name in NAMES:
        torch.testing.assert_close(made(x, [name] * 3), layers_own(model, name, x))
    assert made._dropouts[made.index(["desk"]).item()] == 0.1
    model.set_adapter("default")


def test_a_replaced_adapter_allocates_nothing_and_recompiles_nothing(model, folder):
    """Rows of other adapters have the same values before and after."""
    made = pf.load_adapters(bank(), folder, module=LAYER)
    pointers = [p.data_ptr() for p in (*made.parameters(), *made.buffers())]
    counted = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(made, fullgraph=True, backend=counted)
    x, index = torch.randn(3, made.in_features), made.index(["old", "desk", "billing"])
    before = compiled(x, index)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".desk." in name and ".lora_" in name:
                p.mul_(2)
    model.save_pretrained(folder, selected_adapters=["desk"])
    pf.load_adapters(made, folder, ["desk"], module=LAYER)
    made.remove("default")
    pf.load_adapters(made, folder, ["default"], module=LAYER)
    after = compiled(x, index)
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.equal(after[1], before[1])
    torch.testing.assert_close(after[1:2], layers_own(model, "desk", x[1:2]))
    assert counted.frame_count == 1
    assert [p.data_ptr() for p in (*made.parameters(), *made.buffers())] == pointers


def test_a_bank_takes_plain_lora_only(folder, tmp_path):
    for options, words in (
        (dict(use_dora=True), "holds plain LoRA"),
        (dict(lora_bias=True), "lora_bias=True: .* holds"),
    ):
        pf.get_peft_model(base(), config(**options)).save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match=words):
            pf.load_adapters(bank(), tmp_path / "other", module=LAYER)
    edit(folder / "desk", r=2)
    with pytest.raises(ValueError, match="does not fit its config: .* expected r=2 rows"):
        pf.load_adapters(bank(), folder, module=LAYER)
