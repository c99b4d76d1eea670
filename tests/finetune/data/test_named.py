"""Data files by the names of their adapters."""

import pytest

from pypeft_fast.finetune.data.named import LONGEST, named_data
from pypeft_fast.finetune.errors import UserError


def test_names_and_what_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.jsonl").write_text("")
    assert named_data(["desk=d.jsonl", "Größe_2=OWNER/NAME:f=1.csv"]) == {
        "desk": "d.jsonl",
        "Größe_2": "OWNER/NAME:f=1.csv",
    }
    assert named_data(["chatterbot:food"]) == {None: "chatterbot:food"}
    assert named_data(["a=b.jsonl"]) == {None: "a=b.jsonl"}
    assert named_data(["a=a=b.jsonl"]) == {"a": "a=b.jsonl"}
    assert named_data(["x" * LONGEST + "=d"]) == {"x" * LONGEST: "d"}


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["a=x", "y"], "`data` y has no name, and `data` is given 2 times"),
        (["x", "y"], "`data` x has no name"),
        (["a=x", "a=y"], "`data` a=y: the name 'a' is taken by x"),
        (["a="], "`data` a= names no data; give a=FILE"),
        (["=x"], "'' cannot name an adapter"),
        (["a/b=x"], "'a/b' cannot name an adapter"),
        (["..=x"], "'..' cannot name"),
        (["__base__=x"], "'__base__' cannot name"),
        (["a\n=x"], r"'a\n' cannot name"),
        (["default=x"], "'default' cannot name"),
        (["keys=x"], "'keys' cannot name an adapter: "),
        (["training=x"], "'training' cannot name an adapter: "),
        (["Desk=x", "desk=y"], "`data` desk=y: 'desk' and 'Desk' differ only by case"),
        (["x" * (LONGEST + 1) + "=d"], "at most 100 characters"),
    ],
)
def test_what_is_refused(specs, says):
    with pytest.raises(UserError) as error:
        named_data(specs)
    assert says in str(error.value)
