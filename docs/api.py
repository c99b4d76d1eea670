"""python docs/api.py: writes the API reference of all public names into out/api, with pdoc from the docstrings."""

import argparse
import sys
import warnings
from pathlib import Path

import pdoc

import pypeft_fast

OUTPUT = Path("out/api")
MODULES = ("pypeft_fast", "pypeft_fast.nn")


def undocumented(names):
    """The names of the package without a docstring."""
    return [name for name in names if not (vars(pypeft_fast).get(name) or getattr(pypeft_fast, name)).__doc__]


def build(output):
    """Writes the pages. SystemExit lists the names without a docstring, or pdoc's warnings about unresolved names."""
    names = [name for name in pypeft_fast.__all__ if name != "nn"]
    for name in names:  # the package loads a name on first use, and pdoc sees only loaded names
        setattr(pypeft_fast, name, getattr(pypeft_fast, name))
    if bare := undocumented(names):
        sys.exit(f"no docstring: {', '.join(bare)}")
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*MODULES, output_directory=output)
    # Other warnings may come from annotations in PEFT.
    if unresolved := [str(w.message) for w in caught if "does not resolve" in str(w.message)]:
        sys.exit("\n".join(unresolved))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python docs/api.py", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    build(options.output)
    print(f"{options.output}/index.html")


if __name__ == "__main__":
    main()
