"""`pypeft-fast serve`: a process that answers and ends by SIGTERM, and the mistakes on its command line."""

import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.cli.test_bad_input import mistake
from tests.cli.test_without_the_extra import hide

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-this-test"


def test_it_serves_and_ends_by_sigterm(serving, tiny_model, tiny_adapter):
    process, url = serving("--adapter", f"desk={tiny_adapter}")
    assert url.startswith("http://127.0.0.1:")
    with httpx.Client(base_url=url, timeout=60) as client:
        assert [its["id"] for its in client.get("/v1/models").json()["data"]] == [tiny_model.name, "desk"]
        body = {"model": "desk", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        assert client.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] <= 5
        assert client.put("/v1/models/new", headers={"Authorization": "Bearer x"}).status_code == 403
        with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True, "max_tokens": 200}) as answer:
            lines = answer.iter_lines()
            assert '"role":"assistant"' in next(lines)
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"  # it finishes
    assert process.wait(30) == -signal.SIGTERM
    assert "Traceback" not in process.stdout.read()


def test_adapters_are_added_over_http_if_asked_for(serving, tiny_adapter):
    process, url = serving("--adapter-folder", tiny_adapter.parent, PYPEFT_FAST_TOKEN=TOKEN)
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.put(f"/v1/models/{tiny_adapter.name}").status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.put(f"/v1/models/{tiny_adapter.name}", headers=headers).status_code == 201
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    assert process.wait(30) == 130 and "Traceback" not in said and TOKEN not in said


def test_without_the_extra_the_remedy_is_named(command, monkeypatch, tiny_model):
    run = ("serve", "--model", tiny_model)
    hide(monkeypatch, "fastapi", "uvicorn", "prometheus_client")
    remedy = 'not installed here; run: pip install "pypeft-fast[serve]"\n'
    mistake(command(*run), f"pypeft-fast serve: this needs fastapi, uvicorn, prometheus-client, {remedy}")


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "prometheus_client"])
def test_each_package_of_the_extra_is_named(command, monkeypatch, tiny_model, module):
    hide(monkeypatch, module)
    mistake(command("serve", "--model", tiny_model), f"this needs {module.replace('_', '-')}, ", "pypeft-fast[serve]")


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(command, tiny_model, monkeypatch):
    monkeypatch.setattr("pypeft_fast.cli.serve.load_base", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mistake(
            command("serve", "--model", tiny_model, "--port", port), f"--host 127.0.0.1 and --port {port}: no server"
        )


@pytest.mark.parametrize("token", [None, "", "short", "with a space in it", "x" * 15, "é" * 20])
def test_changes_need_a_long_token(command, tiny_model, tmp_path, monkeypatch, token):
    monkeypatch.delenv("PYPEFT_FAST_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("PYPEFT_FAST_TOKEN", token)
    run = ("serve", "--model", tiny_model, "--adapter-folder", tmp_path)
    mistake(command(*run), "--adapter-folder needs a token", "export PYPEFT_FAST_TOKEN=")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port", "70000"], "70000 is not a whole number from 0 to 65535"),
        (["--max-batch", "0"], "0 is not a whole number above 0"),
        (["--adapter-folder", "nowhere"], "--adapter-folder nowhere: no such folder"),
        (["--adapter", "nowhere"], "--adapter nowhere: no such folder"),
        (["--host", "999.1.1.1"], "--host 999.1.1.1 and --port 0: no server can listen there"),
    ],
)
def test_mistakes_on_the_command_line(command, tiny_model, options, says):
    mistake(command("serve", "--model", tiny_model, "--port", "0", *options), says)


@pytest.mark.parametrize(
    ("name", "says"),
    [("a b", "is no name"), ("base", "is the name of the base model"), ("../x", "cannot name an adapter")],
)
def test_an_adapter_needs_a_name_that_requests_can_use(command, tiny_model, tiny_adapter, name, says):
    name = tiny_model.name if name == "base" else name
    mistake(command("serve", "--model", tiny_model, "--port", "0", "--adapter", f"{name}={tiny_adapter}"), says)
