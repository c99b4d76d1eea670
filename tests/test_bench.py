"""The benchmark interleaves its rounds, compares with its targets, and reports a speed only for right results."""

import json

import pytest

from tests.interpreter import python

RUN = """
import dataclasses, sys, torch
import bench.harness.cases, bench.run
folder, dtype, *spoiled = sys.argv[1:]
d = getattr(torch, dtype)
bench.run.all_cases = lambda: [
    bench.harness.cases.Case(16, 24, 40, r=16, p=p, dtype=d, adapter=d, kind=k)
    for p, k in ((0.25, "lora"), (0.0, "lora"), (0.25, "ia3"))
]
for name in spoiled:
    right = bench.harness.cases.PROVIDERS[name]
    def build(case, operands):
        step = right.build(case, operands)
        return lambda: tuple(0.5 * t for t in step())
    bench.harness.cases.PROVIDERS[name] = dataclasses.replace(right, build=build)
bench.run.main(["--seconds", "0", "--output", folder])
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_provider_is_right_and_timed(dtype, tmp_path):
    done = python("-c", RUN, tmp_path, dtype)
    assert done.returncode == 0, done.stderr
    dropped, plain, ia3 = json.loads((tmp_path / "layer.json").read_text())["results"]
    assert set(dropped["seconds"]) == {"frozen", "PEFT", "addmm", "ours", "ours p=0", "ours cpu", "ours blas"}
    assert set(plain["seconds"]) == {"frozen", "PEFT", "ours"}
    assert set(ia3["seconds"]) == {"frozen", "PEFT IA3", "ours IA3"}
    assert all(t > 0 for r in (dropped, plain, ia3) for t in r["seconds"].values())
    size = 4 if dtype == "float32" else 2
    assert dropped["bytes"] == size * (16 * 24 + 24 * 40 + 16 * 40 + 16 * (24 + 40))
    assert dropped["flops"] == 4 * 16 * 24 * 40 + 6 * 16 * 16 * (24 + 40)
    assert "| verdict" in (tmp_path / "layer.md").read_text() and (tmp_path / "layer.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["ours", "PEFT", "frozen"])
def test_no_speed_of_a_wrong_provider(name, tmp_path):
    done = python("-c", RUN, tmp_path, "float32", name)
    assert done.returncode == 1 and f"{name}, 16x24x40" in done.stderr and "y is off by" in done.stderr
    assert not list(tmp_path.iterdir())


def test_rounds_are_interleaved_and_the_median_is_kept():
    done = python(
        "-c",
        "from bench.harness.timing import interleaved\n"
        "now, order = [0.0], []\n"
        "def step(name, took):\n"
        "    def run():\n"
        "        order.append(name); now[0] += took[min(order.count(name), len(took)) - 1]\n"
        "    return run\n"
        "print(interleaved({'a': step('a', [90, 1, 50, 1]), 'b': step('b', [2])}, lambda: now[0], 0, least=3))\n"
        "print(''.join(order))",
    )
    medians, order = done.stdout.splitlines()
    assert medians == "{'a': 1.0, 'b': 2.0}", done.stderr
    rounds = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert len(rounds) == 4 and set(rounds) == {"ab", "ba"}  # each step once a round, the order changes


def test_targets_pass_or_fall_short():
    done = python(
        "-c",
        "from bench.harness.targets import layer_rows\n"
        "def result(p, threads, ours, r=16):\n"
        "    case = dict(kind='lora', r=r, p=p, threads=threads, dtypes='float32', M=512, K=576, N=1536)\n"
        "    return dict(case=case, flops=r, seconds={'frozen': 1.0, 'PEFT': 1.3, 'ours': ours, 'ours p=0': 1.2})\n"
        "rows = layer_rows([result(.05, 1, 1.1), result(0., 1, 1.2), result(.05, 2, 1.0), result(.05, 1, 1.4, r=64)])\n"
        "for what, *rest in rows: print(*rest)",
    )
    assert done.stdout.splitlines() == [
        "1.10 <= 1.08 falls short",
        "1.10 <= 1.14 pass",
        "1.09 <= 1 falls short",
        "1.08 >= 1 pass",
        "1.30 >= 1.25 pass",
        "0.93 >= 1 falls short",
        "0.32 <= 1.1 pass",
    ], done.stderr
