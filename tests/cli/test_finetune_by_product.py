"""`pypeft-fast finetune --by-product`: one file, an adapter for each product that its records name."""

import csv
import json

import pytest

from tests.cli.test_bad_input import mistake
from tests.cli.test_finetune_many import metrics_in

QUICK = ("--max-steps", 2, "--rank", 4, "--eval-fraction", 0.2)


@pytest.fixture(scope="module")
def records(dialogues):
    """12 records of "desk" and 6 of "billing", in turn as far as they go."""
    lines = [json.loads(line) for line in dialogues.read_text().splitlines()][:18]
    return [record | {"product": "billing" if i % 3 == 2 else "desk"} for i, record in enumerate(lines)]


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def finetune(command, tiny_model, tmp_path):
    def run(data, *options, output=tmp_path / "out"):
        return command("finetune", "--model", tiny_model, "--output", output, "--data", data, *options)

    return run


def test_each_product_has_the_adapter_of_its_records(finetune, command, records, tmp_path):
    data = written(tmp_path / "all.jsonl", records)
    code, out, err = finetune(data, "--by-product", "--dropout", 0, *QUICK)
    assert code == 0, err
    assert "desk: 10 examples to train on, 2 held out" in out and "billing: 5 examples to train on, 1 held out" in out
    for name in ("desk", "billing"):
        metrics = metrics_in(tmp_path / "out" / name)
        assert (metrics["settings"]["data"], metrics["settings"]["product"]) == (str(data), name)
        card = (tmp_path / "out" / name / "README.md").read_text()
        assert f"--product {name}" in card and "--by-product" not in card
        code, _, err = finetune(data, "--product", name, "--dropout", 0, *QUICK, output=tmp_path / name)
        assert code == 0, err
        alone = metrics_in(tmp_path / name)
        assert alone["settings"] == metrics["settings"]
        for key in ("train_loss_last", "eval_loss_before", "eval_loss_after"):
            assert metrics[key] == pytest.approx(alone[key], abs=1e-3)


def test_a_table_has_a_column_of_products(finetune, records, tmp_path):
    with open(tmp_path / "all.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer", "product"])
        table.writerows([[f"what {i}", f"it {i}", record["product"]] for i, record in enumerate(records)])
    code, out, err = finetune(tmp_path / "all.csv", "--by-product", *QUICK)
    assert code == 0 and "billing: 5 examples" in out, err


def test_held_out_records_have_products_too(finetune, records, tmp_path):
    data = written(tmp_path / "all.jsonl", records)
    held_out = written(tmp_path / "held.jsonl", [record for record in records if record["product"] == "billing"][:2])
    code, out, err = finetune(data, "--by-product", "--eval-data", held_out, *QUICK)
    assert code == 0, err
    assert "billing: 6 examples to train on, 2 held out" in out and "desk: 10 examples to train on, 2 held out" in out
    written(held_out, [records[0] | {"product": "third"}])
    mistake(
        finetune(data, "--by-product", "--eval-data", held_out, output=tmp_path / "b"),
        f"{held_out}:1: no line of --data has the product 'third'; there are: desk, billing",
    )


def without(record):
    return {key: value for key, value in record.items() if key != "product"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: [*r[:3], without(r[3]), *r[4:]], ':4 has no "product"; give every line of --data'),
        (lambda r: [r[0] | {"product": 7}, *r], ':1 has a "product" that is no text: 7'),
        (lambda r: [r[0] | {"product": None}, *r], ':1 has no "product"'),
        (
            lambda r: [*r, r[0] | {"product": "../up"}],
            ":19: \"product\": '../up' cannot name an adapter",
        ),
        (lambda r: [*r, r[0] | {"product": "/etc"}], "'/etc' cannot name an adapter"),
        (lambda r: [*r, r[0] | {"product": ""}], "'' cannot name an adapter"),
        (lambda r: [*r, r[0] | {"product": "__base__"}], "'__base__' cannot name an adapter"),
        (lambda r: [*r, r[0] | {"product": "checkpoint-3"}], "'checkpoint-3' cannot name an adapter"),
        (lambda r: [*r, *[x | {"product": "keys"} for x in r[:4]]], "'keys' cannot name an adapter"),
        (lambda r: [x | {"product": "desk"} for x in r], "all lines have the product 'desk', and --by-product trains"),
        (lambda r: [*r, r[0] | {"product": "few"}], "few: cannot hold out a part of 1 example(s)"),
    ],
)
def test_what_is_refused(finetune, records, tmp_path, change, says):
    data = written(tmp_path / "all.jsonl", change(records))
    mistake(finetune(data, "--by-product"), says)
    assert not [*tmp_path.rglob("adapter_*"), *tmp_path.rglob(".finetune.lock")]


def test_a_single_product_that_no_record_has(finetune, records, tmp_path):
    data = written(tmp_path / "all.jsonl", records)
    mistake(finetune(data, "--product", "third"), "no line has --product third: desk, billing")
    mistake(finetune(data, "--product", "desk", "--by-product"), "not allowed with argument")
