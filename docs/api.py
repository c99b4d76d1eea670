"""python docs/api.py: the reference of every public name, from its docstring, into out/api; pdoc writes it."""

import argparse
import sys
import warnings
from pathlib import Path

import pdoc

import pypeft_fast

OUTPUT = Path("out/api")
MODULES = ("pypeft_fast", "pypeft_fast.nn")


def undocumented(names):
    """Those of the package's names that have no docstring of their own."""
    return [name for name in names if not (vars(pypeft_fast).get(name) or getattr(pypeft_fast, name)).__doc__]


def build(output):
    """Writes the pages; SystemExit that names what has no docstring, or what pdoc warns of."""
    names = [name for name in pypeft_fast.__all__ if name != "nn"]
    for name in names:  # loaded when asked for: pdoc looks where a name is already
        setattr(pypeft_fast, name, getattr(pypeft_fast, name))
    if bare := undocumented(names):
        sys.exit(f"no docstring: {', '.join(bare)}")
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pdoc.pdoc(*MODULES, output_directory=output)
    if lost := [str(w.message) for w in told if "does not resolve" in str(w.message)]:  # PEFT's own annotations may be
        sys.exit("\n".join(lost))


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python docs/api.py", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    build(options.output)
    print(f"{options.output}/index.html")


if __name__ == "__main__":
    main()
