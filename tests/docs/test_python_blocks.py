"""Every Python block of the documents runs on a tiny model, or has a reason why not and only names that exist."""

import ast
import contextlib
import copy
import re
import shutil
import sys

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import pypeft_fast as pf
from tests.docs.blocks import PAGES, ROOT, blocks_of

FOUND = [block for page in PAGES for block in blocks_of(page) if block.language == "python"]
BLOCKS = {(block.page, block.number): block.text for block in FOUND}
# Blocks of a page that go on where the one before has ended.
CONTINUED = {"docs/start-layers.md"}
# {block: why it does not run here}; tests/serve/test_openai_client.py has the same calls against a server
NOT_RUN = {
    ("docs/serve.md", 1): "asks a server that is running",
    ("CONTRIBUTING.md", 1): "a part of pypeft_fast/ops/lora_shrink.py",
}
TINY = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def tiny(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def lines_of_products(base, folder):
    """A model with the adapters that the blocks load, saved in `folder`."""
    model = pf.get_peft_model(base, pf.LoraConfig(**TINY), adapter_name="router")
    for name in ("camera", "desk"):
        model.add_adapter(name, pf.LoraConfig(**TINY))
    model.save_pretrained(folder)
    return model


def trainer_of_callbacks(*given, callbacks):
    """In place of transformers.Trainer, of which the block leaves out all other arguments."""
    assert given == (...,) and [type(callback) for callback in callbacks] == [pf.FuseCallback]


def names_for(block, folder):
    """The names that a block takes from the reader's program."""
    model = tiny(folder)
    if block == ("README.md", 1):
        return {"model": model, "base": tiny(folder)}
    if block == ("README.md", 2):
        linear = nn.Linear(16, 128)
        A, B = torch.randn(4, 16), torch.randn(128, 4)
        own = {"x": torch.randn(2, 16), "weight": linear.weight.detach(), "bias": linear.bias.detach()}
        return own | {"linear": linear, "lora_A": A, "lora_B": B}
    if block == ("README.md", 3):
        batch = {"input_ids": torch.ones(3, 4, dtype=torch.long), "max_new_tokens": 2}
        return {"pf": pf, "base": model, "batch": batch}
    if block == ("README.md", 4):
        own = {"Trainer": trainer_of_callbacks, "lora_config": pf.LoraConfig(**TINY)}
        return own | {"pf": pf, "peft_model": peft.get_peft_model(model, peft.LoraConfig(**TINY))}
    if block == ("docs/peft.md", 1):
        saved = lines_of_products(copy.deepcopy(model), "lines")
        return {"pf": pf, "base": model, "model": saved, "layer": nn.Linear(32, 32)}
    return {}


def blocks_to_run():
    found = []
    for page in sorted({page for page, _ in BLOCKS}):
        mine = [block for block in BLOCKS if block[0] == page and block not in NOT_RUN]
        found += [mine] if page in CONTINUED else [[block] for block in mine]
    return found


@pytest.mark.parametrize("blocks", blocks_to_run(), ids=lambda blocks: f"{blocks[0][0]}-{blocks[0][1]}")
def test_a_block_runs(blocks, tiny_model, tiny_adapter, smollm2_is_tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_adapter, "shop")
    names = names_for(blocks[0], tiny_model)
    for block in blocks:
        code = compile(BLOCKS[block], f"{block[0]}, Python block {block[1]}", "exec")
        with contextlib.redirect_stdout(sys.stderr):
            exec(code, names)


@pytest.mark.parametrize(
    ("made", "names"),
    [
        ("nn.Linear(64, 10)", [""]),
        ("(lambda one: nn.Sequential(one, one, nn.Sequential(nn.ReLU(), one)))(nn.Linear(64, 64))", ["0", "1", "2.1"]),
    ],
    ids=["one layer", "a shared layer"],
)
def test_the_loop_of_layers_takes_every_model(made, names):
    """A layer under several names stays one layer, with one adapter."""
    code, names_of_block = BLOCKS["docs/start-layers.md", 1], {}
    model = re.search(r"^model = nn\..*$", code, re.M)[0]
    exec(code.replace(model, f"model = {made}"), names_of_block)
    model = names_of_block["model"]
    found = dict(model.named_modules(remove_duplicate=False))
    assert [name for name, layer in found.items() if isinstance(layer, nn.Linear)] == names
    assert {type(found[name]) for name in names} == {pf.nn.LoRALinear} and len({found[name] for name in names}) == 1


@pytest.mark.parametrize("block", NOT_RUN)
def test_a_block_that_does_not_run_is_python(block):
    ast.parse(BLOCKS[block])


def test_the_part_of_a_file_is_in_the_file():
    own = (ROOT / "pypeft_fast/ops/lora_shrink.py").read_text()
    assert BLOCKS["CONTRIBUTING.md", 1] in own


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_in_the_text_exist(page):
    """pf.X and pf.nn.X, in blocks and in the text."""
    for name in re.findall(r"(?<![\w.])pf\.((?:nn\.|\w+\.)?\w+)", (ROOT / page).read_text()):
        value = pf
        for part in name.split(".")[: 2 if name.startswith("nn.") else 1]:
            value = getattr(value, part)
