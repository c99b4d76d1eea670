"""python docs/api.py: writes the API reference of all public names into out/api, with pdoc from the docstrings."""

import argparse
import inspect
import sys
import warnings
from pathlib import Path

import pdoc

import pypeft_fast

OUTPUT = Path("out/api")
TEMPLATES = Path(__file__).parent / "pdoc"
# adapter_linear has what the layers inherit: merge, unmerge. pdoc links an inherited method only to a page of its own.
MODULES = ("pypeft_fast", "pypeft_fast.nn", "pypeft_fast.nn.adapter_linear")
# {title in api.md: whether a name with its value belongs there}; the first that fits.
GROUPS = {
    "Functions on tensors": lambda name, value: ".autograd." in value.__module__,
    "Frozen weights": lambda name, value: ".frozen." in value.__module__ or name == "quantize_model",
    "Kernels": lambda name, value: value.__module__.endswith("._op"),
    "Models: functions": lambda name, value: inspect.isfunction(value),
    "Models: classes": lambda name, value: True,
}


def names():
    """The public names of the package without `nn`, whose layers have a page of their own."""
    return [name for name in pypeft_fast.__all__ if name != "nn"]


def undocumented(names):
    """The names of the package without a docstring."""
    return [name for name in names if not (vars(pypeft_fast).get(name) or getattr(pypeft_fast, name)).__doc__]


def build(output):
    """Writes the pages. SystemExit lists the names without a docstring, or pdoc's warnings about unresolved names."""
    for name in names():  # the package loads a name on first use, and pdoc sees only loaded names
        setattr(pypeft_fast, name, getattr(pypeft_fast, name))
    if bare := undocumented(names()):
        sys.exit(f"no docstring: {', '.join(bare)}")
    pdoc.render.configure(docformat="google", template_directory=TEMPLATES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*MODULES, output_directory=output)
    # Other warnings may come from annotations in PEFT.
    if unresolved := [str(w.message) for w in caught if "does not resolve" in str(w.message)]:
        sys.exit("\n".join(unresolved))


def tables():
    """Markdown tables of the public names by group: each name with the first sentence of its docstring and a link."""
    groups = {title: [] for title in GROUPS}
    for name in names():
        value = getattr(pypeft_fast, name)
        group = next(title for title, fits in GROUPS.items() if fits(name, value))
        groups[group].append(_row(f"pf.{name}", value, f"api/pypeft_fast.html#{name}"))
    layers = [
        _row(f"pf.nn.{n}", getattr(pypeft_fast.nn, n), f"api/pypeft_fast/nn.html#{n}") for n in pypeft_fast.nn.__all__
    ]
    return "\n\n".join(
        f"## {title}\n\n| name | what |\n| --- | --- |\n" + "\n".join(rows)
        for title, rows in ({"Layers": layers} | groups).items()
    )


def _row(name, value, link):
    paragraph = " ".join(inspect.getdoc(value).split("\n\n")[0].split())
    return f"| [`{name}`]({link}) | {paragraph.replace('|', chr(92) + '|')} |"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python docs/api.py", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    build(options.output)
    print(f"{options.output}/index.html")


if __name__ == "__main__":
    main()
