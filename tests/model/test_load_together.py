"""pf.load_adapters: files that are fine alone and that PEFT refuses together; arguments that it does not take."""

import peft
import pytest

import pypeft_fast as pf
from tests.model.files.made import adapted, assert_untouched, state
from tests.model.zoo import build, liven

Q = dict(r=4, target_modules=["q_proj"])


def saved(folder, **configs):
    """A subfolder for each config."""
    for seed, (name, config) in enumerate(configs.items()):
        model = peft.get_peft_model(build("llama"), config)
        liven(model, seed, "default")
        model.save_pretrained(folder / name)
    return folder


APART = {
    "biases": (lambda: peft.LoraConfig(bias="all", **Q), lambda: peft.LoraConfig(bias="all", **Q)),
    "keys": (lambda: peft.VeraConfig(**Q), lambda: peft.VeraConfig(projection_prng_key=1, **Q)),
}


@pytest.mark.parametrize("kind", APART)
def test_what_peft_refuses_together_changes_nothing(kind, tmp_path):
    first, second = APART[kind]
    saved(tmp_path, a=first(), b=second())
    base = build("llama")
    before = state(base)
    with pytest.raises(ValueError, match="b/adapter_config.json: PEFT does not add b beside a: .*give `names`"):
        pf.load_adapters(base, tmp_path)
    assert_untouched(base, before)
    assert list(pf.load_adapters(base, tmp_path, ["b"]).peft_config) == ["b"]


def test_what_peft_refuses_beside_a_running_one_changes_nothing(tmp_path):
    saved(tmp_path, a=peft.LoraConfig(**Q), b=peft.LoraConfig(bias="all", **Q))
    running = pf.get_peft_model(build("llama"), peft.LoraConfig(bias="all", **Q), "run")
    before = state(running)
    with pytest.raises(ValueError, match="PEFT does not add b beside run, a: "):
        pf.load_adapters(running, tmp_path)
    assert_untouched(running, before)


TOGETHER = {
    "vera": lambda: peft.VeraConfig(**Q),
    "heads": lambda: peft.LoraConfig(modules_to_save=["lm_head"], **Q),
    "dora": lambda: peft.LoraConfig(use_dora=True, **Q),
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "prompts": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "adaption prompts": lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1),
    "tokens": lambda: peft.LoraConfig(trainable_token_indices=[1, 2], **Q),
}


@pytest.mark.parametrize("kind", TOGETHER)
def test_what_peft_loads_together(kind, tmp_path):
    make = TOGETHER[kind]
    loaded = pf.load_adapters(build("llama"), saved(tmp_path, a=make(), b=make(), c=make()))
    assert list(loaded.peft_config) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "call,words",
    [
        (
            lambda f: pf.load_adapters(build("llama"), f, subfolder="x"),
            "^subfolder: load_adapters has no such",
        ),
        (
            lambda f: pf.load_adapters(build("llama"), f, name=["a"], revision="x"),
            "^name, revision: load_adapters has",
        ),
        (lambda f: pf.load_adapters(None, f), "model=None is a NoneType; give a torch.nn.Module"),
        (lambda f: pf.load_adapters("gpt2", f), "model='gpt2' is a str"),
        (
            lambda f: pf.load_adapters(pf.nn.MultiLoRALinear(32, 32), f, is_trainable=True),
            "is_trainable is not for a",
        ),
        (lambda f: pf.load_adapters(pf.nn.MultiLoRALinear(32, 32), f, foo=3), "foo is not for a MultiLoRALinear"),
        (
            lambda f: pf.load_adapters(pf.PeftMixedModel(build("llama"), peft.LoraConfig(**Q)), f),
            "model is a PeftMixedModel, which holds adapters of several methods; load into a base model",
        ),
    ],
)
def test_arguments_that_are_refused(call, words, tmp_path):
    adapted().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=words):
        call(tmp_path)


def test_options_of_peft_go_through(tmp_path):
    adapted().save_pretrained(tmp_path)
    assert pf.load_adapters(build("llama"), tmp_path, low_cpu_mem_usage=True, autocast_adapter_dtype=False).peft_config
