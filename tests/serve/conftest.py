"""A server on the tiny Llama of tests/finetune with three random adapters, in a thread of the test's process."""

import contextlib
import threading
import time

import pytest
import torch

from tests.finetune.conftest import make_tokenizer, tiny_model, tokenizer  # noqa: F401

NAMES = ("desk", "billing", "returns")


def save_adapter(model_folder, folder, seed, **options):
    """A random adapter of this Llama, written by PEFT."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    options = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | options
    config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tiny_model):  # noqa: F811
    """{name: folder} of three adapters."""
    root = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(tiny_model, root / name, seed) for seed, name in enumerate(NAMES)}


@contextlib.contextmanager
def running(served, grace=5):
    """The URL of a server that runs in a thread during the block."""
    from pypeft_fast.serve.server import Server, listen

    with listen("127.0.0.1", 0) as listening:
        server = Server(served, grace)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        eventually(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.handle_exit(15, None)
            thread.join(30)
            assert not thread.is_alive()


def eventually(condition, seconds=20.0):
    """Fails unless the condition becomes true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition has not become true"
        time.sleep(0.005)


@contextlib.contextmanager
def _servers(model_folder, folders):
    from pypeft_fast.finetune.base_models import load_base
    from pypeft_fast.serve.limits import Limits
    from pypeft_fast.serve.server import build

    with contextlib.ExitStack() as stack:

        def start(limits=None, administration=None, adapters=None, grace=5):
            limits, adapters = limits or Limits(context=256), folders if adapters is None else adapters
            served = build(*load_base(str(model_folder)), "tiny", adapters, limits, administration)
            return stack.enter_context(running(served, grace)), served.scheduler

        yield start


@pytest.fixture
def serve(tiny_model, folders):  # noqa: F811
    """serve(limits, administration, adapters, grace) -> (URL, scheduler) of a new server, which ends with the test."""
    with _servers(tiny_model, folders) as start:
        yield start


@pytest.fixture(scope="module")
def shared(tiny_model, folders):  # noqa: F811
    """(URL, scheduler) of one server for the tests of a file."""
    with _servers(tiny_model, folders) as start:
        yield start()


@pytest.fixture(scope="session")
def generated(tiny_model, folders):  # noqa: F811
    """generated(adapter or None, text, most) -> (tokens, text) of the greedy answer of PEFT with this adapter alone."""
    import peft
    from transformers import AutoModelForCausalLM

    words, models = make_tokenizer(), {}

    @torch.no_grad()
    def answer(name, text, most=12):
        if name not in models:
            model = AutoModelForCausalLM.from_pretrained(tiny_model)
            models[name] = (peft.PeftModel.from_pretrained(model, folders[name]) if name else model).eval()
        prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        inputs = words(prompt, return_tensors="pt")
        whole = models[name].generate(**inputs, max_new_tokens=most, do_sample=False)[0]
        tokens = whole[inputs["input_ids"].shape[1] :]
        return tokens.tolist(), words.decode(tokens, skip_special_tokens=True)

    return answer
