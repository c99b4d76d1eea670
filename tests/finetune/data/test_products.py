"""The examples of each product of one file."""

import json

import pytest

from pypeft_fast.finetune.data.products import of_products
from pypeft_fast.finetune.errors import UserError


def written(tmp_path, products):
    lines = [{"question": f"q{i}", "answer": "a", "product": name} for i, name in enumerate(products)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_products_in_the_order_of_their_first_record(tmp_path):
    parts = of_products(written(tmp_path, ["b", "a", "b"]), None)
    assert {name: len(part.examples) for name, part in parts.items()} == {"b": 2, "a": 1}


@pytest.mark.parametrize(
    ("products", "says"),
    [
        (["a", "default"], ":2: \"product\": 'default' cannot name an adapter"),
        (["a", "keys"], ":2: \"product\": 'keys' cannot name an adapter: "),
        (["a", "training"], ":2: \"product\": 'training' cannot name an adapter: "),
        (["Desk", "a", "desk"], ":3: \"product\": 'desk' and 'Desk' differ only by case"),
    ],
)
def test_names_that_are_refused(tmp_path, products, says):
    with pytest.raises(UserError) as error:
        of_products(written(tmp_path, products), None)
    assert says in str(error.value)
