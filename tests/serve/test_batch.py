"""Rows that join and leave a batch: each row's tokens are those of generate, and the memory follows the rows."""

import inspect

import pytest
import torch

from pypeft_fast.serve.adapters import Adapters
from pypeft_fast.serve.batch import Batch, Row
from pypeft_fast.serve.cache import STEP
from pypeft_fast.serve.limits import Limits
from tests.serve.conftest import NAMES

TEXTS = ("hello", "what is the capital of france and why is the sky blue", "who", "it scatters light")


@pytest.fixture
def adapters(tiny_model, folders):
    from transformers import AutoModelForCausalLM

    made = Adapters(AutoModelForCausalLM.from_pretrained(tiny_model), "tiny", Limits())
    for name, folder in folders.items():
        made.load(name, folder)
    return made


def prompt_of(tokenizer, text):
    return tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]


def join(batch, rows, tokens=10**6):
    """Reads the rows' prompts, so many tokens at a time, and appends their first tokens."""
    reading, logits = batch.begin(rows), None
    while logits is None:
        logits = batch.read(reading, tokens)
    append(rows, logits)


def append(rows, logits):
    for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
        row.answer.append(token)


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_join_and_leave_in_any_order(adapters, tokenizer, generated, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, done = Batch(adapters, 0), []

    def some(n):
        return int(torch.randint(n, (), generator=generator))

    cases = [(name, text) for name in (*NAMES, "tiny") for text in TEXTS]
    waiting = [cases[i] for i in torch.randperm(len(cases), generator=generator)]
    wanted = {}
    while waiting or batch.rows:
        joining = []
        for name, text in waiting[: some(4)]:
            row = Row(adapters.find(name), prompt_of(tokenizer, text), [])
            wanted[row] = generated(None if name == "tiny" else name, text, 5 + some(12))[0]
            joining.append(row)
        waiting = waiting[len(joining) :]
        if joining:
            join(batch, joining, 1 + some(40))
        elif batch.rows:
            append(batch.rows, batch.step())
        done += [row for row in batch.rows if len(row.answer) == len(wanted[row])]
        batch.keep([row for row in batch.rows if row not in done])
        longest = max((len(row.prompt) + len(row.answer) - 1 for row in batch.rows), default=0)
        assert batch.columns == longest  # no column that is padding in all rows
    assert len(done) == len(cases) and all(row.answer == wanted[row] for row in done)


def held(batch):
    """The bytes that the batch keeps."""
    layers = batch._cache.layers if batch._cache is not None else []
    return sum(room.untyped_storage().nbytes() for layer in layers for room in layer._room)


def test_the_memory_shrinks_when_rows_leave(adapters, tokenizer):
    batch = Batch(adapters, 0)
    rows = [Row(adapters.find("desk"), prompt_of(tokenizer, text), []) for text in TEXTS for _ in range(4)]
    for row in rows:
        join(batch, [row])
    for _ in range(2 * STEP):
        append(batch.rows, batch.step())
    full, columns = held(batch), batch.columns
    assert columns > 2 * STEP
    batch.keep(rows[:1])
    assert held(batch) < full / 8
    batch.keep([])
    assert held(batch) == 0 and batch.columns == 0
    join(batch, rows[1:2])
    per_column = held(batch) // (batch.columns + STEP)
    assert held(batch) <= per_column * (batch.columns + STEP)


def test_a_step_copies_no_earlier_columns_while_room_is_left(adapters, tokenizer):
    batch = Batch(adapters, 0)
    row = Row(adapters.find("desk"), prompt_of(tokenizer, "hello"), [])
    join(batch, [row])
    places = [{room.data_ptr() for layer in batch._cache.layers for room in layer._room}]
    for _ in range(STEP):
        append(batch.rows, batch.step())
        places.append({room.data_ptr() for layer in batch._cache.layers for room in layer._room})
    assert sum(a != b for a, b in zip(places, places[1:], strict=False)) <= 1


def test_unwritten_columns_are_zeros(adapters, tokenizer, poisoned):
    batch = Batch(adapters, 0)
    for text in TEXTS:
        row = Row(adapters.find("desk"), prompt_of(tokenizer, text), [])
        join(batch, [row])
    assert batch.step().isfinite().all()


def test_a_model_without_a_cache_of_keys_and_values_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    from pypeft_fast.finetune.errors import UserError

    model = MambaForCausalLM(MambaConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, state_size=2))
    with pytest.raises(UserError, match="decodes rows of decoders"):
        Batch(Adapters(model, "mamba", Limits()), 0)


@pytest.mark.parametrize("kind", ["gpt2", "mistral", "gemma3", "qwen2", "opt", "bloom"])
def test_other_architectures_answer_as_generate(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = dict(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=2
    )
    more = {
        "gpt2": dict(n_positions=64),
        "mistral": dict(intermediate_size=48, num_key_value_heads=2, sliding_window=8),
        "gemma3": dict(intermediate_size=48, num_key_value_heads=2, sliding_window=8, head_dim=8),
        "qwen2": dict(intermediate_size=48, num_key_value_heads=2),
        "opt": dict(ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
        "bloom": {},
    }
    name = {"gemma3": "gemma3_text"}.get(kind, kind)
    config = AutoConfig.for_model(name, **sizes, pad_token_id=0, **more[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    adapters = Adapters(model, kind, Limits())
    batch, rows = Batch(adapters, 0), []
    for length in (3, 14, 7):
        rows.append(Row(adapters.base, torch.randint(3, 50, (length,)).tolist(), []))
        join(batch, rows[-1:], 5)
        append(batch.rows, batch.step())
    for _ in range(8):
        append(batch.rows, batch.step())
    for row in rows:
        count = len(row.answer)
        whole = model.generate(
            torch.tensor([row.prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
        )
        assert row.answer == whole[0, len(row.prompt) :].tolist()


def test_the_cache_is_given_under_the_name_that_the_model_has_for_it(adapters, tokenizer, generated, monkeypatch):
    base = adapters.model.get_base_model()
    original = base.forward
    own = "cache" if "cache" in inspect.signature(original).parameters else "past_key_values"

    def forward(input_ids, attention_mask, position_ids, cache, use_cache, logits_to_keep, **_):  # transformers 5.24
        return original(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{own: cache},
        )

    monkeypatch.setattr(base, "forward", forward)
    batch, row = Batch(adapters, 0), Row(adapters.find(NAMES[0]), prompt_of(tokenizer, TEXTS[0]), [])
    join(batch, [row])
    monkeypatch.undo()
    assert row.answer == generated(NAMES[0], TEXTS[0], 1)[0][:1]
