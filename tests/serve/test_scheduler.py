"""The scheduler between two steps: long prompts in parts, clients that leave meanwhile, and an error that ends it."""

import threading

import httpx
import pytest

from pypeft_fast.serve.limits import Limits
from tests.serve.conftest import eventually
from tests.serve.test_disconnect import CHAT, LONG, send

LONG_PROMPT = [{"role": "user", "content": "what is the capital of france " * 6}]


def test_the_other_rows_make_steps_while_a_long_prompt_is_read(serve, generated):
    url, scheduler = serve(Limits(context=256, prefill=4))
    order, step, read = [], scheduler._batch.step, scheduler._batch.read
    scheduler._batch.step = lambda: (order.append("step"), step())[1]
    scheduler._batch.read = lambda *arguments: (order.append("read"), read(*arguments))[1]
    answers = {}

    def ask(name, body):
        answers[name] = httpx.post(url + CHAT, json=LONG | {"model": name} | body, timeout=60).json()

    first = threading.Thread(target=ask, args=("billing", {"max_tokens": 150}))
    first.start()
    eventually(lambda: order.count("step") >= 3)
    ask("desk", {"messages": LONG_PROMPT, "max_tokens": 12})
    first.join()
    text = LONG_PROMPT[0]["content"]
    assert answers["desk"]["choices"][0]["message"]["content"] == generated("desk", text, 12)[1]
    assert answers["billing"]["choices"][0]["message"]["content"] == generated("billing", "hello", 150)[1]
    reads = [i for i, what in enumerate(order) if what == "read"]
    between = [b - a for a, b in zip(reads, reads[1:], strict=False)]
    assert len(reads) > 10 and between[-8:] == [2] * 8  # a step after each part


def test_a_prompt_whose_client_leaves_is_read_no_further(serve):
    url, scheduler = serve(Limits(context=256, prefill=1))
    permits, read = threading.Semaphore(0), scheduler._batch.read
    scheduler._batch.read = lambda *arguments: (permits.acquire(timeout=10), read(*arguments))[1]
    gone = send(url, LONG | {"model": "desk", "messages": LONG_PROMPT})
    eventually(lambda: scheduler.running == 1)
    permits.release(3)
    gone.close()
    eventually(lambda: permits.release() or scheduler.running == 0)
    assert not scheduler._batch.rows and scheduler.adapters.find("desk").users == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_program_ends_the_server_and_tells_its_callers(tiny_model, folders):
    from pypeft_fast.finetune.base_models import load_base
    from pypeft_fast.finetune.errors import UserError
    from pypeft_fast.serve.errors import ApiError
    from pypeft_fast.serve.server import Server, build, listen

    served = build(*load_base(str(tiny_model)), "tiny", folders, Limits(context=256))
    raised = []

    def run(server, listening):
        try:
            server.run(sockets=[listening])
        except UserError as error:
            raised.append(str(error))

    def wrong():
        raise AssertionError("a mistake of the program")

    with listen("127.0.0.1", 0) as listening:
        server = Server(served, 5)
        thread = threading.Thread(target=run, args=(server, listening))
        thread.start()
        eventually(lambda: server.started)
        future = served.scheduler.call(wrong)
        with pytest.raises(ApiError):
            future.result(10)
        thread.join(20)
    assert not thread.is_alive() and "has ended the thread of the model" in raised[0]


def test_an_idle_server_holds_no_cache(serve):
    url, scheduler = serve(Limits(context=256))
    httpx.post(
        url + CHAT, json=LONG | {"model": "desk", "max_tokens": 3, "stream": False}, timeout=30
    ).raise_for_status()
    eventually(lambda: scheduler.running == 0)
    assert scheduler._reading is None and scheduler._batch._cache is None


def test_a_full_queue_is_told_before_a_prompt_is_encoded(serve):
    url, scheduler = serve(Limits(context=256, queue=1))
    scheduler._waiting._queue.append(None)
    try:
        found = httpx.post(
            url + CHAT, json=LONG | {"model": "desk", "messages": [{"role": "user", "content": "a" * 9999}]}
        )
        assert found.status_code == 429
    finally:
        scheduler._waiting._queue.clear()


def test_a_call_whose_caller_has_gone_does_not_stop_the_others_from_being_told():
    from pypeft_fast.serve.calls import Calls
    from pypeft_fast.serve.errors import ApiError

    calls, ending = Calls(), ApiError(503, "the end")
    gone, waits = calls.add(dict), calls.add(dict)
    gone.cancel()
    calls.refuse(ending)
    assert waits.exception(timeout=1) is ending


def test_a_rate_counts_every_token():
    from pypeft_fast.serve.rate import Rate

    now = [0.0]
    rate = Rate(lambda: now[0])
    for _ in range(20000):
        rate.add(1)
    assert rate.now() == 2000
    now[0] = 11.0
    rate.add(1)
    assert rate.now() == 0.1 and len(rate._added) == 1


def test_a_removed_adapter_is_deleted_when_a_request_that_was_not_queued_gives_it_back(serve):
    _, scheduler = serve()
    adapter = scheduler.adapters.acquire("desk")
    scheduler.remove("desk")
    eventually(lambda: not scheduler._calls)
    assert adapter.inner in scheduler.adapters.model.peft_config
    scheduler.release(adapter)
    eventually(lambda: adapter.inner not in scheduler.adapters.model.peft_config)
