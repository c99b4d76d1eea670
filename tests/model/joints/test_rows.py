"""Rows of several adapters in one batch: per call, and refused for layers whose rows are not the rows of the batch."""

import threading

import pytest
import torch
import transformers as tf
from torch import nn

import pypeft_fast as pf
from pypeft_fast.model.joints import rows
from pypeft_fast.model.layers import lora_rows
from tests.model.zoo import IDS, adapted, assert_same, build, liven, logits


def two(make, targets, **options):
    """A model with the adapters "one" and "two", both with random values."""

    def config():
        return pf.LoraConfig(target_modules=targets, init_lora_weights=False, **options)

    model = pf.get_peft_model(make(), config(), adapter_name="one")
    model.add_adapter("two", config())
    return model.eval()


def test_concurrent_calls_use_their_own_rows():
    torch.manual_seed(0)
    model = two(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), ["0", "2"])
    x, wanted, wrong = torch.randn(16, 64), {}, []
    with torch.no_grad():
        for name in ("one", "two"):
            model.set_adapter(name)
            wanted[name] = model(x)
    assert (wanted["one"] - wanted["two"]).abs().max() > 0.1

    def serve(name):
        with torch.no_grad():
            wrong.extend((model(x, adapter_names=[name] * 16) - wanted[name]).abs().max() > 1e-4 for _ in range(200))

    threads = [threading.Thread(target=serve, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 400 and not any(wrong)


def test_pefts_own_layers_and_saved_modules_get_the_rows_too():
    model = two(lambda: build("bert"), ["query", "word_embeddings"], modules_to_save=["classifier"])
    liven(model, 3, "one")
    alone = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = logits(model)
    with model.disable_adapter():
        alone["__base__"] = logits(model)
    names = ["two", "__base__", "one"]
    for _ in range(2):  # hooks are added once, and do nothing without names
        mixed = logits(model, adapter_names=names)
        for row, name in enumerate(names):
            assert_same(mixed[row], alone[name][row])
        model.set_adapter("two")
        assert_same(logits(model), alone["two"])
    assert rows.current() is None


def fsmt():
    sizes = dict(encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4)
    config = tf.FSMTConfig(
        langs=["en", "de"], src_vocab_size=64, tgt_vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1,
        max_position_embeddings=64, **sizes,
    )  # fmt: skip
    return tf.FSMTForConditionalGeneration(config)


@pytest.mark.parametrize("length", [2, 8])
def test_a_time_major_model_is_refused(length):
    """Also if the batch has the length of the text, when the number of rows does not show the layout."""
    model = two(fsmt, ["q_proj", "v_proj"])
    ids = torch.randint(3, 64, (2, length))
    with pytest.raises(ValueError, match=r"rows of model\.\S+ are not those of the batch: the model is time-major"):
        model(input_ids=ids, decoder_input_ids=ids[:, :2], adapter_names=["one", "two"])


def test_a_layer_that_is_not_batch_first_is_refused():
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0)
    model = two(lambda: nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), ["linear1"])
    with pytest.raises(ValueError, match="layers.0.linear1 are not those of the batch: the model is time-major"):
        model(torch.randn(2, 2, 32), adapter_names=["one", "two"])


class Experts(nn.Module):
    """Experts as in models of remote code: each expert gets the tokens that were routed to it, in another order."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(2)])

    def forward(self, x):
        tokens = x.flatten(0, 1)
        return sum(expert(tokens[[1, 0]]) for expert in self.experts)


class Packed(nn.Module):
    """A vision tower, which has the patches of all images in one matrix."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x):
        return self.blocks[0](x.flatten(0, 1)[:2])


@pytest.mark.parametrize(
    "make,targets,words",
    [
        (Experts, ["experts.0", "experts.1"], "they are the tokens that were sent to one expert"),
        (Packed, ["blocks.0"], "its input is a matrix, whose rows may be any tokens"),
    ],
)
def test_packed_rows_are_refused_though_their_number_fits(make, targets, words):
    model = two(make, targets)
    with pytest.raises(ValueError, match=words):
        model(torch.randn(2, 1, 8), adapter_names=["one", "two"])


def test_images_of_a_language_model_are_refused():
    class Config:
        model_type, image_token_id = "seeing", 5

    class Seeing(nn.Module):
        config = Config()

        def __init__(self):
            super().__init__()
            self.vision_tower, self.language_model = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, images):
            return self.language_model(x), self.vision_tower(images)

    model, x = two(Seeing, ["vision_tower", "language_model"]), torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match="vision_tower are not those of the batch: they are images"):
        model(x, x, adapter_names=["one", "two"])
    model = two(Seeing, ["language_model"])
    alone = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name], images = model(x, x)
    y, same_images = model(x, x, adapter_names=["one", "two"])
    assert_same(y, torch.stack([alone["one"][0], alone["two"][1]]))
    assert torch.equal(same_images, images) and not torch.allclose(alone["one"], alone["two"], atol=1e-2)


def test_rows_of_a_feature_matrix_meet_their_adapters():
    """An MLP over a matrix of features, whose rows are the rows of the batch."""

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x):
            return self.layers[1](self.layers[0](x).relu())

    model, x, alone = two(Mlp, ["layers.0", "layers.1"]), torch.randn(2, 8), {}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = model(x)
    mixed = model(x, adapter_names=["two", "one"])
    assert_same(mixed, torch.stack([alone["two"][0], alone["one"][1]]))


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("how", ["argument", "generation_config"])
def test_beams_keep_their_rows_adapter(kind, how):
    model = two(lambda: build(kind), ["q" if kind == "t5" else "q_proj"])
    options = dict(attention_mask=torch.ones_like(IDS), max_new_tokens=5, do_sample=False, pad_token_id=0)
    if how == "argument":
        options["num_beams"] = 3
    else:
        options["generation_config"] = tf.GenerationConfig(
            num_beams=3, **{k: options.pop(k) for k in list(options)[1:]}
        )
    alone = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = model.generate(input_ids=IDS, **options)
    mixed = model.generate(input_ids=IDS, adapter_names=["two", "one", "two"], **options)
    width = min(t.shape[1] for t in (mixed, *alone.values()))
    for row, name in enumerate(["two", "one", "two"]):
        assert torch.equal(mixed[row, :width], alone[name][row, :width])
    assert not torch.equal(alone["one"][:, :width], alone["two"][:, :width])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_of_ia3(kind):
    targets, feedforward = (["k_proj", "down_proj"], ["down_proj"]) if kind == "llama" else (["c_attn", "c_proj"], [])
    model = build(kind)
    for name in ("one", "two"):
        config = pf.IA3Config(target_modules=targets, feedforward_modules=feedforward)
        if name == "one":
            model = pf.get_peft_model(model, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        model.set_adapter(name)
        liven(model, len(name), name)
    model.eval()
    alone = {}
    for name in ("one", "two"):
        for n, p in model.named_parameters():
            if n.endswith(f"ia3_l.{name}"):
                p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n) + ord(name[0])))
        model.set_adapter(name)
        alone[name] = logits(model)
    mixed = logits(model, adapter_names=["two", "one", "__base__"])
    assert_same(mixed[0], alone["two"][0])
    assert_same(mixed[1], alone["one"][1])
    assert_same(mixed[2], logits(build(kind))[2])
    assert (alone["one"] - alone["two"]).abs().max() > 1e-2


def test_bad_names():
    model = adapted(pf, "llama")
    for names, error, words in (
        ("default", TypeError, "must be a list of names, one a row"),
        (["nope", "default", "default"], ValueError, "non-existing adapter.*nope"),
        (["default"] * 2, ValueError, "but got 2 and 3 respectively, the rows of .*q_proj"),
    ):
        with pytest.raises(error, match=words):
            logits(model, adapter_names=names)
    with pytest.raises(ValueError, match="LoHa\\w* cannot apply another adapter to each row|Linear cannot apply"):
        other = pf.get_peft_model(build("llama"), pf.LoHaConfig(target_modules=["q_proj"])).eval()
        logits(other, adapter_names=["default"] * 3)


def test_rows_and_trained_tokens():
    """PEFT passes adapter_names to the layer of trained tokens through the module that wraps the layer."""
    config = dict(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 42], init_lora_weights=False)
    model = pf.get_peft_model(build("llama"), pf.LoraConfig(**config), "one")
    model.add_adapter("two", pf.LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += torch.randn(parameter.shape)
    alone = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = logits(model.eval())
    mixed = logits(model, adapter_names=["two", "one", "two"])
    for row, name in enumerate(["two", "one", "two"]):
        assert_same(mixed[row], alone[name][row])


def test_num_beams_does_not_multiply_the_rows_of_a_forward():
    model = two(lambda: build("llama"), ["q_proj"])
    model.generation_config.num_beams = 2
    with pytest.raises(ValueError, match="but got 2 and 4 respectively"):
        model(IDS[[0, 1, 2, 0]], adapter_names=["one", "two"])


@pytest.mark.parametrize("casts,dtype", [(True, torch.float32), (False, torch.bfloat16)])
def test_rows_of_adapters_in_the_bases_dtype_are_multiplied_in_it(casts, dtype, monkeypatch):
    """With autocast_adapter_dtype=False a row's adapter is half the bytes, which bound a batch of many adapters."""
    torch.manual_seed(0)
    config = pf.LoraConfig(r=8, target_modules=["0"], init_lora_weights=False)
    base = nn.Sequential(nn.Linear(64, 48)).bfloat16()
    model = pf.get_peft_model(base, config, "one", autocast_adapter_dtype=casts)
    model.add_adapter("two", config, autocast_adapter_dtype=casts)
    seen, real = [], lora_rows.multi_lora_linear_unchecked

    def spied(x, weight, bias, A, B, *rest, **options):
        seen.extend(tensor.dtype for tensor in (*A, *B))
        return real(x, weight, bias, A, B, *rest, **options)

    monkeypatch.setattr(lora_rows, "multi_lora_linear_unchecked", spied)
    x, alone = torch.randn(4, 64).bfloat16(), {}
    with torch.no_grad():
        for name in ("one", "two"):
            model.set_adapter(name)
            alone[name] = model.eval()(x)
        names = ["one", "two", "two", "one"]
        y = model(x, adapter_names=names)
    assert set(seen) == {dtype}
    for row, name in enumerate(names):
        torch.testing.assert_close(y[row], alone[name][row], rtol=0.02, atol=0.02)
