"""The traffic of our kernels and of other implementations, in bytes; the pages equal the output of their commands."""

import json
import re

import pytest

from tests.interpreter import ROOT, python

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(scope="module")
def data():
    """The committed table; test_the_committed_table_is_what_the_command_prints compares it with the kernels."""
    return json.loads((ROOT / "bench/results/traffic.json").read_text())


@pytest.fixture
def rows(data):
    return {kind: {row["name"]: row for row in data[kind]} for kind in ("lora", "ia3")}


def coefficients(row):
    return row["MK"], row["MN"]


def test_the_traffic_of_other_implementations(rows):
    assert {name: coefficients(row) for name, row in rows["lora"].items() if not name.startswith("ours")} == {
        "PEFT default, bf16 autocast": (54, 20),
        "PEFT default, no autocast": (48, 56),
        "PEFT bf16 adapters": (22, 20),
        "addmm style, no dropout": (10, 10),
        "LoRAFusion": (10, 2),
    }


@pytest.mark.parametrize("name", ["ours", "ours, float32 adapters", "ours, no dropout"])
def test_our_traffic_and_our_numbers_of_launches(rows, name):
    row, dropout = rows["lora"][name], "no dropout" not in name
    assert row["MK"] == pytest.approx(4.4 if dropout else 4.0, rel=0.01) and row["MN"] == 2
    assert row["workspace"] + row["low rank"] < 0.22 * row["bytes"]  # at r = 16, less than a pass over y
    seed = ["randint"] if dropout else []
    assert row["kernels"] == [*seed, "_lora_shrink", "_lora_linear", "_lora_ds_db", "_lora_dx", "_lora_da"]
    assert row["forward"] == 2 + len(seed) and row["backward"] == 3
    assert row["saved"] == {"MK": 2.125 if dropout else 2, "MN": 0}


def test_the_route_by_a_pass_and_the_vendors_gemm_moves_two_passes_more_for_each_product(rows):
    row = rows["lora"]["ours, vendor's GEMM onto a pass"]
    assert coefficients(row) == (pytest.approx(8.4, rel=0.01), 6)
    product = ["_low_rank", "addmm_"]
    assert row["kernels"] == ["randint", "_lora_shrink", *product, "_lora_ds_db", *product, "_lora_da"]


def test_each_launch_of_ours_makes_the_passes_it_should(data):
    found = {r["kernel"]: (r["reads"], r["writes"]) for r in data["launches"] if r["of"] == "LoRA"}
    assert found == {
        "_lora_shrink": ("2 MK", "0.125 MK"),
        "_lora_linear": ("2 MK + 2 NK", "2 MN"),
        "_lora_ds_db": ("2 MN", "0"),
        "_lora_dx": ("0.125 MK + 2 MN + 2 NK", "2 MK"),
        "_lora_da": ("2.125 MK", "0"),
    }


def test_rows_of_several_adapters_make_the_same_passes(data):
    """And one launch each way that groups the rows. Without rows of the base alone, which the passes over rows skip."""
    found = [(r["kernel"], r["reads"], r["writes"]) for r in data["launches"] if r["of"] == "LoRA, 3 adapters"]
    assert found == [
        ("_group_rows", "0", "0"),
        ("_multi_shrink", "2 MK", "0.125 MK"),
        ("_multi_linear", "2 MK + 2 NK", "2 MN"),
        ("_group_rows", "0", "0"),
        ("_multi_ds_db", "2 MN", "0"),
        ("_multi_dx", "0.125 MK + 2 MN + 2 NK", "2 MK"),
        ("_multi_da", "2.125 MK", "0"),
    ]


def test_ia3_moves_a_fraction_of_what_peft_moves(rows):
    found = {name: (*coefficients(row), row["forward"], row["backward"]) for name, row in rows["ia3"].items()}
    assert found == {
        "PEFT default": (0, 46, 4, 7),
        "PEFT bf16": (0, 16, 3, 5),
        "ours": (0, 6, 1, 1),
        "PEFT default, feedforward": (56, 0, 5, 7),
        "PEFT bf16, feedforward": (16, 0, 3, 5),
        "ours, feedforward": (2, 0, 1, 1),
    }


COUNTED = """
import torch
from bench.traffic.count import Counting, Shape, bytes_of
x, W, v = torch.zeros(6, 4), torch.zeros(5, 4, dtype=torch.bfloat16), torch.zeros(5)
with Counting(Shape(6, 4, 5, r=2)) as counting:
    W.float().t()  # 40 bytes read, 80 written; the view is no kernel
    y = x @ torch.empty(4, 5)
    y.add_(v.expand(6, 5))  # y is read and written, v read once
    y.copy_(torch.empty(6, 5))  # y is not read
    y.addmm_(x, torch.empty(4, 5), beta=0)
for k in counting.kernels:
    print(k.name, k.flops, k.read['MK'], k.read['MN'], k.read['NK'], k.read['low rank'], '->', *k.written.values())
print(bytes_of(torch.zeros(1).expand(7)), bytes_of(torch.zeros(0, 3)))
"""


def test_counting_is_right_by_hand():
    assert python("-c", COUNTED, expect_success=True).stdout.splitlines() == [
        "_to_copy 0 0 0 40 0 -> 80",
        "mm 240 96 0 80 0 -> 120",
        "add_ 0 0 140 0 0 -> 120",
        "copy_ 0 0 120 0 0 -> 120",
        "addmm_ 240 96 0 80 0 -> 120",
        "4 0",
    ]


def test_the_committed_table_is_what_the_command_prints(tmp_path):
    python("-m", "bench.traffic", "--output", tmp_path, timeout=900, expect_success=True)
    for name in ("traffic.md", "traffic.json"):
        committed = (ROOT / "bench/results" / name).read_text()
        assert (tmp_path / name).read_text() == committed, f"bench/results/{name} is stale: run `make traffic`"


def test_the_performance_model_is_what_the_command_prints_and_says_that_it_predicts(tmp_path):
    python("-m", "bench.performance_model", "--output", tmp_path / "page.md", timeout=900, expect_success=True)
    page = (tmp_path / "page.md").read_text()
    committed = (ROOT / "docs/performance-model.md").read_text()
    assert page == committed, "docs/performance-model.md is stale: run `make performance-model`"
    title, first = page.split("\n\n")[:2]
    assert "predicted, not measured" in title and first.startswith("**Every time on this page is predicted by a model")
    # The expected time of the frozen layer: two matrix products at the measured 794.5 TFLOPS of the H100.
    h100 = page.partition("### H100\n\n")[2]
    milliseconds = float(re.search(r"\| 4096x4096x4096 +\| ([\d.]+) +\|", h100)[1])
    assert milliseconds == pytest.approx(2 * 2 * 4096**3 / 794.5e12 * 1e3, abs=5e-4)
    # PEFT also moves 22 MK + 20 MN and the tensors of rank r, at 2970 GB/s.
    moved = 42 * 4096**2 + 1.5 * 2**20
    peft = float(re.search(r"\| 4096x4096x4096 +\|(?: [\d.]+ +\|){3} ([\d.]+) +\|", h100)[1])
    assert peft == pytest.approx(1 + moved / 2970e9 * 1e3 / milliseconds, abs=0.01)
