"""Training data in common forms: ShareGPT, Alpaca, pairs, JSON arrays, CSV, Parquet, the Hub."""

import json
import re
from pathlib import Path

import pandas
import pytest

from pypeft_fast.finetune import hub
from pypeft_fast.finetune.data import files, records
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.records import conversation
from pypeft_fast.finetune.errors import UserError


def texts(example):
    return [(m["role"], m["content"]) for m in example.messages]


PAIR = [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "a", "response": "b"}, PAIR),
        ({"question": "a", "answer": "b", "id": 3}, PAIR),
        ({"instruction": "a", "output": "b"}, PAIR),
        ({"instruction": "a", "input": "", "output": "b"}, PAIR),
        ({"instruction": "a", "input": "c", "output": "b"}, [("user", "a\n\nc"), ("assistant", "b")]),
        ({"system": "s", "prompt": "a", "completion": "b"}, [("system", "s"), *PAIR]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, PAIR),
        ({"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, PAIR),
        ({"messages": json.dumps([{"role": r, "content": c} for r, c in PAIR])}, PAIR),  # from a CSV file
        ({"messages": None, "prompt": "a", "completion": "b"}, PAIR),  # from a table with both columns
    ],
)
def test_forms(record, expected):
    assert texts(conversation(record, "x:1")) == expected


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "a"}, "the keys are: text"),
        ({"conversations": 3}, '"conversations" must be a list'),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "turn 1 is from 'bot'; accepted are human"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "turn 1 is from ['human']"),
        ({"conversations": [{"value": "a"}]}, 'turn 1 must be an object with "from" and "value"'),
        ({"conversations": [{"from": "human", "value": "a"}]}, "no answer to learn"),
        ({"instruction": 3, "input": "x", "output": "b"}, "message 1 (user) must have text"),
        ({"instruction": "a", "output": ""}, "message 2 (assistant) must have text"),
        ({"messages": "no JSON"}, "x:1: not JSON"),
    ],
)
def test_a_record_that_is_none(record, says):
    with pytest.raises(UserError) as error:
        conversation(record, "x:1")
    assert str(error.value).startswith("x:1: ") and says in str(error.value)


RECORDS = [{"prompt": "Übung, “eins”?", "completion": "ja\nzwei"}, {"prompt": "NA", "completion": "1"}]
EXPECTED = [[("user", r["prompt"]), ("assistant", r["completion"])] for r in RECORDS]


def test_a_json_array_and_json_lines_of_that_name(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(RECORDS, indent=1))
    examples = load_data(str(path))
    assert [texts(e) for e in examples] == EXPECTED and examples[1].source == f"{path}: record 2"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    assert [texts(e) for e in load_data(str(path))] == EXPECTED
    path.write_text("[1]")
    with pytest.raises(UserError, match="record 1: a JSON object is expected, not int"):
        load_data(str(path))


def test_csv(tmp_path):
    path = tmp_path / "d.csv"
    pandas.DataFrame(RECORDS).to_csv(path, index=False)
    examples = load_data(str(path))
    assert [texts(e) for e in examples] == EXPECTED and examples[1].source == f"{path}: row 2"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="row 1: .*the keys are: a, b"):
        load_data(str(path))
    for broken in ("", 'a,b\n"1,2\n', "a,b\n1,2,3\n1,2,3,4,5\n"):
        path.write_text(broken)
        with pytest.raises(UserError, match="d.csv"):
            load_data(str(path))
    path.write_bytes(b"prompt,completion\n\xff,\xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_data(str(path))


def test_parquet(tmp_path):
    path = tmp_path / "d.parquet"
    pandas.DataFrame(RECORDS).to_parquet(path)
    assert [texts(e) for e in load_data(str(path))] == EXPECTED
    turns = [[{"role": r, "content": c} for r, c in pair] for pair in EXPECTED]
    pandas.DataFrame({"messages": turns, "score": [0.5, None]}).to_parquet(path)
    assert [texts(e) for e in load_data(str(path))] == EXPECTED
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="d.parquet is no Parquet file"):
        load_data(str(path))


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(name, kind, patterns, option):
        asked.append((name, kind, patterns, option))
        return tmp_path

    monkeypatch.setattr(hub, "download", download)
    (tmp_path / "data").mkdir()
    line = json.dumps(RECORDS[0])
    for name in ("data/train-00000.jsonl", "data/train-00001.jsonl", "data/test-00000.jsonl"):
        (tmp_path / name).write_text(line + "\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [texts(e) for e in load_data("owner/name")] == EXPECTED[:1] * 2
    assert asked[0] == ("owner/name", "dataset", ["*.parquet", "*.jsonl", "*.json", "*.csv"], "data")
    for path in (tmp_path / "data").iterdir():
        path.rename(path.with_name(path.name.replace("train", "part")))
    with pytest.raises(UserError, match=r"`data` owner/name:FILE; the files are: data/part-00000.jsonl, data/part"):
        load_data("owner/name")
    load_data("owner/name:data/part-00000.jsonl")
    assert asked[-1][2] == ["data/part-00000.jsonl"]


def test_of_two_forms_of_the_same_data_one_is_taken():
    from pathlib import Path

    both = [Path("train.csv"), Path("train/0.parquet"), Path("train/1.parquet"), Path("test.csv")]
    assert files.choose(both) == [Path("train/0.parquet"), Path("train/1.parquet")]
    assert files.choose([Path("all.csv")]) == [Path("all.csv")]
    assert files.choose([Path("a.csv"), Path("b.csv")]) == []


def test_a_hub_that_cannot_be_reached_says_how_to_get_a_folder(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf download owner/no-such --repo-type dataset --local-dir FOLDER"):
        load_data("owner/no-such")
    with pytest.raises(UserError, match="`data` owner/name/more: no such file; give a file of .jsonl"):
        load_data("owner/name/more")


def test_the_document_and_the_error_list_every_form():
    text = (Path(__file__).parents[3] / "docs" / "command.md").read_text()
    rows = [line.split("|") for line in text[text.index("| keys |") :].split("\n\n")[0].splitlines()[2:]]
    keys = [tuple(re.findall("`(.*?)`", row[1])) for row in rows]
    assert keys == [("messages",), ("conversations",), ("instruction", "output"), *records.PAIRS]
    held = {key[0]: row[2] for key, row in zip(keys, rows, strict=True)}
    assert all(f"`{speaker}`" in held["conversations"] for speaker in records.SPEAKERS)
    assert all(f"`{role}`" in held["messages"] for role in records.ROLES)
    assert all(f'"{key}"' in records.FORMS for form in keys for key in form)


def test_the_documented_keys_in_a_table_and_in_lines(tmp_path):
    for first, second in (("instruction", "output"), *records.PAIRS):
        (tmp_path / "d.csv").write_text(f"note,{first},{second},system\nx,Hi,Hello!,Be kind.\n")
        line = {"note": "x", first: "Hi", second: "Hello!", "system": "Be kind."}
        (tmp_path / "d.jsonl").write_text(json.dumps(line) + "\n")
        for name in ("d.csv", "d.jsonl"):
            (example,) = load_data(str(tmp_path / name))
            assert [m["content"] for m in example.messages] == ["Be kind.", "Hi", "Hello!"]
