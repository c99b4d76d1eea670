"""Reads training data from JSON lines, a JSON array, CSV and Parquet, locally or in a data set on the Hub."""

from collections.abc import Iterator
from pathlib import Path

from .. import hub, json_text
from ..errors import UserError, as_user_error, need
from ..text import cut
from .records import Example, conversation

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")  # in order of preference, if the Hub has several formats


def read_file(path: Path, argument: str = "data") -> list[Example]:
    """The conversations of a file. The suffix of the name gives the format; any other suffix means JSON lines.

    Raises UserError if the file cannot be read, if a record is not valid (the message has its line or number), or if
    there are no records.
    """
    if not path.is_file():
        raise UserError(f"`{argument}` {path}: no such file")
    with as_user_error(f"`{argument}` {path} is not UTF-8 text", (UnicodeDecodeError,)):
        with as_user_error(f"`{argument}` {path} cannot be read", (OSError,)):
            records = {".csv": _csv, ".parquet": _parquet, ".json": _json}.get(path.suffix.lower(), _json_lines)(path)
            examples = [_example(record, source) for record, source in records]
    if not examples:
        raise UserError(f"`{argument}` {path} holds no examples")
    return examples


def read_jsonl(path: Path) -> list[Example]:
    """The conversations of a file of JSON lines, for any suffix of its name. Blank lines are skipped."""
    return read_file(path) if path.suffix == ".jsonl" else [_example(*pair) for pair in _json_lines(path)]


def read_hub(spec: str, argument: str = "data") -> list[Example]:
    """The conversations of OWNER/NAME or OWNER/NAME:FILE on the Hub.

    Without FILE: the conversations of the files with "train" in their path, or of the only file. If neither exists,
    UserError lists the files.
    """
    name, _, wanted = spec.partition(":")
    folder = hub.download(name, "dataset", [wanted] if wanted else [f"*{suffix}" for suffix in SUFFIXES], argument)
    found = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    chosen = [path for path in found if str(path) == wanted] if wanted else choose(found)
    if not chosen:
        names = cut(", ".join(map(str, found)) or "none of " + ", ".join(SUFFIXES), 500)
        raise UserError(
            f"`{argument}` {spec}: which of its files? Give `{argument}` {name}:FILE; the files are: {names}"
        )
    return [example for path in chosen for example in read_file(folder / path, argument)]


def choose(files: list[Path]) -> list[Path]:
    """The files to train on: those with "train" in their path, of one suffix; else the only file; else none."""
    data = [path for path in files if path.name != "dataset_infos.json"]
    said = [path for path in data if "train" in str(path).lower()]
    kinds = [[path for path in said if path.suffix == suffix] for suffix in SUFFIXES]
    return next(filter(None, kinds), data if len(data) == 1 else [])


def _example(record, source: str) -> Example:
    if not isinstance(record, dict):
        raise UserError(f"{source}: a JSON object is expected, not {type(record).__name__}")
    return conversation(record, source)


def _json_lines(path: Path) -> Iterator[tuple[object, str]]:
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield json_text.parse(line.rstrip(), f"{path}:{number}"), f"{path}:{number}"


def _json(path: Path) -> Iterator[tuple[object, str]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    for number, record in enumerate(json_text.parse(text, str(path)), 1):
        yield record, f"{path}: record {number}"


def _csv(path: Path) -> Iterator[tuple[object, str]]:
    need("pandas")
    import pandas

    with as_user_error(f"{path} is no CSV file", (pandas.errors.ParserError, pandas.errors.EmptyDataError)):
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    yield from _rows(table, path)


def _parquet(path: Path) -> Iterator[tuple[object, str]]:
    need("pandas", "pyarrow")
    import pandas

    with as_user_error(f"{path} is no Parquet file", (ValueError, OSError, NotImplementedError)):
        table = pandas.read_parquet(path, engine="pyarrow")
    yield from _rows(table, path)


def _rows(table, path: Path) -> Iterator[tuple[object, str]]:
    for number, record in enumerate(table.to_dict("records"), 1):
        yield {str(name): _plain(value) for name, value in record.items()}, f"{path}: row {number}"


def _plain(value):
    """The value of a cell as in JSON: pandas returns an array for a list, and NaN for an empty cell."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if value != value else value
