"""Several processes use one folder: concurrent savers, a reader and a saver, and a saver that is killed."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch

from pypeft_fast.model.files.check import read_tensors
from pypeft_fast.model.files.reading import opened
from tests.model.files.made import CONFIG, WEIGHTS, PeftModel, adapted, build, names_in

# The processes are forked, so that they need not import torch; CUDA does not work after a fork.
pytestmark = pytest.mark.cpu
FORK = multiprocessing.get_context("fork")


def marked(number):
    """An adapter whose values all equal its lora_alpha, so that files of two adapters can be told apart."""
    model = adapted(lora_alpha=number)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.fill_(float(number))
    return model


def save_often(folder, numbers, count):
    models = [marked(number) for number in numbers]
    for i in range(count):
        models[i % len(models)].save_pretrained(folder)


def start(function, *args):
    def run():
        torch.set_num_threads(1)  # a forked process does not have the threads of its parent
        function(*args)

    process = FORK.Process(target=run)
    process.start()
    return process


def check_whole(folder):
    """Checks that config and weights are of one adapter, and returns its number."""
    with opened(folder) as pair:
        alpha = json.loads(pair.config)["lora_alpha"]
        tensors = read_tensors(pair.weights_path, pair.pinned).values()
        assert {tensor.unique().item() for tensor in tensors} == {float(alpha)}
    return alpha


def test_several_ranks_may_save_at_once(tmp_path):
    ranks = [start(save_often, tmp_path, [number], 12) for number in range(1, 5)]
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert check_whole(tmp_path) in range(1, 5)
    assert names_in(tmp_path) == ["README.md", CONFIG, WEIGHTS]


def test_a_reader_beside_two_savers_never_sees_a_mixed_pair(tmp_path):
    marked(1).save_pretrained(tmp_path)
    savers = [start(save_often, tmp_path, numbers, 150) for numbers in ([1, 2], [3, 4])]
    seen = []
    while any(saver.is_alive() for saver in savers):
        seen.append(check_whole(tmp_path))
    assert [saver.exitcode for saver in savers] == [0, 0]
    assert len(seen) > 200 and len(set(seen)) > 1


def test_loading_beside_a_saver_gives_one_saves_adapter(tmp_path):
    marked(1).save_pretrained(tmp_path)
    saver = start(save_often, tmp_path, [1, 2], 100)
    count = 0
    while saver.is_alive() or not count:
        model = PeftModel.from_pretrained(build("llama"), tmp_path)
        model.load_adapter(tmp_path, "second")
        for adapter in ("default", "second"):
            alpha = model.peft_config[adapter].lora_alpha
            values = [p for name, p in model.named_parameters() if f".{adapter}." in name]
            assert values and all((value == alpha).all() for value in values)
        count += 1
    assert saver.exitcode == 0


def test_a_killed_saver_leaves_a_whole_adapter_and_the_next_one_tidies_up(tmp_path):
    marked(1).save_pretrained(tmp_path)
    left = 0
    for i in range(12):
        saver = start(save_often, tmp_path, [2, 3], 10_000)
        while not any(name.startswith(".saving-") for name in names_in(tmp_path)):
            time.sleep(0.001)
        time.sleep(0.003 * i)
        os.kill(saver.pid, signal.SIGKILL)
        saver.join()
        left += any(name.startswith(".saving-") for name in names_in(tmp_path))
        assert check_whole(tmp_path) in (1, 2, 3)
        marked(1).save_pretrained(tmp_path)
        assert check_whole(tmp_path) == 1 and names_in(tmp_path) == ["README.md", CONFIG, WEIGHTS]
    assert left > 0


def test_a_folder_that_changes_all_the_time_is_an_error(tmp_path, monkeypatch):
    from pypeft_fast.model.files import reading

    marked(1).save_pretrained(tmp_path)
    real = reading.pending_name

    def meanwhile(*pair):
        (tmp_path / WEIGHTS).touch()
        return real(*pair)

    monkeypatch.setattr(reading, "pending_name", meanwhile)
    monkeypatch.setattr(reading, "TRIES", 3)
    with pytest.raises(RuntimeError, match="was saved to during each of 3 attempts"):
        check_whole(tmp_path)
