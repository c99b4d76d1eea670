"""python -m bench.readme: puts bench/results/NAME.md between README's `<!-- bench:NAME -->` and `<!-- /bench -->`."""

import re
import sys
from pathlib import Path

from .report import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"


def filled(text, results):
    """README's text with each marked part replaced by its file; SystemExit if there is none."""

    def part(match):
        path = results / f"{match[1]}.md"
        if not path.is_file():
            sys.exit(f"{path} does not exist: run the benchmark that writes it first")
        return f"<!-- bench:{match[1]} -->\n{path.read_text()}<!-- /bench -->"

    return re.sub(r"<!-- bench:(\w+) -->.*?<!-- /bench -->", part, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(), RESULTS))
