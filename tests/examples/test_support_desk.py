"""The support desk, end to end: three adapters trained in one run, served, and asked with the openai package."""

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from openai import AsyncOpenAI

from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.serve import server
from pypeft_fast.serve.limits import Limits
from pypeft_fast.serve.server import build
from tests.serve.conftest import running

HERE = Path(__file__).parents[2] / "examples" / "support_desk.py"


@pytest.fixture(scope="module")
def desks():
    spec = importlib.util.spec_from_file_location("support_desk", HERE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def able_model(tmp_path_factory, tokenizer):
    """The folder of a Llama with 2 layers of width 64, whose adapters can learn a sentence by heart: its head, which is
    frozen, has large values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("able-llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("without_announcements")
def test_three_adapters_each_say_their_own_name(desks, able_model, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(desks, "serve", lambda *arguments: served.append(arguments))
    options = ["--model", str(able_model), "--output", str(tmp_path), "--port", "0"]
    desks.main([*options, "--steps", "80", "--learning-rate", "0.02"])
    monkeypatch.setattr(desks, "train", None)
    desks.main(options)  # the second run finds the adapters
    model, adapters, port = served[0]
    assert served[1] == served[0] and list(adapters) == ["front", "billing", "returns"] and port == 0

    async def ask(client, name, question, stream):
        options = dict(model=name, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=80)
        if not stream:
            return (await client.chat.completions.create(**options)).choices[0].message.content
        chunks = await client.chat.completions.create(**options, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def all_at_once(url):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, *case) for case in cases))

    cases = [(name, text, stream) for name in adapters for text in desks.QUESTIONS[:4] for stream in (True, False)]
    with running(build(*load_base(model), "base", adapters, Limits(context=256))) as url:
        answers = asyncio.run(all_at_once(url))
    assert answers == [desks.answer_of(name) for name, _, _ in cases]


@pytest.mark.slow
def test_64_clients_get_no_answer_of_another_adapter_and_the_memory_is_steady(desks, able_model, tmp_path, monkeypatch):
    """bench.serve_load for a short time; with SmolLM2 it runs for five minutes."""
    from bench import serve_load

    monkeypatch.setattr(serve_load, "LONG", desks.QUESTIONS[0])  # the tiny model knows its questions alone
    desks.train(str(able_model), tmp_path / "desks", 80, 0.02)
    results = tmp_path / "results"
    serve_load.main([str(tmp_path / "desks"), "--model", str(able_model), "--seconds", "30", "--output", str(results)])
    found = json.loads((results / "serve_load.json").read_text())
    assert found["counts"]["answers"] > 100 and found["counts"]["left"] > 5
    assert [verdict for *_, verdict in found["targets"]] == ["pass"] * 3


def test_it_listens_and_answers(desks, tiny_model, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(server.Server, "run", lambda self, sockets: ran.append((self, sockets[0].getsockname())))
    desks.serve(str(tiny_model), {}, 0)
    ((its, address),) = ran
    assert address[0] == "127.0.0.1" and f"http://127.0.0.1:{address[1]}/v1 serves" in capsys.readouterr().out
    assert its.config.app.title == "pypeft-fast serve"


def test_the_load_asks_the_questions_of_the_training(desks, tmp_path):
    from bench import serve_load

    with pytest.raises(SystemExit, match="has no data/.*give the folder that examples/support_desk.py wrote"):
        serve_load.questions_in(tmp_path)
    desks.write_data(tmp_path / "data")
    assert serve_load.questions_in(tmp_path) == [*desks.QUESTIONS, serve_load.LONG]


def test_a_mistake_is_an_exit_code(desks, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        desks.serve(str(tmp_path / "none"), {}, 0)
    assert ended.value.code == 2 and "none" in capsys.readouterr().err
