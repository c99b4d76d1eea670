"""Four small architectures with random weights, adapters of PEFT and of this package on them, and their outputs."""

import copy

import peft
import torch
import transformers as tf

import pypeft_fast as pf
from tests.device import DEVICE

IDS = torch.tensor([[5, 17, 42, 8, 96, 3, 1], [11, 2, 2, 77, 60, 31, 9], [1, 4, 9, 16, 25, 36, 49]])
TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "bert": ["query", "dense"],
    "t5": ["q", "wo"],
}


def build(kind):
    torch.manual_seed(0)
    if kind == "llama":
        config = tf.LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, attention_bias=True, initializer_range=0.3,
        )  # fmt: skip
        model = tf.LlamaForCausalLM(config)
    elif kind == "gpt2":
        model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    elif kind == "bert":
        config = tf.BertConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            initializer_range=0.3,
        )  # fmt: skip
        model = tf.BertForSequenceClassification(config)
    else:
        config = tf.T5Config(
            vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        model = tf.T5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)  # a lost bias of zeros would not be noticed
    return model.eval()


def tied():
    """A Llama with tied weights: its head is its embedding."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config).eval()


def logits(model, ids=IDS, **kwargs):
    if "T5" in type(getattr(model, "get_base_model", lambda: model)()).__name__:
        kwargs["decoder_input_ids"] = ids[:, :4]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), **kwargs).logits


def generated(model, **options):
    """Generates greedily; returns the tokens, and their logits [steps, B, vocabulary]."""
    options = dict(attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, pad_token_id=0) | options
    output = model.generate(input_ids=IDS, output_logits=True, return_dict_in_generate=True, **options)
    return output.sequences, torch.stack(output.logits)


def adapted(library, kind, seed=1, adapter="default", dtype=torch.float32, **options):
    """The architecture with an adapter of `library` (pypeft_fast or peft) with random values."""
    config = dict(r=4, lora_alpha=8, target_modules=TARGETS[kind]) | options
    model = build(kind).to(dtype)
    torch.manual_seed(seed)
    model = library.get_peft_model(model, library.LoraConfig(**config), adapter)
    liven(model, seed)
    return model.eval()


def liven(model, seed=1, adapter="default"):
    """Adds random values to all parameters that train. The seed depends on the name: the same in both libraries."""
    for name, parameter in sorted(model.named_parameters(), key=lambda item: plain(item[0])):
        if parameter.requires_grad and ("lora_" not in name or f".{adapter}." in name):
            generator = torch.Generator(DEVICE).manual_seed(hash_of(plain(name)) + seed)
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def plain(name):
    return name.replace(".base_layer.", ".")


def hash_of(text):
    return sum((i + 1) * byte for i, byte in enumerate(text.encode())) % 2**31


def pair(kind, **options):
    """(ours, theirs): the same model and adapter values in both libraries."""
    return adapted(pf, kind, **copy.deepcopy(options)), adapted(peft, kind, **copy.deepcopy(options))


def assert_fused(*models):
    """Every adapter layer of these models was called and ran fused; PEFT's forward would give the same values."""
    for model in models:
        report = pf.fuse(model)
        assert report.fused and set(report.calls()) == {"fused"}, report.calls()
        assert not report.left and not report.never_called(), str(report)


def assert_same(a, b):
    """|a - b| <= 1e-5 + 1e-6 |b|, the rounding of logits of about 7 after two layers in float32."""
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


def assert_as_exact(ours, model):
    """Logits in float32 are the model's as in `assert_same`, or at most twice as far as these from those in float64.

    Products that add in another order may differ by more than `assert_same` allows, although neither is less exact.
    """
    with torch.no_grad():
        eager = logits(model)
        if torch.allclose(ours, eager, rtol=1e-6, atol=1e-5):
            return
        exact = logits(copy.deepcopy(model).double())
        assert (ours - exact).norm() <= 2 * (eager - exact).norm() < 1e-4 * exact.norm()
