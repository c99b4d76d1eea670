"""The dry run of every method of PEFT gives what PEFT writes and does not change the model; files load as with PEFT."""

import dataclasses

import peft
import pytest
import torch
import transformers as tf
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file

from pypeft_fast.model.files import SafeFiles, expected_tensors
from pypeft_fast.model.files.dry_run import COSTLY, rehearse
from tests.model.files.made import WEIGHTS, PeftModel, adapted, assert_untouched, build, state
from tests.model.zoo import assert_same, liven, logits

TOKENS = dict(num_virtual_tokens=4, task_type="CAUSAL_LM")
# {method: options besides target_modules}; methods that the installed PEFT does not have are left out.
METHODS = {
    "LORA": {},
    "ADALORA": dict(total_step=10),
    "ADAPTION_PROMPT": dict(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"),
    "BEFT": {},
    "BOFT": dict(boft_block_size=4),
    "C3A": dict(block_size=8),
    "CARTRIDGE": TOKENS,
    "DEFT": {},
    "DELORA": {},
    "FOURIERFT": dict(n_frequency=10),
    "FROD": {},
    "GLORA": {},
    "GRALORA": {},
    "HIRA": {},
    "HRA": {},
    "IA3": dict(feedforward_modules=["down_proj"]),
    "LILY": {},
    "LN_TUNING": dict(target_modules=["input_layernorm"]),
    "LOHA": {},
    "LOKR": {},
    "MISS": dict(r=4),
    "OFT": dict(oft_block_size=4, r=0),
    "MULTITASK_PROMPT_TUNING": dict(num_tasks=2, **TOKENS),
    "OSF": {},
    "PEANUT": {},
    "POLY": dict(r=4, n_tasks=2),
    "PREFIX_TUNING": TOKENS,
    "PROMPT_TUNING": TOKENS,
    "PSOFT": {},
    "PVERA": {},
    "P_TUNING": dict(encoder_hidden_size=16, **TOKENS),
    "RANDLORA": dict(r=4),
    "ROAD": dict(group_size=4),
    "SHADOW": {},
    "SHIRA": dict(r=2),
    "SUPERTUNING": {},
    "TINYLORA": {},
    "TRAINABLE_TOKENS": dict(token_indices=[1, 2], target_modules=["embed_tokens"]),
    "UNILORA": {},
    "VBLORA": dict(num_vectors=32, vector_length=8, topk=2),
    "VERA": {},
    "WAVEFT": dict(n_frequency=16),
}
ALONE = {"ADAPTION_PROMPT", "CARTRIDGE", "OSF", "SHADOW", "UNILORA", "FROD", "PSOFT"}  # one adapter only, or slow
LOADED = [name for name in METHODS if name in PEFT_TYPE_TO_CONFIG_MAPPING]


def small():
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, initializer_range=0.3,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config).eval()


def config_of(method, **options):
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[method]
    options = METHODS[method] | options
    if "target_modules" in {f.name for f in dataclasses.fields(kind)} and method != "ADAPTION_PROMPT":
        options = {"target_modules": ["q_proj", "down_proj"]} | options
    return kind(**options)


def made(method, **options):
    torch.manual_seed(1)
    model = peft.get_peft_model(small(), config_of(method, **options))
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", LOADED)
def test_the_dry_run_gives_what_peft_writes_and_leaves_the_model_alone(method, tmp_path):
    made(method).save_pretrained(tmp_path)
    written = {key: (t.shape, t.is_floating_point()) for key, t in load_file(tmp_path / WEIGHTS).items()}
    base = small()
    before = state(base)
    if method in COSTLY:
        assert rehearse(base, config_of(method), "default") is None
        with pytest.raises(ValueError, match="has no dry run on this LlamaForCausalLM"):
            expected_tensors(base, config_of(method))
    else:
        found = expected_tensors(base, config_of(method))
        assert {key: (shape, dtype.is_floating_point) for key, (shape, dtype) in found.items()} == written
    assert_untouched(base, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", LOADED)
def test_every_method_loads_as_with_peft(method, tmp_path):
    made(method).save_pretrained(tmp_path)
    torch.manual_seed(2)
    theirs = peft.PeftModel.from_pretrained(small(), tmp_path)
    torch.manual_seed(2)
    ours = PeftModel.from_pretrained(small(), tmp_path)
    assert isinstance(ours, SafeFiles) and ours.peft_config["default"] == theirs.peft_config["default"]
    expected = theirs.state_dict()
    assert set(ours.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    if method in ALONE:
        return
    for model in (theirs, ours):
        torch.manual_seed(3)
        model.load_adapter(tmp_path, "second")
        model.load_adapter(tmp_path, "default")
    expected = theirs.state_dict()
    assert set(ours.state_dict()) == set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


INITIALISATIONS = ["pissa", "olora", "gaussian", "orthogonal", "eva", "corda"]


@pytest.mark.parametrize("init", INITIALISATIONS)
def test_an_initialisation_on_the_bases_weights_is_not_computed(init):
    base = small()
    before = state(base)
    config = config_of("LORA", init_lora_weights=init)
    found = expected_tensors(base, config)
    assert len(found) == 8 and config.init_lora_weights == init and not config.inference_mode
    assert_untouched(base, before)


def test_an_adaloras_trained_ranks_are_expected(tmp_path):
    ranks = {f"model.layers.{i}.self_attn.q_proj.lora_E": [True] * 5 + [False] * 7 for i in range(2)}
    base = small()
    before = state(base)
    found = expected_tensors(base, config_of("ADALORA", target_modules=["q_proj"], rank_pattern=ranks))
    shapes = {shape for key, (shape, _) in found.items() if "lora_A" in key}
    assert shapes == {(5, 32)}
    assert_untouched(base, before)


def test_a_second_adapter_is_rehearsed_on_a_copy_of_the_whole():
    model = adapted(modules_to_save=["lm_head"])
    before, expected = state(model), logits(model)
    config = peft.LoraConfig(r=3, target_modules=["v_proj"], use_dora=True)
    found = expected_tensors(model, config, "second")
    assert {key.rsplit("proj.", 1)[1] for key in found} == {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"}
    assert_untouched(model, before)
    assert list(model.peft_config) == ["default"] == list(model.base_model.model.peft_config)
    assert torch.equal(logits(model), expected) and "v_proj" not in str(model.base_model.targeted_module_names)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_model_is_not_changed_when_peft_raises(wrapped, monkeypatch):
    from peft.tuners.lora import LoraModel

    real, calls = LoraModel._create_and_replace, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise ZeroDivisionError("midway")
        return real(*args, **kwargs)

    model = adapted() if wrapped else small()
    before = state(model)
    monkeypatch.setattr(LoraModel, "_create_and_replace", failing)
    with pytest.raises(ZeroDivisionError, match="midway"):
        expected_tensors(model, config_of("LORA"), "another")
    assert len(calls) == 3
    assert_untouched(model, before)
    assert list(model.peft_config) == ["default"] if wrapped else not hasattr(model, "peft_config")


def test_the_copy_has_its_own_hooks_tied_weights_and_shared_modules():
    from pypeft_fast.model.files.dry_run import skeleton

    base = build("t5")
    base.register_forward_hook(lambda *args: None)
    base.held = {"a": [base.shared], "b": (base.encoder,)}
    base.again = base.shared
    clone = skeleton(base)
    assert clone.shared is clone.again and clone.shared is not base.shared
    assert clone.shared.weight is base.shared.weight is clone.encoder.embed_tokens.weight
    assert clone.held["a"][0] is clone.shared and clone.held["b"][0] is clone.encoder
    assert clone._forward_hooks is not base._forward_hooks and len(clone._forward_hooks) == len(base._forward_hooks)
    assert clone.config is not base.config and clone.config.to_dict() == base.config.to_dict()
    clone.encoder.block, clone.config.d_ff = None, 1
    assert base.encoder.block is not None and base.config.d_ff == 48


def test_a_bfloat16_base_expects_floating_tensors():
    found = expected_tensors(small().to(torch.bfloat16), config_of("LORA"))
    assert {dtype for _, dtype in found.values()} <= {torch.float32, torch.bfloat16}


def test_a_trained_prefix_with_a_projection_cannot_take_a_files_values(tmp_path):
    options = dict(prefix_projection=True, encoder_hidden_size=16)
    made("PREFIX_TUNING", **options).save_pretrained(tmp_path)
    model = PeftModel._adopt(peft.get_peft_model(small(), config_of("PREFIX_TUNING", **options)))
    before = state(model)
    with pytest.raises(ValueError, match="does not fit this model"):
        model.load_adapter(tmp_path, "default")
    assert_untouched(model, before)


def test_what_was_put_on_with_values_alone_is_the_same_as_with_peft(tmp_path):
    model = adapted(modules_to_save=["lm_head"], bias="all")
    model.save_pretrained(tmp_path)
    liven(model, 3)
    for reader in (PeftModel, peft.PeftModel):
        found = reader.from_pretrained(build("llama"), tmp_path).eval()
        assert not torch.equal(logits(found), logits(model))
    model.load_adapter(tmp_path, "default")
    assert_same(logits(found), logits(model))


def test_a_mixture_of_adapters_loads_as_with_peft(tmp_path):
    for name in ("a", "b"):
        adapted(seed=len(name), base=small()).save_pretrained(tmp_path / name)
    adapters = {str(i): str(tmp_path / name) for i, name in enumerate(("a", "b"))}
    base = small()
    base.config.use_cache = False
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, xlora_depth=1, adapters=adapters)
    torch.manual_seed(1)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "mixture")
    models = []
    for reader in (PeftModel, peft.PeftModel):
        base = small()
        base.config.use_cache = False
        models.append(reader.from_pretrained(base, tmp_path / "mixture").eval())
    ours, theirs = (model.state_dict() for model in models)
    assert ours and all(torch.equal(ours[key], theirs[key]) for key in theirs)
