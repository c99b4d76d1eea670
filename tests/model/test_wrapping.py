"""Warnings and errors for cases in which PEFT would silently train nothing, or lose trained values."""

import warnings

import peft
import pytest
import torch
import transformers as tf
from torch import nn

import pypeft_fast as pf
from pypeft_fast.model.wrapping import check_before, read_not_called
from tests.model.zoo import IDS, TARGETS, adapted, assert_same, build, liven, logits


def llama(**options):
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, initializer_range=0.3, **options)).eval()


def mixtral():
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    return tf.MixtralForCausalLM(tf.MixtralConfig(vocab_size=97, num_key_value_heads=2, num_local_experts=4, **sizes))


@pytest.mark.parametrize(
    "make,target,words",
    [
        (llama, "q_prj", "target_modules: 'q_prj' matches no module and stays frozen; did you mean 'q_proj'"),
        (llama, "nothing_like_it", "'nothing_like_it' matches no module .*; parameters go into target_parameters"),
        (mixtral, "gate_up_proj", "it is a parameter, .*experts.gate_up_proj: name it in target_parameters"),
    ],
)
def test_a_target_that_matches_nothing_is_named(make, target, words):
    with pytest.warns(UserWarning, match=words):
        model = pf.get_peft_model(make(), pf.LoraConfig(target_modules=["v_proj", target]))
    with pytest.warns(UserWarning, match=words):
        model.add_adapter("second", pf.LoraConfig(target_modules=["k_proj", target]))


def test_nothing_is_warned_of_where_every_target_matches():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "target_modules|adapter layers")
        for kind, targets in TARGETS.items():
            pf.get_peft_model(build(kind), pf.LoraConfig(target_modules=targets, fan_in_fan_out=kind == "gpt2"))
        pf.get_peft_model(build("llama"), pf.LoraConfig(target_modules="all-linear"))
        pf.get_peft_model(build("llama"), pf.LoraConfig())


def test_experts_by_pefts_names_are_pefts(capsys):
    for library in (pf, peft):
        config = library.LoraConfig(r=2, target_modules=["q_proj", "w1", "w2", "w3"], task_type="CAUSAL_LM")
        library.get_peft_model(mixtral(), config).print_trainable_parameters()
    ours, theirs = capsys.readouterr().out.strip().splitlines()
    assert ours == theirs and "trainable params: 2,816" in ours


def wavlm():
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    conv = dict(conv_dim=(16,), conv_stride=(2,), conv_kernel=(3,), num_feat_extract_layers=1)
    return tf.WavLMModel(tf.WavLMConfig(**sizes, **conv))


def mamba():
    return tf.MambaForCausalLM(tf.MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=97, state_size=4))


@pytest.mark.parametrize(
    "make,targets,name",
    [
        (lambda: nn.Sequential(nn.MultiheadAttention(32, 4)), ["out_proj"], "0.out_proj, in MultiheadAttention"),
        (wavlm, ["q_proj"], r"attention\.q_proj, in WavLMAttention"),
        (mamba, ["dt_proj", "in_proj"], r"mixer\.dt_proj, in MambaMixer"),
    ],
)
def test_layers_whose_weight_is_read_are_named_at_wrap_time(make, targets, name):
    with pytest.warns(UserWarning, match=f"1 adapter layers may have no effect.*{name}"):
        model = pf.get_peft_model(make(), pf.LoraConfig(target_modules=targets))
    assert len(read_not_called(model.base_model.model, "default")) == 1
    assert not read_not_called(model.base_model.model, "another")


def test_the_report_names_layers_that_no_call_reaches():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            read = self.read
            return nn.functional.linear(self.called(x), read.weight)

    model = pf.get_peft_model(Reads(), pf.LoraConfig(target_modules=["called", "read"]))
    report = pf.fuse(model)
    assert report.never_called() == report.fused and "never called" not in str(report)
    model(torch.randn(2, 8))
    assert report.never_called() == ["base_model.model.read"]
    assert "1 never called: the model reads their weight instead, such as base_model.model.read" in str(report)


def encoder():
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0), 2).eval()


@pytest.mark.parametrize("masked", [False, True])
def test_the_fast_path_of_a_torch_encoder_does_not_skip_the_adapter(masked):
    x, base = torch.randn(2, 6, 32), encoder()
    options = {"src_key_padding_mask": torch.arange(6).expand(2, 6) >= 4} if masked else {}
    with torch.no_grad():
        expected = base(x, **options)
        model = pf.get_peft_model(
            encoder(), pf.LoraConfig(target_modules=["linear1", "linear2"], init_lora_weights=False)
        )
        trained = model.train()(x, **options)
        evaluated = model.eval()(x, **options)
        torch.testing.assert_close(evaluated[:, :4], trained[:, :4])
        assert (evaluated[:, :4] - expected[:, :4]).abs().max() > 0.1
        assert pf.fuse(model).calls() == {"fused": 8}
        with model.disable_adapter():
            torch.testing.assert_close(model(x, **options)[:, :4], expected[:, :4])
        bare = model.unload()
    settings = [(layer.activation_relu_or_gelu, bare.use_nested_tensor) for layer in bare.layers]
    assert settings == [(layer.activation_relu_or_gelu, base.use_nested_tensor) for layer in base.layers]
    assert settings[0] == (1, True)


def test_the_fast_path_stays_off_after_unload_where_a_layer_of_ours_remains():
    model = pf.get_peft_model(encoder(), pf.LoraConfig(target_modules=["linear1"]))
    layer = model.get_base_model().layers[0]
    layer.linear2 = pf.nn.LoRALinear.from_linear(layer.linear2)
    assert [layer.activation_relu_or_gelu for layer in model.unload().layers][0] == 0


def test_a_module_that_lives_on_under_another_name_cannot_be_saved_whole():
    model = build("t5")
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="instead of shared the model computes with decoder.embed_tokens, enc"):
        pf.get_peft_model(model, pf.LoraConfig(target_modules=["q"], modules_to_save=["shared"]))
    assert [p.requires_grad for p in model.parameters()] == before
    assert not any("lora" in name for name, _ in model.named_modules())
    names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"]
    trained = pf.get_peft_model(model, pf.LoraConfig(target_modules=["q"], modules_to_save=names))
    logits(trained).sum().backward()
    assert any(p.grad is not None for n, p in trained.named_parameters() if "embed_tokens" in n)


@pytest.mark.parametrize("method", ["merge_and_unload", "unload"])
def test_a_head_that_was_trained_stays_untied(method, tmp_path):
    base = llama(tie_word_embeddings=True)
    model = pf.get_peft_model(base, pf.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        base.lm_head.modules_to_save["default"].weight.add_(1)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        bare = getattr(model, method)()
    head, expected = bare.lm_head.weight.detach().clone(), logits(bare)
    bare.save_pretrained(tmp_path)
    assert_same(logits(tf.LlamaForCausalLM.from_pretrained(tmp_path)), expected)
    bare.resize_token_embeddings(104)
    assert torch.equal(bare.lm_head.weight[:97], head)
    assert not torch.equal(bare.lm_head.weight[:97], bare.get_input_embeddings().weight[:97])
    assert_same(logits(bare)[..., :97], expected)


def test_tied_weights_that_were_not_trained_stay_tied():
    model = pf.get_peft_model(llama(tie_word_embeddings=True), pf.LoraConfig(target_modules=["q_proj"]))
    bare = model.merge_and_unload()
    assert bare.config.tie_word_embeddings and bare.lm_head.weight is bare.get_input_embeddings().weight


@pytest.mark.parametrize(
    "options",
    [dict(target_modules=["q_proj", "lm_head"]), dict(target_modules=["q_proj"], modules_to_save=["lm_head"])],
)
def test_resizing_keeps_trained_embeddings(options):
    model = pf.get_peft_model(llama(tie_word_embeddings=False), pf.LoraConfig(**options))
    liven(model)
    expected = logits(model)
    with pytest.raises(ValueError, match="would replace the output embeddings and remove the adapter"):
        model.resize_token_embeddings(104)
    assert torch.equal(logits(model), expected)
    model.resize_token_embeddings(97)  # the current size, so nothing is replaced
    model.resize_token_embeddings()
    assert torch.equal(logits(model), expected)
    free = adapted(pf, "llama")
    free.resize_token_embeddings(104)
    assert logits(free).shape[-1] == 104 and free.get_nb_trainable_parameters()[0] > 0


def test_falcons_own_linear_class_is_fused():
    sizes = dict(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    base = tf.FalconForCausalLM(tf.FalconConfig(**sizes, bias=True))
    config = pf.LoraConfig(target_modules=["query_key_value", "dense_h_to_4h"], init_lora_weights=False)
    model = pf.get_peft_model(base, config).eval()
    expected = logits(model)
    report = pf.fuse(model)
    assert len(report.fused) == 2 and report.calls() == {"fused": 2}
    pf.unfuse(model)
    assert_same(expected, logits(model))


def test_a_decoder_with_virtual_tokens_does_not_classify_by_padding():
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    base = tf.LlamaForSequenceClassification(tf.LlamaConfig(**sizes, pad_token_id=0, initializer_range=0.3))
    model = pf.get_peft_model(base, pf.PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")).eval()
    ids, zeros = IDS[:1], torch.zeros(1, 3, dtype=torch.long)
    right = torch.cat([ids, zeros], 1)
    with pytest.raises(ValueError, match="attention_mask: .*classifies by the last token of a row.*pad on the left"):
        model(input_ids=right, attention_mask=(right > 0).long())
    left = torch.cat([zeros, ids], 1)
    inputs = dict(input_ids=left, attention_mask=(left > 0).long())
    assert_same(model(**inputs).logits, peft.PeftModelForSequenceClassification.forward(model, **inputs).logits)
    encoder = pf.get_peft_model(build("bert"), pf.PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"))
    encoder.eval()  # an encoder classifies by the first place of a row, wherever the padding is
    padded = encoder(input_ids=right, attention_mask=(right > 0).long()).logits
    assert_same(padded, encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    assert not torch.allclose(padded, encoder(input_ids=ids[:, 1:], attention_mask=torch.ones_like(ids[:, 1:])).logits)


def test_names_that_are_pefts():
    for name in ("LoraConfig", "IA3Config", "PromptTuningInit", "TaskType", "get_peft_model_state_dict", "EvaConfig"):
        assert getattr(pf, name) is getattr(peft, name)
    with pytest.raises(AttributeError, match="'pypeft_fast' has no attribute 'Nothing', and neither has peft"):
        _ = pf.Nothing


def test_prefix_tuning_finds_the_last_token_itself():
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    base = tf.LlamaForSequenceClassification(tf.LlamaConfig(**sizes, pad_token_id=0, initializer_range=0.3))
    model = pf.get_peft_model(base, pf.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")).eval()
    padded = torch.cat([IDS[:1], torch.zeros(1, 3, dtype=torch.long)], 1)
    expected = model(input_ids=IDS[:1], attention_mask=torch.ones_like(IDS[:1])).logits
    assert_same(model(input_ids=padded, attention_mask=(padded > 0).long()).logits, expected)


class Initialised(nn.Module):
    """Initialises a weight in __init__, and calls its layers through a loop and through checkpoint."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.normal_(self.fc1.weight)
        self.head.weight = self.fc2.weight

    def forward(self, x):
        for layer in (self.fc1, self.fc2):
            x = layer(x).relu()
        return torch.utils.checkpoint.checkpoint(self.head, x, use_reentrant=False)


def test_layers_that_are_called_otherwise_than_by_name_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pf.get_peft_model(Initialised(), pf.LoraConfig(target_modules=["fc1"]))
        model = pf.get_peft_model(Initialised(), pf.LoraConfig(target_modules=["fc1"], modules_to_save=["head"]))
    model(torch.randn(2, 8)).sum().backward()
    assert model.base_model.model.head.modules_to_save["default"].weight.grad.any()


def test_loading_does_not_warn_of_the_config(tmp_path):
    with pytest.warns(UserWarning, match="matches no module"):
        model = pf.get_peft_model(llama(), pf.LoraConfig(target_modules=["q_proj", "nothing_like_it"]))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "target_modules")
        loaded = pf.PeftModel.from_pretrained(llama(), tmp_path)
        loaded.load_adapter(tmp_path, "second")


def test_a_safe_merge_does_not_say_that_all_is_merged_already():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "All adapters are already merged")
        adapted(pf, "llama").merge_and_unload(safe_merge=True)


def test_many_modules_to_save_are_looked_up_in_one_pass():
    """With four times as many blocks there are about four times as many look-ups, not sixteen times."""
    counted = []

    class Named(str):
        def endswith(self, *args):
            counted.append(1)
            return super().endswith(*args)

    class Blocks(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.blocks = nn.ModuleList([nn.LayerNorm(2) for _ in range(n)])

        def named_modules(self, *args, **kwargs):
            return ((Named(name), module) for name, module in super().named_modules(*args, **kwargs))

    counts = []
    for n in (10, 40):
        counted.clear()
        check_before(Blocks(n), pf.LoraConfig(modules_to_save=["7"]), "default")
        counts.append(len(counted))
    assert counts[1] < 6 * counts[0]
