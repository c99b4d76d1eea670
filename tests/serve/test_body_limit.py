"""A body that arrives too slowly is refused, in OpenAI's form; a whole body is not timed."""

import asyncio
import json

import pytest

from pypeft_fast.serve.body_limit import BodyLimit


async def app(scope, receive, send):
    """Reads the body as FastAPI does, which turns an Exception into another answer; then waits for the client's end."""
    try:
        while (await receive()).get("more_body"):
            pass
    except Exception as error:
        raise AssertionError("FastAPI would answer 400") from error
    await send({"type": "http.response.start", "status": 200, "headers": []})
    assert (await receive())["type"] == "http.disconnect"


def answer(messages, most=100, ends=9):
    """(status, body) of the answer to messages [(seconds before it, message)]. The server ends after `ends` seconds."""
    sent, waiting = [], iter(messages)

    async def receive():
        pause, message = next(waiting)
        await asyncio.sleep(pause)
        return message

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [], "method": "POST", "path": "/"}

    async def run():
        ending = asyncio.Event()
        asyncio.get_running_loop().call_later(ends, ending.set)
        await asyncio.wait_for(BodyLimit(app, most, 0.1, ending)(scope, receive, send), 5)

    asyncio.run(run())
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def part(size, more=True):
    return {"type": "http.request", "body": b" " * size, "more_body": more}


GONE = {"type": "http.disconnect"}


@pytest.mark.parametrize("slow", [[(0, part(1)), (9, part(1))], [(0.02, part(1))] * 90, [(9, part(1, False))]])
def test_a_body_that_trickles_is_refused(slow):
    status, body = answer(slow)
    assert status == 408 and "has not arrived within 0.1 seconds" in json.loads(body)["error"]["message"]


def test_the_time_ends_with_the_body():
    assert answer([(0, part(1)), (0, part(9, False)), (0.2, GONE)])[0] == 200


def test_a_body_of_unknown_length_is_refused_where_it_exceeds_the_limit():
    assert answer([(0, part(60)), (0, part(60))])[0] == 413


def test_a_body_that_has_not_arrived_when_the_server_ends_does_not_hold_it():
    status, body = answer([(0, part(1)), (9, part(1))], ends=0.02)
    assert status == 503 and "shutting down" in json.loads(body)["error"]["message"]
    assert answer([(0, part(1, False)), (0.05, GONE)], ends=0.02)[0] == 200  # an open request goes on
