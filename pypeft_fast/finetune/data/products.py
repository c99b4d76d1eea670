"""The data of each of several adapters: from a file for each, or from one file whose records name their product."""

from dataclasses import dataclass, field

from ..errors import UserError, about
from ..text import cut, quoted
from .load import load_data
from .named import check_new_name
from .records import Example

FIELD = "product"


@dataclass(frozen=True)
class Part:
    """One adapter's examples, those that are held out (None: a part of the examples), and {field of Settings: value}
    that says where both are from."""

    examples: list[Example]
    held_out: list[Example] | None
    settings: dict[str, str | None] = field(default_factory=dict)


def of_files(data: dict[str, str], eval_data: dict[str, str]) -> dict[str, Part]:
    """{name: Part} of a file for each name, as `load_data` reads it."""
    return {
        name: Part(
            load_data(its),
            load_data(eval_data[name], "eval_data") if name in eval_data else None,
            {"data": its, "eval_data": eval_data.get(name)},
        )
        for name, its in data.items()
    }


def of_products(data: str, eval_data: str | None) -> dict[str, Part]:
    """{product: Part} of files whose every record names its product.

    Raises UserError, with file and line: a record without a product, or whose product cannot name an adapter; also if
    all records have one product, or if those that are held out have a product that the others lack.
    """
    parts = by_product(load_data(data), data)
    if len(parts) < 2:
        only = next(iter(parts))
        raise UserError(
            f"`data` {cut(data)}: all lines have the product {quoted(only)}, and `by_product` trains an adapter for "
            "each of several; leave `by_product` out"
        )
    held_out = by_product(load_data(eval_data, "eval_data"), eval_data, "eval_data") if eval_data else {}
    if unknown := next((name for name in held_out if name not in parts), None):
        source = held_out[unknown][0].source
        raise UserError(f"{source}: no line of `data` has the product {quoted(unknown)}; there are: {_listed(parts)}")
    return {
        name: Part(
            its,
            held_out.get(name),
            {"data": data, "product": name, "eval_data": eval_data if name in held_out else None},
        )
        for name, its in parts.items()
    }


def of_one(data: str, eval_data: str | None, product: str | None) -> Part:
    """All examples of the files, or only those of a product. UserError: no line has this product."""
    parts = []
    for argument, source in (("data", data), ("eval_data", eval_data)):
        examples = load_data(source, argument) if source is not None else None
        if examples is not None and product is not None:
            found = by_product(examples, source, argument)
            if product not in found:
                raise UserError(f"`{argument}` {cut(source)}: no line has `product` {product}: {_listed(found)}")
            examples = found[product]
        parts.append(examples)
    return Part(*parts, {"data": data, "eval_data": eval_data})


def by_product(examples: list[Example], source: str, argument: str = "data") -> dict[str, list[Example]]:
    """{product: its examples}, in the order in which the products first occur. UserError as in `of_products`."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        name = example.product
        if name is None or not isinstance(name, str):
            what = f'has no "{FIELD}"' if name is None else f'has a "{FIELD}" that is no text: {quoted(name)}'
            raise UserError(f'{example.source} {what}; give every line of `{argument}` {cut(source)} a "{FIELD}"')
        if name not in found:
            with about(example.source):
                check_new_name(name, found, f'"{FIELD}"')
        found.setdefault(name, []).append(example)
    return found


def _listed(names) -> str:
    return cut(", ".join(names))
