"""Requests with mistakes: each gets an error in OpenAI's form, and the server goes on."""

import contextlib
import json
import socket
import threading

import httpx
import pytest
from pydantic import ValidationError

from pypeft_fast.serve.limits import Limits
from pypeft_fast.serve.requests import ChatRequest
from tests.serve.conftest import eventually

GOOD = {"model": "desk", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def http(shared):
    with httpx.Client(base_url=shared[0], timeout=30) as client:
        yield client
        assert client.post(CHAT, json=GOOD).status_code == 200  # after each mistake the server still answers


def error_of(answer, status):
    """The fields of the error, which must have OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return error


MISTAKES = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": float("nan")}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"seed": 2**64}, "seed"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": "x" * 300}, "stop"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "robot", "content": "hello"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.con"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "half \ud800"}]}, "messages.0.content"),
    ({"model": 5}, "model"),
    ({"model": "x" * 1000}, "model"),
    ({"stream": "yes"}, "stream"),
    ({"top_k": 5}, "top_k"),
    ({"odd\x1b name": 5}, "odd\\x1b name"),
    ({"stop": "\ud800"}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [["a"]]}, "stop"),
    ({"n": True}, "n"),
    ({"presence_penalty": False}, "presence_penalty"),
    ({"messages": [{"role": "user", "content": "a"}] * 5000}, "messages"),
]


@pytest.mark.parametrize(("change", "param"), MISTAKES, ids=lambda value: str(value)[:40].encode("ascii", "replace"))
def test_a_field_with_a_mistake_is_named(http, change, param):
    answer = http.post(CHAT, content=json.dumps(GOOD | change), headers={"Content-Type": "application/json"})
    error = error_of(answer, 400)
    assert error["param"].startswith(param) and param.split(".")[0] in error["message"]


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", '"text"', "null", "\xff", "[" * 100_000, '{"model": ' + "9" * 5000 + "}", '{"a":' * 50_000],
    ids=lambda body: body[:12],
)
def test_a_body_that_is_no_request(http, body):
    error_of(http.post(CHAT, content=body.encode("latin-1"), headers={"Content-Type": "application/json"}), 400)


MANY = {
    "messages": {"messages": [{"role": "robot"}] * 50_000},
    "texts": {"messages": [{"role": "user", "content": [{"type": "odd"}] * 50_000}]},
    "fields": {f"f{i}": 1 for i in range(60_000)},
    "fields of a message": {"messages": [{"role": "user", "content": "a"} | {f"f{i}": 1 for i in range(60_000)}]},
}


@pytest.mark.parametrize("kind", MANY)
def test_of_many_mistakes_only_the_first_is_looked_for(kind):
    """Each further one would take time in the event loop, in which all other requests wait."""
    with pytest.raises(ValidationError) as error:
        ChatRequest.model_validate(GOOD | MANY[kind])
    assert error.value.error_count() <= 2


def test_the_library_puts_no_words_before_those_of_a_mistake(http):
    error = error_of(http.post(CHAT, json=GOOD | {f"f{i}": 1 for i in range(70)}), 400)
    assert error["message"] == "the body: 73 fields, and an object here has at most 64"


def test_messages_of_errors_hold_no_code_of_the_library(http):
    odd = [{"messages": [{"role": "user", "content": its}]} for its in (5, [5], "\ud800", ["a"])]
    for change in ({"stop": ""}, {"stop": 5}, {"stop": ["a", 5]}, *odd):
        assert (
            "function" not in error_of(http.post(CHAT, content=json.dumps(GOOD | change), headers=JSON), 400)["message"]
        )


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type_than_json(http, kind):
    """A page of another site can send such a body from a browser without asking the server first."""
    answer = http.post(CHAT, content=json.dumps(GOOD), headers={} if kind is None else {"Content-Type": kind})
    assert "Content-Type: application/json" in error_of(answer, 400)["message"]


def test_fields_that_ask_for_nothing_are_accepted(http):
    harmless = {"n": 1, "logprobs": False, "tools": [], "user": "me", "logit_bias": {}}
    assert http.post(CHAT, json=GOOD | harmless | {"temperature": None, "stop": None}).status_code == 200


def test_other_addresses_and_methods(http):
    error_of(http.get("/v1/nothing"), 404)
    error_of(http.get(CHAT), 405)
    error_of(http.post(f"{CHAT}/", json=GOOD), 404)  # no redirect to the host that the client names
    assert error_of(http.post(CHAT, json=GOOD | {"model": "../desk"}), 404)["code"] == "model_not_found"


def test_a_prompt_that_is_longer_than_the_context(http):
    error = error_of(http.post(CHAT, json=GOOD | {"messages": [{"role": "user", "content": "hello " * 300}]}), 400)
    assert error["code"] == "context_length_exceeded" and "at most 256" in error["message"]


def test_an_answer_ends_with_the_context(http):
    text = "a" * 230
    answer = http.post(CHAT, json=GOOD | {"messages": [{"role": "user", "content": text}], "max_tokens": 10_000})
    assert answer.status_code == 200 and answer.json()["usage"]["total_tokens"] <= 256


def raw(http, head, parts=()):
    """What the server answers to these bytes; the parts are sent until the server closes the connection."""
    answer = b""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=20) as connection:
        connection.sendall(head)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(65536):
                answer += more
    return answer


def test_a_body_of_100_megabytes_is_refused_before_it_is_sent(http):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
    answer = raw(http, head.encode())
    assert answer.startswith(b"HTTP/1.1 413") and b'"code":"body_too_large"' in answer


def test_a_body_of_unknown_length_is_read_up_to_the_limit(http):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent = []

    def pieces():
        for _ in range(1600):  # 100 MB
            sent.append(len(piece))
            yield piece

    answer = raw(http, head.encode(), pieces())
    assert answer.startswith(b"HTTP/1.1 413") or answer == b""  # a reset connection may lose the answer
    assert len(sent) < 800
    little_more = (b" " * 65536 for _ in range(17))
    error_of(http.post(CHAT, content=little_more, headers={"Content-Type": "application/json"}), 413)


@pytest.mark.parametrize("length", ["-5", "1e3", "x", "99999999999999999999999"])
def test_a_content_length_that_is_no_number(http, length):
    answer = raw(http, f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))


def test_a_full_queue_refuses_and_serves_what_waits(serve):
    url, scheduler = serve(Limits(rows=1, queue=2, context=256))
    release = threading.Event()
    scheduler.call(lambda: release.wait(20))  # the thread of the model is busy
    with httpx.Client(base_url=url, timeout=30) as client:
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(client.post(CHAT, json=GOOD))) for _ in range(2)]
        for thread in threads:
            thread.start()
        eventually(lambda: scheduler.waiting == 2)
        refusal = client.post(CHAT, json=GOOD)
        assert error_of(refusal, 429)["code"] == "queue_full" and refusal.headers["retry-after"]
        release.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]


def test_a_request_that_the_cache_cannot_hold(serve):
    url, _ = serve(Limits(context=256, cells=60))
    answer = httpx.post(url + CHAT, json=GOOD | {"max_tokens": 200})
    assert error_of(answer, 400)["param"] == "max_tokens"
    assert httpx.post(url + CHAT, json=GOOD | {"max_tokens": 20}).status_code == 200


def test_metrics_and_status_count_and_name_loaded_models_alone(serve):
    url, _ = serve()
    with httpx.Client(base_url=url, timeout=30) as client:
        for model in ("desk", "desk", "tiny", "unknown"):
            client.post(CHAT, json=GOOD | {"model": model})
        metrics = client.get("/metrics").text
        assert 'pypeft_fast_requests_total{adapter="desk",end="length"} 2.0' in metrics
        assert 'pypeft_fast_generated_tokens_total{adapter="desk"} 4.0' in metrics
        assert "pypeft_fast_adapters 3.0" in metrics and "pypeft_fast_waiting_requests 0.0" in metrics
        assert "unknown" not in metrics
        status = client.get("/status").json()
        assert [its["name"] for its in status["adapters"]] == ["tiny", "desk", "billing", "returns"]
        assert status["running"] == status["waiting"] == 0 and status["tokens_a_second"] > 0
        page = client.get("/")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "http" not in page.text.replace("httpd", "")  # nothing from elsewhere
