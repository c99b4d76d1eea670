"""python -m bench.readme: copies bench/results/NAME.md between the marks `<!-- bench:NAME -->` and `<!-- /bench -->`.

The documents are docs/benchmarks.md and README.md. `bench:NAME targets`, as in README.md, copies only the machine and
the targets. Until a benchmark in UNMEASURED is published, a sentence says how to measure it.
"""

import re
import sys
from pathlib import Path

from .harness.report import RESULTS

ROOT = Path(__file__).resolve().parents[1]
UNMEASURED = {
    "ranks": "bench-ranks", "multi_adapters": "bench-adapters", "adapter_files": "bench-files", "serve": "bench-serve",
}  # fmt: skip
DOCUMENTS = ROOT / "README.md", ROOT / "docs/benchmarks.md"


def filled(text, results):
    """A document's text with each marked part replaced by its file, or by the machine and the targets of the file.

    SystemExit if there is no such file, and the benchmark is not one in UNMEASURED.
    """

    def part(match):
        name, only = match[1], match[2] or ""
        path = results / f"{name}.md"
        if not path.is_file() and name in UNMEASURED:
            found = f"Not published yet: `make {UNMEASURED[name]} bench-publish` measures and writes the tables here.\n"
            return f"<!-- bench:{name}{only} -->\n{found}<!-- /bench -->"
        if not path.is_file():
            sys.exit(f"{path} does not exist: run the benchmark that writes it first")
        found = path.read_text()
        if only:
            found = "\n\n".join(found.split("\n\n")[:2]).rstrip() + "\n"
        return f"<!-- bench:{name}{only} -->\n{found}<!-- /bench -->"

    return re.sub(r"<!-- bench:(\w+)( targets)? -->.*?<!-- /bench -->", part, text, flags=re.DOTALL)


def main():
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text(), RESULTS))


if __name__ == "__main__":
    main()
