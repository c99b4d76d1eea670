"""A file is read once: what has been checked is what is loaded, whatever is written to the file meanwhile."""

import resource
from pathlib import Path

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast.model.files import bank, private_copy, snapshot, swap
from tests.model.files.made import WEIGHTS, adapted, assert_untouched, state
from tests.model.zoo import build

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path):
    adapted(library=pf.PeftModel).save_pretrained(tmp_path)
    return tmp_path


def spoil(folder):
    """Writes NaN over the values in place, so that the file is the same one for whoever has it open."""
    with open(folder / WEIGHTS, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(8 + length)
        file.write(b"\xff" * ((folder / WEIGHTS).stat().st_size - 8 - length))


def from_pretrained(folder):
    return pf.PeftModel.from_pretrained(build("llama"), folder)


def cheaply(folder):
    return pf.PeftModel.from_pretrained(build("llama"), folder, low_cpu_mem_usage=True)


def together(folder):
    return pf.load_adapters(build("llama"), folder)


def hot(folder):
    model = adapted(seed=5, library=pf.PeftModel)
    model.load_adapter(folder, "default")
    return model


def into_a_bank(folder):
    made = pf.nn.MultiLoRALinear.from_linear(build("llama").get_submodule(LAYER), max_adapters=1, max_rank=4)
    return pf.load_adapters(made, folder, module=LAYER)


LOADS = {
    from_pretrained: (snapshot, "check"),
    cheaply: (snapshot, "check"),
    together: (snapshot, "check"),
    hot: (swap, "check_values"),
    into_a_bank: (bank, "check_values"),
}


@pytest.mark.parametrize("load", LOADS)
def test_a_file_that_changes_after_the_check_is_loaded_as_it_was_checked(load, folder, monkeypatch):
    def values(model):
        return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}

    expected = values(load(folder))
    module, name = LOADS[load]
    real = getattr(module, name)

    def check(*arguments):
        found = real(*arguments)
        spoil(folder)
        return found

    monkeypatch.setattr(module, name, check)
    loaded = load(folder)
    assert not Path(folder / WEIGHTS).read_bytes().endswith(b"\0" * 4) and expected
    assert all(torch.equal(value, expected[name]) for name, value in values(loaded).items())


def test_a_file_that_is_written_to_while_it_is_read_is_refused(folder, monkeypatch):
    real = private_copy.shutil.copyfileobj

    def copy(*arguments):
        real(*arguments)
        spoil(folder)

    monkeypatch.setattr(private_copy.shutil, "copyfileobj", copy)
    model = adapted(seed=5, library=pf.PeftModel)
    before = state(model)
    with pytest.raises(ValueError, match=f"{WEIGHTS} was written to while it was read; load the adapter again"):
        model.load_adapter(folder, "default")
    assert_untouched(model, before)


@pytest.fixture
def few_files():
    """At most 24 files more than those that are open now."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 24, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_only_the_files_that_are_being_read_are_open(tmp_path, few_files):
    adapted(library=pf.PeftModel, target_modules=["q_proj"], layers_to_transform=[0]).save_pretrained(tmp_path / "a0")
    for number in range(1, 40):
        (tmp_path / f"a{number}").symlink_to("a0")
    loaded = pf.load_adapters(build("llama"), tmp_path, threads=2)
    assert len(loaded.peft_config) == 40
    pf.load_adapters(loaded, tmp_path, threads=2)
    made = pf.nn.MultiLoRALinear.from_linear(build("llama").get_submodule(LAYER), max_adapters=40, max_rank=4)
    assert len(pf.load_adapters(made, tmp_path, threads=2).adapter_names) == 40
