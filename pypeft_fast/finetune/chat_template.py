"""A chat template from a file, which is stored with the adapter and used wherever the adapter answers."""

from pathlib import Path

from .errors import UserError
from .json_text import check_text

FILE = "chat_template.jinja"  # in an adapter's folder; transformers' name of the file in a model's folder
TRIAL = [{"role": "user", "content": "hello"}]


def read_template(path: str) -> str:
    """The text of a template's file. UserError if it cannot be read or is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        check_text(text, f"`chat_template` {path}")
    except UnicodeDecodeError as error:
        raise UserError(f"`chat_template` {path}: not UTF-8 text: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"`chat_template` {path}: cannot be read: {getattr(error, 'strerror', error)}") from error
    if not text.strip():
        raise UserError(f"`chat_template` {path}: empty; a template renders the messages of a conversation")
    return text


def use_template(tokenizer, path: str) -> str:
    """Gives the tokenizer the template in this file; returns its text. UserError if it is not valid Jinja."""
    from jinja2 import TemplateError, TemplateSyntaxError

    tokenizer.chat_template = read_template(path)
    try:
        tokenizer.apply_chat_template(TRIAL, tokenize=False, add_generation_prompt=True)
    except TemplateSyntaxError as error:
        raise UserError(f"`chat_template` {path}: line {error.lineno}: {error.message}") from error
    except (TemplateError, TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError):
        pass  # it may refuse this conversation; an error for a conversation of the data names its line
    return tokenizer.chat_template


def template_in(folder: Path) -> str | None:
    """The template that an adapter was trained with; None: that of the base model's tokenizer."""
    return read_template(str(folder / FILE)) if (folder / FILE).is_file() else None


def template_file(adapter: str) -> str | None:
    """The file of the template that an adapter was trained with, or None. UserError as from `read_template`."""
    return None if template_in(Path(adapter)) is None else str(Path(adapter) / FILE)


def common_template(folders: list[Path]) -> str | None:
    """The template that several adapters were trained with. UserError if the templates differ."""
    first, *others = ((folder, template_in(folder)) for folder in folders)
    for folder, template in others:
        if template != first[1]:
            lacking = next((name for name, its in (first, (folder, template)) if its is None), None)
            reason = f", since {lacking} has no {FILE}" if lacking else ""
            raise UserError(
                f"the chat templates of {first[0]} and {folder} differ{reason}; give adapters with the same {FILE}"
            )
    return first[1]
