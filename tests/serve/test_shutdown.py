"""The end of a server: open requests finish within the time that they get, or are told."""

import json
import signal
import socket
import threading

import httpx
import pytest

from pypeft_fast.serve.errors import ApiError
from pypeft_fast.serve.limits import Limits
from pypeft_fast.serve.server import Server, listen
from tests.serve.conftest import eventually, running
from tests.serve.test_disconnect import CHAT, LONG

HALF = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{{"


@pytest.fixture
def start(tiny_model, folders):
    """start(seconds between steps) -> what `build` returns."""
    from pypeft_fast.finetune.base_models import load_base
    from pypeft_fast.serve.server import build

    def built(pause):
        served = build(*load_base(str(tiny_model)), "tiny", folders, Limits(rows=2, context=256))
        step, paused = served.scheduler._batch.step, threading.Event()
        served.scheduler._batch.step = lambda: (paused.wait(pause), step())[1]
        return served

    return built


def asking(url, scheduler, *bodies):
    """The threads of these requests, and their answers as they end, once the server has all requests."""
    answers = {}

    def ask(i, body):
        answers[i] = httpx.post(url + CHAT, json=LONG | body, timeout=60)

    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(bodies)]
    for thread in threads:
        thread.start()
    eventually(lambda: scheduler.running + scheduler.waiting == len(bodies))
    return threads, answers


def test_open_requests_finish(start, generated):
    served = start(0.02)
    bodies = [{"model": name, "max_tokens": 20} for name in ("desk", "billing", "returns")]  # one of them waits
    with running(served, grace=30) as url:
        threads, answers = asking(url, served.scheduler, *bodies)
    for thread in threads:
        thread.join()
    for i, body in enumerate(bodies):
        expected = generated(body["model"], "hello", 20)[1]
        assert answers[i].json()["choices"][0]["message"]["content"] == expected
    assert not served.scheduler.is_alive


def test_requests_that_do_not_finish_in_time_are_told(start):
    served = start(0.1)
    bodies = [{"model": "desk", "stream": True}, {"model": "desk"}, {"model": "billing"}]
    with running(served, grace=1) as url:
        threads, answers = asking(url, served.scheduler, *bodies)
    for thread in threads:
        thread.join()
    streamed = [line.removeprefix("data: ") for line in answers[0].text.splitlines() if line]
    assert json.loads(streamed[0])["choices"][0]["delta"]["role"] == "assistant"
    assert "shutting down" in json.loads(streamed[-1])["error"]["message"]
    for i in (1, 2):
        assert answers[i].status_code == 503 and "shutting down" in answers[i].json()["error"]["message"]
    assert all(adapter.users == 0 for adapter in served.scheduler.adapters.all())
    with pytest.raises(ApiError):
        served.scheduler.call(lambda: None)


def test_a_second_signal_does_not_extend_the_time(start):
    scheduler = start(0).scheduler
    scheduler.start()
    scheduler.drain(0)
    scheduler.drain(1000)
    scheduler._thread.join(10)
    assert not scheduler.is_alive


def test_an_error_of_the_model_ends_its_requests_and_the_server_goes_on(start, monkeypatch):
    served = start(0)

    def out_of_memory():
        raise RuntimeError("no memory is left")

    with running(served) as url:
        with monkeypatch.context() as patch:
            patch.setattr(served.scheduler._batch, "step", out_of_memory)
            failed = httpx.post(url + CHAT, json=LONG | {"model": "desk"}, timeout=30)
            assert failed.status_code == 500 and "no memory is left" in failed.json()["error"]["message"]
        answer = httpx.post(url + CHAT, json=LONG | {"model": "desk", "max_tokens": 3}, timeout=30)
        assert answer.status_code == 200 and httpx.get(url + "/health").json() == {"status": "ok"}
        assert all(adapter.users == 0 for adapter in served.scheduler.adapters.all())


def test_a_second_ctrl_c_tells_the_open_requests_at_once(start, capsys):
    served = start(0.02)
    bodies = [{"model": "desk", "stream": True}, {"model": "desk"}]
    with listen("127.0.0.1", 0) as listening:
        server = Server(served, grace=1000)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        eventually(lambda: server.started)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        threads, answers = asking(url, served.scheduler, *bodies)
        half = socket.create_connection(listening.getsockname())
        half.sendall(HALF.encode())
        server.handle_exit(signal.SIGINT, None)
        assert b"503" in half.recv(100)  # it waits for no body
        server.handle_exit(signal.SIGINT, None)
        for one in (*threads, thread):
            one.join(10)
    assert not thread.is_alive() and "shutting down" in answers[0].text and answers[1].status_code == 503
    half.close()
    assert "Traceback" not in capsys.readouterr().err
