"""`pypeft-fast finetune --config`: files of options, their mistakes, and configs that a run prints and writes."""

import dataclasses
import importlib.util
import json

import pytest
import yaml
from safetensors.torch import load_file

from pypeft_fast.cli.effective_options import AS_GIVEN, NOT_OF_A_RUN
from pypeft_fast.cli.main import make_parser
from pypeft_fast.finetune.training.run_folder import OPTIONS
from pypeft_fast.finetune.training.settings import Settings
from tests.cli.test_bad_input import mistake

YAML = """
model: tiny
data: {desk: desk.jsonl, billing: billing.jsonl}
eval-fraction: 0.2
learning_rate: 1e-4   # a text in YAML 1.1
target_modules: [q_proj, v_proj]
by-product: true
rank: null
output: out
"""
TOML = """
model = "tiny"
data = ["desk=desk.jsonl", "billing=billing.jsonl"]
eval_fraction = 0.2
learning_rate = 1e-4
target-modules = "q_proj,v_proj"
by_product = true
output = "out"
"""


def parsed(tmp_path, text, *options, suffix=".yaml"):
    path = tmp_path / f"run{suffix}"
    path.write_text(text)
    return make_parser().parse_args(["finetune", *options, "--config", str(path)])


def test_each_format_gives_the_options(tmp_path):
    as_json = json.dumps(yaml.safe_load(YAML))
    usual = vars(make_parser().parse_args(["finetune", "--model", "tiny", "--data", "d", "--output", "out"]))
    for text, suffix in ((YAML, ".yaml"), (YAML, ".yml"), (TOML, ".toml"), (as_json, ".json")):
        found = vars(parsed(tmp_path, text, suffix=suffix))
        assert found["data"] == ["desk=desk.jsonl", "billing=billing.jsonl"]
        assert (found["model"], found["eval_fraction"], found["learning_rate"]) == ("tiny", 0.2, 1e-4)
        assert (found["target_modules"], found["by_product"], found["rank"]) == ("q_proj,v_proj", True, None)
        others = set(usual) - {"data", "eval_fraction", "learning_rate", "target_modules", "by_product", "config"}
        assert {name: found[name] for name in others} == {name: usual[name] for name in others}


def test_the_command_line_overrides_the_file(tmp_path):
    given = ["--eval-fraction", "0.3", "--data=one.jsonl", "--no-by-product", "--rank", "4"]
    for arguments in (given, []):
        found = parsed(tmp_path, YAML, *arguments)
        expected = (0.3, ["one.jsonl"], False, 4) if arguments else (0.2, found.data, True, None)
        assert (found.eval_fraction, found.data, found.by_product, found.rank) == expected
    # An option that excludes one of the file takes its place.
    found = parsed(tmp_path, YAML, "--product", "desk")
    assert (found.product, found.by_product) == ("desk", False)
    assert parsed(tmp_path, YAML + "overwrite: true", "--resume").overwrite is False
    found = parsed(tmp_path, YAML.replace("by-product: true", "product: desk"), "--no-by-product")
    assert (found.product, found.by_product) == ("desk", False)


RUN = """\
model: tiny
data: a.jsonl
output: a
method: lora
rank: 8
alpha: 32
dropout: 0.05
target_modules: all-linear
learning_rate: 0.0005
epochs: 3
max_steps: 20
schedule: cosine
warmup: 0.05
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--epochs 2", dict(epochs=2, max_steps=None, rank=8)),
        ("--epochs 2 --max-steps 4", dict(epochs=2, max_steps=4)),
        ("--schedule constant", dict(schedule="constant", warmup=None)),
        ("--schedule=linear", dict(schedule="linear", warmup=0.05)),
        ("--method dora", dict(method="dora", rank=8, target_modules="all-linear", learning_rate=None)),
        ("--method ia3", dict(rank=None, alpha=None, dropout=None, target_modules=None, learning_rate=None)),
        ("--method ia3 --learning-rate 1e-4", dict(rank=None, learning_rate=1e-4)),
        ("--method lora --rank 4", dict(rank=4, alpha=32, learning_rate=5e-4)),
        ("--adapter b", dict(method=None, rank=None, alpha=None, target_modules=None, learning_rate=5e-4)),
    ],
)
def test_options_that_do_not_go_with_a_given_one_are_left_out(tmp_path, arguments, expected):
    """A finetune.json has the default of each option of its method and schedule."""
    found = parsed(tmp_path, RUN, *arguments.split())
    usual = make_parser().parse_args(["finetune", "--model", "m", "--data", "d", "--output", "o"])
    for name, value in expected.items():
        assert getattr(found, name) == (getattr(usual, name) if value is None else value), name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: []", "data: is empty; give a value, or leave the key out"),
        ("eval_data: {}", "eval_data: is empty"),
        ("rank: 8\nrank: 9", "rank occurs twice; leave one out"),
        ("warmup: -3", "warmup: -3 is not a fraction in [0, 1) or a whole number of steps"),
        ("learning_rte: 1", "learning_rte: no such option; did you mean learning_rate?"),
        ("lr: 1", "lr: no such option; did you mean learning_rate?"),
        ("per_device_train_batch_size: 1", "no such option; did you mean batch_size?"),
        ("qqq: 1", "qqq: no such option (try"),
        ("config: a.yaml", "config: no such option"),
        ("adapters: {}", "adapters: no such option; did you mean adapter?"),
        ("no_by_product: true", "no_by_product: no such option"),
        ("3: 4", "3: no such option"),
        ("rank: 4.5", "rank: 4.5 is not a whole number above 0"),
        ("rank: [4]", "rank: [4] is a list, and one value is expected"),
        ("rank: yes", "rank: True is true or false, and one value is expected"),
        ("dropout: a", "dropout: a is not in [0, 1)"),
        (
            'target_modules: ["q_proj,v_proj"]',
            "target_modules: the item 'q_proj,v_proj' holds a comma; give each name as",
        ),
        ('target_modules: [q_proj, " "]', "target_modules: the item ' ' is empty; leave it out"),
        ("product: ''", "product: '' is empty; give a value"),
        ("target_modules: []", "target_modules: is empty; give a value, or leave the key out"),
        ("target_modules: [q_proj, 3]", "target_modules: 3 is a number, and a text is expected"),
        ("method: lara", "method: 'lara' is none of lora, dora"),
        ("method: lara", "did you mean lora?"),
        ("product: 2024", "product: 2024 is a number, and a text is expected; put it in quotes"),
        ("by_product: 1", "by_product: 1 is not true or false"),
        ("data: [{a: b}]", "data: {'a': 'b'} is a mapping, and one value is expected"),
        ('output: "a\\0"', "is not a valid name of a folder"),
        ('model: "a\\0"', "holds a NUL character; remove it"),
        ("eval_every: 2\nsave-every: 3", "save-every: eval_every in it is the same option"),
        ("by_product: true\nproduct: desk", "by_product and product exclude each other; leave one out"),
        ("- rank", "a mapping from options to values is expected, such as rank: 8, not a list"),
        ("", "is expected, such as rank: 8, not empty"),
        ("rank: [", "this file is not YAML: "),
        ("rank: 2024-13-45", "this file is not YAML: month must be in 1..12"),
        ("rank: 2024-10-05", "is date, and one value is expected"),
        ("[" * 500, "this file is not YAML: "),
    ],
)
def test_mistakes(command, tmp_path, text, says):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    mistake(command("finetune", "--config", path), f"pypeft-fast finetune: --config {path}: ", says)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.txt", b"", "the name must end in one of .yaml, .yml, .toml, .json, which gives the format"),
        ("run.yaml", b"\xff", "not UTF-8 text"),
        ("run.json", b"{", "this file: not JSON: "),
        ("run.json", b"[]", "a mapping from options to values is expected"),
        ("run.json", b'{"model": "\\ud800"}', "half of a surrogate pair"),
        ("run.toml", b"rank = ", "this file is not TOML: "),
        ("run.toml", b"a = 1\na = 2", "this file is not TOML: "),
        ("none.yaml", None, "cannot be read: No such file"),
    ],
)
def test_files_that_cannot_be_read(command, tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    mistake(command("finetune", "--config", tmp_path / name), f"--config {tmp_path / name}: ", says)


def test_toml_without_a_library(command, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("tom") else real(name))
    (tmp_path / "run.toml").write_text(TOML)
    mistake(command("finetune", "--config", tmp_path / "run.toml"), "TOML needs Python 3.11 or the package tomli; run")


def test_what_is_still_missing(command, tmp_path):
    (tmp_path / "run.yaml").write_text("model: tiny")
    result = command("finetune", "--config", tmp_path / "run.yaml")
    mistake(result, "the following arguments are required: --data, --output")
    mistake(command("finetune", "--model", "tiny", "--config"), "argument --config: expected one argument")


def test_every_option_of_a_run_is_in_its_files():
    options = set(vars(make_parser().parse_args(["finetune", "--model", "m", "--data", "d", "--output", "o"])))
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert options - set(NOT_OF_A_RUN) == fields | set(OPTIONS)
    assert fields.isdisjoint(OPTIONS) and set(AS_GIVEN) <= fields


@pytest.fixture
def run(command, tiny_model, dialogues, tmp_path):
    """run(name, options...) -> the folder of a run with these options; it has to succeed."""

    def finetune(name, *options, data=("--data", dialogues), model=("--model", tiny_model)):
        code, _, err = command("finetune", *model, *data, "--output", tmp_path / name, *options)
        assert code == 0, err
        return tmp_path / name

    return finetune


SMALL = ("--max-steps", 3, "--rank", 2, "--learning-rate", 0.01, "--eval-every", 2)


def test_a_printed_config_and_a_run_s_own_repeat_it(run, command, tmp_path, tiny_model, dialogues):
    whole = ["--model", tiny_model, "--data", dialogues, "--output", tmp_path / "first", *SMALL, "--seed", 5]
    code, out, _ = command("finetune", *whole, "--print-config")
    assert code == 0 and not (tmp_path / "first").exists()
    printed = yaml.safe_load(out)
    assert (printed["rank"], printed["alpha"], printed["method"], printed["batch_size"]) == (2, 32, "lora", 4)
    (tmp_path / "printed.yaml").write_text(out)
    code, again, _ = command("finetune", "--config", tmp_path / "printed.yaml", "--print-config")
    assert code == 0 and yaml.safe_load(again) == printed

    first = run("first", *SMALL, "--seed", 5)
    written = json.loads((first / "finetune.json").read_text())
    assert {name: written[name] for name in printed} == printed
    taken = command("finetune", "--config", first / "finetune.json")
    mistake(taken, "already holds", "--overwrite")  # its folder is the one of the run that wrote it
    second = run("second", data=(), model=("--config", first / "finetune.json"))
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]
    # Options that do not change the adapter may change when the run goes on.
    code, out, err = command("finetune", "--config", second / "finetune.json", "--output", second, "--resume")
    assert code == 0 and "is complete: all 3 steps are done" in out, err
    further = ["--model", tiny_model, "--data", dialogues, "--output", "x", "--adapter", first, "--print-config"]
    (tmp_path / "further.yaml").write_text(command("finetune", *further)[1])
    code, out, _ = command("finetune", "--config", tmp_path / "further.yaml", "--print-config")
    assert code == 0 and yaml.safe_load(out)["method"] == "lora"


def test_the_config_of_several_adapters_repeats_them(run, command, tmp_path, dialogues):
    lines = dialogues.read_text().splitlines(keepends=True)
    data = []
    more = [line.replace("what", word) for word in ("what", "why", "who") for line in lines]
    for name, part in (("desk", more), ("billing", lines[:10])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
        data += ["--data", f"{name}={tmp_path}/{name}.jsonl"]
    first = run("first", *SMALL, data=data)
    written = json.loads((first / "finetune.json").read_text())
    assert written["epochs"] is None and written["data"] == data[1::2]  # the default number of epochs differs
    assert written["adapters"]["desk"]["epochs"] is not None
    second = run("second", data=(), model=("--config", first / "finetune.json"))
    alone = command("finetune", "--config", first / "billing" / "finetune.json", "--print-config")[1]
    for name in ("desk", "billing"):
        a, b = (load_file(folder / name / "adapter_model.safetensors") for folder in (first, second))
        assert all(a[key].equal(b[key]) for key in a)
    alone = yaml.safe_load(alone)  # repeats a run of that adapter alone
    assert (alone["data"], alone["output"]) == (f"{tmp_path}/billing.jsonl", str(first / "billing"))
