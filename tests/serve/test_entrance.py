"""From a request to the queue: what waits for the tokenizer is counted, and the adapter is that of the first moment."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from pypeft_fast.serve.adapters import Adapter
from pypeft_fast.serve.entrance import Entrance
from pypeft_fast.serve.errors import ApiError
from pypeft_fast.serve.limits import MESSAGE, MOST_MESSAGES, MOST_UNREAD, Limits
from pypeft_fast.serve.requests import ChatRequest
from pypeft_fast.serve.waiting import Waiting


class Scheduler:
    """The parts of a scheduler that an Entrance uses; it queues and runs nothing."""

    def __init__(self, limits):
        self.adapters, self.held, self.refuses = self, [], False
        self.named = {"desk": Adapter("desk", "a0", "old")}
        self._waiting = Waiting(limits)

    def acquire(self, name):
        self.named[name].users += 1
        return self.named[name]

    def release(self, adapter):
        adapter.users -= 1

    def check_room(self, coming):
        if self.refuses:
            raise ApiError(503, "ending")
        self._waiting.check_room(coming)

    def submit(self, generation):
        if self.refuses:
            raise ApiError(503, "ending")
        self._waiting.add(generation)
        self.held.append(generation)


@pytest.fixture
def made():
    """made(limits) -> (entrance, scheduler, what the tokenizer has read, the event for which it waits)."""

    def make(**limits):
        limits = Limits(context=64, **limits)
        scheduler, read, may_go = Scheduler(limits), [], threading.Event()

        def encode(messages, template):
            read.append((messages[0]["content"][:9], template))
            assert may_go.wait(10)
            if messages[0]["content"] == "refused":
                raise ApiError(400, "the chat template refuses the messages")
            return [1, 2, 3]

        return Entrance(scheduler, SimpleNamespace(encode=encode), None, limits), scheduler, read, may_go

    return make


def body(text="hello", **options):
    return ChatRequest(model="desk", messages=[{"role": "user", "content": text}], **options)


async def begin(entrance, *bodies):
    tasks = [asyncio.ensure_future(entrance.enter(each, print)) for each in bodies]
    await asyncio.sleep(0.02)
    return tasks


async def refusal(entrance, *arguments):
    with pytest.raises(ApiError) as error:
        await asyncio.wait_for(entrance.enter(body(*arguments), print), 5)
    return error.value.status, error.value.code


def test_requests_that_are_being_tokenised_count_as_waiting(made):
    entrance, scheduler, read, may_go = made(queue=3)

    async def run():
        tasks = await begin(entrance, body("a"), body("b"), body("c"))
        assert len(read) == 1 and await refusal(entrance) == (429, "queue_full")
        assert scheduler.named["desk"].users == 3
        may_go.set()
        await asyncio.gather(*tasks)
        assert await refusal(entrance) == (429, "queue_full")  # the queue itself is full
        scheduler._waiting.take_all()
        await entrance.enter(body("d"), print)

    asyncio.run(run())
    assert [text for text, _ in read] == ["a", "b", "c", "d"] and scheduler.named["desk"].users == 4


def test_the_characters_before_the_tokenizer_are_bounded(made):
    entrance, scheduler, read, may_go = made()
    half = "x" * (MOST_UNREAD // 2)

    async def run():
        tasks = await begin(entrance, body(half), body("short"))
        assert await refusal(entrance, half) == (429, "queue_full")
        tasks += await begin(entrance, body("short too"))
        may_go.set()
        await asyncio.gather(*tasks)
        await entrance.enter(body(2 * half + "x"), print)  # alone, any prompt that a body can hold

    asyncio.run(run())
    assert len(read) == 4 and len(scheduler.held) == 4


def test_many_short_messages_count_too(made):
    entrance, _, _, may_go = made()
    many = body().model_copy(update={"messages": body("").messages * MOST_MESSAGES})

    async def run():
        tasks = await begin(entrance, *[many] * (MOST_UNREAD // (MESSAGE * MOST_MESSAGES)))
        assert await refusal(entrance, "") == (429, "queue_full")
        may_go.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["refused", "cancelled", "ending"])
def test_a_request_that_ends_before_the_queue_leaves_no_count(made, how):
    entrance, scheduler, _, may_go = made(queue=1)

    async def run():
        (task,) = await begin(entrance, body("refused" if how == "refused" else "hello"))
        if how == "cancelled":
            task.cancel()
        scheduler.refuses = how == "ending"
        may_go.set()
        with pytest.raises((ApiError, asyncio.CancelledError)):
            await task
        assert scheduler.named["desk"].users == 0
        scheduler.refuses = False
        await entrance.enter(body(), print)

    asyncio.run(run())
    assert scheduler.named["desk"].users == 1


def test_a_request_keeps_the_adapter_whose_template_made_its_prompt(made):
    """The adapter is replaced while the prompt is being tokenised."""
    entrance, scheduler, read, may_go = made()
    old = scheduler.named["desk"]

    async def run():
        tasks = await begin(entrance, body())
        scheduler.named["desk"] = Adapter("desk", "a1", "new")
        may_go.set()
        assert (await tasks[0]).adapter is old

    asyncio.run(run())
    assert read == [("hello", "old")] and old.users == 1
