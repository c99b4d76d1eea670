"""python -m bench.traffic: the bytes that forward and backward of one layer move, and the kernels that move them.

The bytes are counted, on any machine: for PEFT's layers op by op, for ours in Triton's interpreter. Writes traffic.md
and traffic.json in bench/results.
"""

import argparse
import json
from pathlib import Path

from ..harness.report import RESULTS
from .interpreted import IA3, IA3_FEEDFORWARD, LORA, SEGMENTS, TRACED
from .providers import IA3_PROVIDERS, LORA_PROVIDERS
from .report import SIZE, launches, report, row


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.traffic", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the report (default bench/results)")
    options = parser.parse_args(arguments)
    lora = [row(name, provider) for name, provider in LORA_PROVIDERS.items()]
    ia3 = [row(name, provider) for name, provider in IA3_PROVIDERS.items()]
    methods = {"LoRA": LORA, "LoRA, 3 adapters": SEGMENTS, "IA3": IA3, "IA3, feedforward": IA3_FEEDFORWARD}
    traced = launches(methods)
    text = report(lora, ia3, traced)
    options.output.mkdir(parents=True, exist_ok=True)
    data = {"traced": str(TRACED), "size": str(SIZE), "lora": lora, "ia3": ia3, "launches": traced}
    (options.output / "traffic.json").write_text(json.dumps(data, indent=1) + "\n")
    (options.output / "traffic.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
