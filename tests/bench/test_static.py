"""The static report's instruction counts: of which loop, beside which budget, and what fails where."""

import dataclasses
import json

import pytest

from bench import gpu_static
from bench.static import budget
from bench.static.loop import step
from bench.static.row import Row, table

ROW = Row("lora_da", "triton", "sm_90", "64x64x64-w4-s3", "bf16", 4, 54, 0, 0, 1024, {"HGMMA": 4}, {"16": 8}, "HGMMA",
          step=128, elements=4096)  # fmt: skip
KEY = ROW.kernel, ROW.dtypes, ROW.config


def sass(*instructions):
    """As cuobjdump prints it, 16 bytes an instruction."""
    return "".join(f"        /*{16 * i:04x}*/    {text} ;  /* 0x0 */\n" for i, text in enumerate(instructions))


OUTER = ["MOV R1, R2", "IADD3 R3, R3, 0x1, RZ", "HMMA.16816.F32 R4, R8, R12, R4", "HMMA.16816.F32 R4, R8, R12, R4",
         "@!P0 BRA 0x10", "STG.E [R2], R4", "@P1 BRA.U UP0, 0x0", "LDG.E R9, [R2]", "FADD R9, R9, R4",
         "@P2 BRA P3, 0x70", "EXIT", "BRA 0xb0"]  # fmt: skip


def test_a_step_is_the_innermost_loop_with_products():
    """Not the loop over tiles around it, a sum after it, or the branch to itself at a kernel's end."""
    assert step(sass(*OUTER)) == 4


def test_of_two_loops_the_one_with_more_products_is_the_main_one():
    tail = ["HMMA.16816.F32 R4, R8, R12, R4", "NOP", "NOP", "NOP", "NOP", "@P0 BRA 0x70"]
    assert step(sass(*OUTER[:7], *tail, "EXIT")) == 4


def test_float32_off_the_tensor_cores_multiplies_too():
    plain = [text.replace("HMMA.16816.F32", "FFMA") for text in OUTER]
    assert step(sass(*plain)) == 4
    assert step(sass("LDG.E R9, [R2]", "FADD R9, R9, R4", "@P2 BRA 0x0", "EXIT")) is None


def test_an_element_is_counted_for_every_thread_of_the_block():
    assert ROW.an_element == 128 * 4 * 32 / 4096
    assert dataclasses.replace(ROW, elements=None).an_element is None
    head, _, line = table([ROW]).splitlines()
    assert head.split(" | ")[-3:] == ["instructions a step", "an element", "budget |"]
    assert line.endswith(f"| 128 | 4.0 | {ROW.budget} |")


@pytest.mark.parametrize("taken,most,fault", [(128, 128, []), (129, 128, ["129"]), (None, 128, ["None"])])
def test_a_step_over_its_budget_is_a_fault(taken, most, fault, monkeypatch):
    monkeypatch.setattr(budget, "BUDGETS", {})
    monkeypatch.setitem(budget.BUDGETS, KEY, {"sm_90": most})
    monkeypatch.setattr("bench.static.row.BUDGETS", budget.BUDGETS)
    found = dataclasses.replace(ROW, step=taken).faults()
    assert [text.rpartition(": ")[2] for text in found] == [
        f"{n} instructions a step, and its budget is {most}" for n in fault
    ]
    assert dataclasses.replace(ROW, step=taken, target="sm_80").faults() == []


def test_the_report_fails_where_a_budget_is_lowered_or_has_no_kernel(monkeypatch, tmp_path, capsys):
    run = ["--targets", "sm_90", "--providers", "triton", "--output", str(tmp_path)]
    monkeypatch.setitem(gpu_static.PROVIDERS, "triton", lambda targets: [ROW])
    only = {KEY: {"sm_90": ROW.step, "sm_80": 1}}  # no row is of sm_80, which was not asked for
    for most, code, words in (
        (ROW.step, 0, "0 faults"),
        (ROW.step - 1, 1, "128 instructions a step, and its budget is"),
    ):
        only[KEY]["sm_90"] = most
        monkeypatch.setattr("bench.static.row.BUDGETS", only)
        monkeypatch.setattr(budget, "BUDGETS", only)
        assert gpu_static.main(run) == code and words in capsys.readouterr().out
        (written,) = json.loads((tmp_path / "gpu_static.json").read_text())
        assert (written["step"], written["budget"], written["an_element"]) == (128, most, 4.0)
    gone = ("lora_da", "bf16", "other tiles"), ("shrink_kernel", "bf16", "of C++, which was not asked for")
    monkeypatch.setattr(budget, "BUDGETS", {KEY: {"sm_90": 128}} | {key: {"sm_90": 1} for key in gone})
    monkeypatch.setattr("bench.static.row.BUDGETS", {})
    assert gpu_static.main(run) == 1
    assert "lora_da (triton, sm_90, other tiles, bf16): a budget, and no such kernel was compiled" in (
        printed := capsys.readouterr().out
    )
    assert "1 faults" in printed


def test_the_rows_of_what_was_not_compiled_are_kept_if_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(budget, "BUDGETS", {})
    monkeypatch.setitem(gpu_static.PROVIDERS, "triton", lambda targets: [ROW])
    monkeypatch.setitem(
        gpu_static.PROVIDERS, "cuda", lambda targets: [dataclasses.replace(ROW, made_by="cuda", step=9)]
    )
    where = ["--output", str(tmp_path)]
    assert gpu_static.main([*where, "--targets", "sm_90"]) == 0
    before = json.loads((tmp_path / "gpu_static.json").read_text())
    new = dataclasses.replace(ROW, made_by="cuda", step=5)
    monkeypatch.setitem(gpu_static.PROVIDERS, "cuda", lambda targets: [new])
    capsys.readouterr()
    assert gpu_static.main([*where, "--targets", "sm_90", "--providers", "cuda", "--keep"]) == 0
    after = json.loads((tmp_path / "gpu_static.json").read_text())
    assert after[0] == before[0] and [row["step"] for row in after] == [ROW.step, 5]
    assert "1 kernels compiled" in capsys.readouterr().out


def test_the_main_kernels_have_budgets_on_each_generation():
    for kernel in ("lora_shrink, dropout", "lora_ds_db", "lora_da, dropout", "lora_linear", "lora_dx, dropout"):
        for dtypes in ("bf16", "bf16+fp32"):
            found = {t for (k, d, _), most in budget.BUDGETS.items() if (k, d) == (kernel, dtypes) for t in most}
            assert found == {"sm_80", "sm_90", "sm_100"}
