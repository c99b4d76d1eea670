"""python -m bench.performance_model: a roofline model of our kernels on several GPUs.

The bytes are those that bench.traffic counts, kernel by kernel; the figures of the GPUs are public. Writes
docs/performance-model.md.
"""

import argparse
from pathlib import Path

from .traffic.performance_model import page

PAGE = Path(__file__).resolve().parents[1] / "docs/performance-model.md"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.performance_model", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=PAGE, help="the page (default docs/performance-model.md)")
    options = parser.parse_args(arguments)
    text = page()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
