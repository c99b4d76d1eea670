"""Threads that load into one model take turns."""

import copy
import threading

import pytest

import pypeft_fast as pf
from pypeft_fast.model.files import mixin
from pypeft_fast.model.files.locks import lock_of
from tests.model.files.made import adapted
from tests.model.zoo import build


def held_by_another(model) -> bool:
    """Whether another thread would have to wait for the model's lock."""
    taken = []

    def attempt():
        taken.append(lock_of(model).acquire(blocking=False))
        if taken[0]:
            lock_of(model).release()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return not taken[0]


@pytest.mark.parametrize("load", ["load_adapter", "load_adapters"])
def test_a_swap_holds_the_lock(load, tmp_path, monkeypatch):
    adapted().save_pretrained(tmp_path)
    model, seen = pf.PeftModel.from_pretrained(build("llama"), tmp_path), []
    monkeypatch.setattr(mixin, "swap", lambda m, *a, real=mixin.swap: [seen.append(held_by_another(m)), real(m, *a)][1])
    if load == "load_adapter":
        model.load_adapter(tmp_path, "default")
    else:
        pf.load_adapters(model, tmp_path)
    assert seen == [True] and not held_by_another(model)


def test_a_lock_is_of_one_model():
    first, second = build("llama"), build("llama")
    assert lock_of(first) is lock_of(first) is not lock_of(second)
    assert lock_of(copy.deepcopy(first)) is not lock_of(first)
