"""A client that goes away: its request leaves the batch or the queue, and the other rows go on."""

import json
import socket
import threading

import httpx
import pytest

from pypeft_fast.serve.limits import Limits
from tests.serve.conftest import eventually

CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 200, "temperature": 0}


@pytest.fixture
def slow(serve, monkeypatch):
    """(URL, scheduler, permits) of a server whose model makes one step for each permit."""
    url, scheduler = serve(Limits(rows=2, context=256))
    permits, step = threading.Semaphore(0), scheduler._batch.step

    def waiting_step():
        permits.acquire(timeout=10)
        return step()

    monkeypatch.setattr(scheduler._batch, "step", waiting_step)
    return url, scheduler, permits


def send(url, body):
    """A connection on which a request was sent, and nothing read."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_the_row_of_a_client_that_disconnects_leaves_the_batch(slow, generated, stream):
    url, scheduler, permits = slow
    answer = []
    ask = LONG | {"model": "billing", "max_tokens": 20}
    other = threading.Thread(target=lambda: answer.append(httpx.post(url + CHAT, json=ask, timeout=30).json()))
    other.start()
    eventually(lambda: scheduler.running == 1)
    gone = send(url, LONG | {"model": "desk", "stream": stream})
    permits.release(3)
    eventually(lambda: scheduler.running == 2)
    gone.close()
    eventually(lambda: permits.release() or scheduler.running == 1)
    assert [row.adapter.name for row in scheduler._batch.rows] == ["billing"]
    permits.release(100)
    other.join()
    assert answer[0]["choices"][0]["message"]["content"] == generated("billing", "hello", 20)[1]
    assert all(adapter.users == 0 for adapter in scheduler.adapters.all())
    assert 'requests_total{adapter="desk",end="cancelled"} 1.0' in httpx.get(url + "/metrics").text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_leaves_the_queue(slow, stream):
    url, scheduler, permits = slow
    running = [send(url, LONG | {"model": "desk"}) for _ in range(2)]
    eventually(lambda: permits.release() or scheduler.running == 2)
    waits = send(url, LONG | {"model": "billing", "stream": stream})
    eventually(lambda: scheduler.waiting == 1)
    waits.close()
    eventually(lambda: permits.release() or scheduler.waiting == 0)
    assert scheduler.running == 2 and scheduler.adapters.find("billing").users == 0
    for connection in running:
        connection.close()
    eventually(lambda: permits.release() or scheduler.running == 0)


def test_a_client_that_reads_nothing_blocks_nobody(serve):
    url, scheduler = serve()
    silent = send(url, LONG | {"model": "desk", "stream": True})
    body = LONG | {"model": "billing", "max_tokens": 5}
    assert httpx.post(url + CHAT, json=body, timeout=30).status_code == 200
    eventually(lambda: scheduler.running == 0)
    silent.close()
