"""The server driven by the openai package: streaming and not, three adapters and the base model in one batch."""

import asyncio

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.serve.conftest import NAMES

QUESTIONS = ("what is the capital of france", "why", "who are you and what is the light in the sky and why is it blue")


@pytest.fixture
def client(shared):
    return OpenAI(base_url=f"{shared[0]}/v1", api_key="none", max_retries=0)


def asked(text):
    return [{"role": "user", "content": text}]


def test_an_answer_is_that_of_generate_with_the_adapter_alone(client, generated):
    for name in (*NAMES, "tiny"):
        tokens, text = generated(None if name == "tiny" else name, "hello")
        reply = client.chat.completions.create(model=name, messages=asked("hello"), max_tokens=12, temperature=0)
        assert reply.choices[0].message.content == text
        assert reply.choices[0].finish_reason == ("length" if len(tokens) == 12 else "stop")
        assert reply.model == name and reply.usage.completion_tokens == len(tokens)
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + len(tokens)


def test_adapters_concurrently_streaming_and_not_answer_as_each_alone(shared, generated, monkeypatch):
    url, scheduler = shared

    async def ask(client, name, text, stream, most):
        options = dict(model=name, messages=asked(text), max_tokens=most, temperature=0)
        if not stream:
            return (await client.chat.completions.create(**options)).choices[0].message.content
        pieces = []
        async for chunk in await client.chat.completions.create(**options, stream=True):
            pieces.append(chunk.choices[0].delta.content or "")
        return "".join(pieces)

    cases = [
        (name, text, stream, most)
        for name in (*NAMES, "tiny")
        for text in QUESTIONS
        for stream, most in ((True, 24), (False, 9))
    ]

    async def all_at_once():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, *case) for case in cases))

    most_rows, step = [0], scheduler._batch.step

    def counted():
        most_rows.append(len({row.adapter.name for row in scheduler._batch.rows}))
        return step()

    monkeypatch.setattr(scheduler._batch, "step", counted)
    answers = asyncio.run(all_at_once())
    expected = [generated(None if name == "tiny" else name, text, most)[1] for name, text, _, most in cases]
    assert answers == expected and len(set(expected)) > len(cases) // 2
    assert max(most_rows) == 4  # all adapters and the base model in one step


def test_a_stream_has_a_role_an_end_and_on_request_the_usage(client, generated):
    tokens, text = generated("desk", "why")
    options = dict(model="desk", messages=asked("why"), max_completion_tokens=12, temperature=0, stream=True)
    chunks = list(client.chat.completions.create(**options, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(tokens)
    assert len({chunk.id for chunk in chunks}) == 1


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["tiny", *NAMES]
    assert client.models.retrieve("desk").parent == "tiny"


def test_an_unknown_adapter_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="sales", messages=asked("hello"))
    assert raised.value.code == "model_not_found" and raised.value.param == "model"
    assert "there are: tiny, desk, billing, returns" in raised.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sales")


def test_a_conversation_and_content_in_parts(client, generated):
    parts = [{"type": "text", "text": "what is "}, {"type": "text", "text": "blue"}]
    first = client.chat.completions.create(
        model="desk", messages=[{"role": "user", "content": parts}], max_tokens=12, temperature=0
    )
    assert first.choices[0].message.content == generated("desk", "what is blue")[1]
    history = [*asked("what is blue"), first.choices[0].message, *asked("why")]
    second = client.chat.completions.create(model="desk", messages=history, max_tokens=2)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_sampling_follows_the_seed_in_any_company(client):
    def drawn(seed, **options):
        options = dict(model="desk", messages=asked("hello"), max_tokens=16, seed=seed) | options
        return client.chat.completions.create(**options).choices[0].message.content

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1, top_p=1e-9) == drawn(2, top_p=1e-9) == drawn(3, temperature=0) == drawn(4, temperature=1e-300)


def test_a_stop_string_ends_the_answer_before_it(client, generated):
    _, text = generated("desk", "hello", 30)
    stop = text[5:8]
    options = dict(model="desk", messages=asked("hello"), max_tokens=30, temperature=0, stop=["nowhere", stop])
    reply = client.chat.completions.create(**options)
    assert reply.choices[0].message.content == text[: text.index(stop)]
    assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens < 30
    pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**options, stream=True)]
    assert "".join(pieces) == text[: text.index(stop)]


def test_a_null_option_of_streams_is_one_that_is_left_out(shared):
    body = {"model": "desk", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "stream": True}
    found = httpx.post(f"{shared[0]}/v1/chat/completions", json=body | {"stream_options": {"include_usage": None}})
    assert found.status_code == 200 and found.text.endswith("data: [DONE]\n\n") and '"usage":{' not in found.text
