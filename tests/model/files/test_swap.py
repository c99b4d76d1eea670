"""Hot swap: load_adapter over a running name copies all values in one call, or changes nothing."""

import contextlib

import peft
import pytest
import torch

from pypeft_fast.model.files import mixin, swap
from tests.model.files.made import WEIGHTS, PeftModel, adapted, assert_untouched, lora_A, rewrite, state
from tests.model.zoo import build, liven

CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
    "lora with ranks": lambda: peft.LoraConfig(r=4, rank_pattern={"q_proj": 2}, target_modules=["q_proj", "down_proj"]),
    "lora with biases of its own": lambda: peft.LoraConfig(r=4, lora_bias=True, target_modules=["q_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
LEFT_TO_PEFT = {
    "lora on embeddings": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]),
    "a trained head": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "trained biases": lambda: peft.LoraConfig(r=4, bias="all", target_modules=["q_proj"]),
    "trained tokens": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2]),
}


def made(config, seed, **options):
    torch.manual_seed(seed)
    model = PeftModel(build("llama"), config(), **options)
    liven(model, seed, "default")
    return model


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture
def pefts_loads(monkeypatch):
    """The number of calls of PEFT's load_adapter."""
    calls = []
    real = peft.PeftModel.load_adapter
    monkeypatch.setattr(peft.PeftModel, "load_adapter", lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


@pytest.mark.parametrize("kind", [*CONFIGS, *LEFT_TO_PEFT])
def test_a_swap_gives_the_values_that_pefts_load_gives(kind, tmp_path, pefts_loads):
    config = (CONFIGS | LEFT_TO_PEFT)[kind]
    made(config, 1).save_pretrained(tmp_path)
    ours, theirs = made(config, 2).train(), made(config, 2).train()
    pointers = {name: p.data_ptr() for name, p in ours.named_parameters()}
    result = ours.load_adapter(tmp_path, "default")
    assert len(pefts_loads) == (kind in LEFT_TO_PEFT)
    expected = peft.PeftModel.load_adapter(theirs, tmp_path, "default")
    assert values(ours).keys() == values(theirs).keys()
    assert all(torch.equal(value, values(theirs)[name]) for name, value in values(ours).items())
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
    assert not ours.training and not any(m.training for m in ours.modules()) and result == expected
    assert {name: p.data_ptr() for name, p in ours.named_parameters()} == pointers


def test_a_swap_of_one_adapter_leaves_the_others(tmp_path, pefts_loads):
    made(CONFIGS["lora"], 1).save_pretrained(tmp_path)
    model = made(CONFIGS["lora"], 2)
    model.add_adapter("other", CONFIGS["lora"]())
    model.set_adapter("other")
    liven(model, 3, "other")
    before = values(model)
    model.load_adapter(tmp_path, "other", is_trainable=True)
    changed = {name for name, value in values(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".other." in name} and changed and not pefts_loads


def test_a_trainable_swap_keeps_the_mode(tmp_path):
    made(CONFIGS["lora"], 1).save_pretrained(tmp_path)
    model = made(CONFIGS["lora"], 2).train()
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert model.training and all(module.training for module in model.modules())


def halves(model):
    for name, p in model.named_parameters():
        if ".lora_" in name:
            p.data = p.data.bfloat16()
    return model


@pytest.mark.parametrize("options,dtype", [({}, torch.float32), ({"autocast_adapter_dtype": False}, torch.bfloat16)])
def test_half_precision_adapters_become_float32_as_in_peft(options, dtype, tmp_path):
    made(CONFIGS["lora"], 1).save_pretrained(tmp_path)
    model = halves(made(CONFIGS["lora"], 2))
    model.load_adapter(tmp_path, "default", **options)
    assert {p.dtype for name, p in model.named_parameters() if ".lora_" in name} == {dtype}


def cut(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_name(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes().replace(b'"dtype"', b'"dtyp"', 1))


def of_last(change):
    """A change of the file's last tensor, which is read after all others have been."""

    def apply(folder):
        rewrite(folder, lambda tensors: {**tensors, max(tensors): change(tensors[max(tensors)].clone())})

    return apply


def nan(tensor):
    tensor.view(-1)[-1] = float("nan")
    return tensor


BROKEN = {
    "truncated": (cut, "truncated or corrupt"),
    "corrupt": (flip_a_name, "truncated or corrupt"),
    "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "truncated or corrupt"),
    "another shape": (of_last(lambda tensor: tensor[:-1]), "has shape"),
    "a value is NaN": (of_last(nan), "NaN or infinite"),
    "integers": (of_last(lambda tensor: tensor.int()), "has dtype torch.int32"),
    "a tensor too few": (lambda folder: rewrite(folder, lambda t: t.pop(lora_A(t)) is None), "has no base_model"),
    "a tensor too many": (lambda f: rewrite(f, lambda t: t | {"base_model.model.x": torch.ones(1)}), "no place for"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_damaged_file_leaves_the_running_adapter(fault, tmp_path):
    damage, words = BROKEN[fault]
    adapted().save_pretrained(tmp_path)
    damage(tmp_path)
    model = adapted(seed=5)
    before = state(model)
    with pytest.raises(ValueError, match=words):
        model.load_adapter(tmp_path, "default")
    assert_untouched(model, before)


def test_an_interruption_comes_before_or_after_all_values(tmp_path, monkeypatch):
    adapted().save_pretrained(tmp_path)
    model = adapted(seed=5)
    before = state(model)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(swap, "check_values", interrupted)
    with contextlib.suppress(KeyboardInterrupt):
        model.load_adapter(tmp_path, "default")
    assert_untouched(model, before)
    monkeypatch.undo()
    calls = []
    real = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *a: calls.append(len(a[0])) or real(*a))
    model.load_adapter(tmp_path, "default")
    assert calls == [len([n for n, _ in model.named_parameters() if ".lora_" in n])]


def test_an_adapter_like_another_needs_no_dry_run(tmp_path, monkeypatch):
    calls = []
    real = mixin.rehearse
    monkeypatch.setattr(mixin, "rehearse", lambda *a: calls.append(a[2]) or real(*a))
    made(CONFIGS["lora"], 1).save_pretrained(tmp_path / "a")
    made(CONFIGS["lora with ranks"], 1).save_pretrained(tmp_path / "b")
    model = made(CONFIGS["lora"], 2)
    model.load_adapter(tmp_path / "a", "same")
    assert calls == []
    model.load_adapter(tmp_path / "b", "other ranks")
    assert calls == ["other ranks"]
    rewrite(tmp_path / "a", lambda t: {**t, lora_A(t): t[lora_A(t)][:2].clone()})
    before = state(model)
    with pytest.raises(ValueError, match=r"has shape \(2, .*this model and config expect \(4, "):
        model.load_adapter(tmp_path / "a", "third")
    assert_untouched(model, before)


def test_nan_is_refused_even_if_the_running_adapter_has_nan(tmp_path):
    made(CONFIGS["lora"], 1).save_pretrained(tmp_path)
    of_last(nan)(tmp_path)
    model = made(CONFIGS["lora"], 2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.fill_(float("nan"))
    for name in ("new", "default"):
        with pytest.raises(ValueError, match="NaN or infinite"):
            model.load_adapter(tmp_path, name)


@pytest.mark.parametrize("kind", LEFT_TO_PEFT)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_running_adapter_of_nan_does_not_excuse_a_file(kind, value, tmp_path):
    model = made(LEFT_TO_PEFT[kind], 1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.fill_(value)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.load_adapter(tmp_path, "default")
