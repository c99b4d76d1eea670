"""Packed rows have all examples, and the loss and the gradients of these examples in rows of their own."""

import random

import pytest
import torch
import transformers

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.packing import joined, pack, use_packed
from pypeft_fast.finetune.data.tokens import IGNORE, Collator, Encoded
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.ready import make_ready
from pypeft_fast.finetune.training.settings import Settings

COLLATOR = Collator(0)


def example(length, start=0):
    ids = [(start + i) % 90 + 1 for i in range(length)]
    return Encoded(ids, [IGNORE, *ids[1:]])


def examples_of(row):
    """The token ids of the examples in a packed row."""
    starts = [i for i, position in enumerate(row.positions) if position == 0]
    return [row.input_ids[a:b] for a, b in zip(starts, [*starts[1:], len(row.input_ids)], strict=True)]


def test_every_example_is_in_one_row():
    rng = random.Random(0)
    examples = [example(rng.randint(2, 50), start=i) for i in range(300)]
    rows = pack(examples, 64)
    assert sorted(ids for row in rows for ids in examples_of(row)) == sorted(e.input_ids for e in examples)
    assert all(len(row.input_ids) == len(row.labels) == len(row.positions) <= 64 for row in rows)
    assert len(rows) <= 1.05 * sum(len(e.input_ids) for e in examples) / 64 + 1
    assert pack(examples, 64) == rows


def test_rows_of_known_lengths():
    rows = pack([example(n) for n in (3, 10, 7, 4, 6)], 10)
    assert [[len(ids) for ids in examples_of(row)] for row in rows] == [[10], [7, 3], [6, 4]]
    assert [len(row.input_ids) for row in pack([example(10), example(10)], 10)] == [10, 10]


def test_the_first_token_of_an_example_is_no_target():
    row = joined([Encoded([1, 2], [1, 2]), Encoded([3, 4, 5], [3, IGNORE, 5])])
    assert row == Encoded([1, 2, 3, 4, 5], [IGNORE, 2, IGNORE, IGNORE, 5], [0, 1, 0, 1, 2])


COMMON = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
CONFIGS = {
    "llama": transformers.LlamaConfig(**COMMON),
    "mistral with a window": transformers.MistralConfig(**COMMON, sliding_window=5),
    "qwen3": transformers.Qwen3Config(**COMMON, head_dim=8),
    "gpt2": transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "neox": transformers.GPTNeoXConfig(**COMMON),
}
STATEFUL = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, state_size=4)


def made(config, attention="sdpa"):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def loss_and_gradients(model, rows):
    """The mean loss over all target tokens of these rows, and its gradients."""
    model.zero_grad()
    loss = model(**COLLATOR(rows)).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def check_equal(model, alone, packed):
    (loss, grads), (expected, theirs) = loss_and_gradients(model, packed), loss_and_gradients(model, alone)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert grads.keys() == theirs.keys() and any(grad.abs().max() > 0.01 for grad in grads.values())
    for name in grads:
        torch.testing.assert_close(grads[name], theirs[name], rtol=1e-4, atol=1e-6)


EXAMPLES = [example(n, start=7 * n) for n in (13, 3, 8, 5, 12)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_and_the_gradients_of_packed_rows(name, attention):
    model, rows = made(CONFIGS[name], attention), pack(EXAMPLES, 24)
    assert [len(row.input_ids) for row in rows] == [24, 17]  # the second is padded
    use_packed(model, EXAMPLES, COLLATOR)
    check_equal(model, EXAMPLES, rows)
    check_equal(model, EXAMPLES[:1], [joined(EXAMPLES[:1])])


def one_mask(batch):
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def positions_go_on(batch):
    return batch | {"position_ids": torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])}


@pytest.mark.parametrize("fault", [one_mask, positions_go_on])
def test_a_planted_fault_is_found(monkeypatch, fault):
    model, real = made(CONFIGS["llama"]), Collator.__call__
    use_packed(model, EXAMPLES, COLLATOR)
    plain = lambda self, rows: real(self, rows) if rows[0].positions is None else fault(real(self, rows))  # noqa: E731
    monkeypatch.setattr(Collator, "__call__", plain)
    with pytest.raises(AssertionError):
        check_equal(model, EXAMPLES, pack(EXAMPLES, 24))
    with pytest.raises(UserError, match="the examples of a row would attend to each other"):
        use_packed(model, EXAMPLES, COLLATOR)


def test_a_model_with_a_state_is_refused():
    with pytest.raises(UserError, match="`packing` cannot be used with this model"):
        use_packed(made(STATEFUL, None), EXAMPLES, COLLATOR)


def test_with_an_adapter_on_fused_layers(tiny_model, dialogues):
    settings = Settings(str(tiny_model), str(dialogues), rank=4, dropout=0.0, packing=True, max_length=80)
    ready = make_ready(settings, load_data(settings.data))
    assert 1 < len(ready.data.packed) < len(ready.data.train) / 2 and ready.data.rows is ready.data.packed
    for name, parameter in ready.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    check_equal(ready.model, ready.data.train, ready.data.packed)
