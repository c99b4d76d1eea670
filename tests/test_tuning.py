"""Choices that are timed: once per shape bucket, kept across processes, none where timing is off. The clock is fake."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast import _op, _tuning
from pypeft_fast._op import OPS
from tests.ops.checks import Case, sample

CPU = torch.device("cpu")
COST = {"a": 3.0, "b": 1.0, "c": 2.0}


@pytest.fixture(autouse=True)
def clock(monkeypatch, tmp_path):
    """A list of what was timed; a candidate's function returns its own time."""
    timed = []
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYPEFT_FAST_TUNE", raising=False)
    monkeypatch.setattr(_tuning, "_known", {})
    monkeypatch.setattr(_tuning, "milliseconds", lambda function, device: timed.append(function()) or timed[-1])
    return timed


def candidates(names="abc"):
    return {name: lambda name=name: COST[name] for name in names}


def test_the_fastest_is_timed_once_and_kept_on_disk(clock, monkeypatch):
    assert _tuning.fastest(("op", 8), candidates(), CPU) == "b" and clock == [3.0, 1.0, 2.0]
    assert _tuning.fastest(("op", 8), candidates(), CPU) == "b" and len(clock) == 3
    monkeypatch.setattr(_tuning, "_known", {})  # as in another process
    assert _tuning.fastest(("op", 8), candidates(), CPU) == "b" and len(clock) == 3
    assert _tuning.fastest(("op", 16), candidates(), CPU) == "b" and len(clock) == 6  # another key


def test_another_process_reads_the_decision(clock):
    _tuning.fastest(("op",), candidates(), CPU)
    code = (
        "import torch\nfrom pypeft_fast import _tuning\n"
        "print(_tuning.fastest(('op',), dict.fromkeys('abc', None), torch.device('cpu')))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "b"  # timing None would have raised


@pytest.mark.parametrize("text", ["", "{", "[]", '{"winner": "b"}', "\xff"])
def test_a_torn_or_foreign_file_is_measured_anew(clock, monkeypatch, text):
    _tuning.fastest(("op",), candidates(), CPU)
    (path,) = _tuning.folder().iterdir()
    path.write_text(text, encoding="latin-1")
    monkeypatch.setattr(_tuning, "_known", {})
    assert _tuning.fastest(("op",), candidates(), CPU) == "b" and len(clock) == 6
    assert json.loads(path.read_text())["winner"] == "b"


def test_other_candidates_are_measured_anew(clock, monkeypatch):
    _tuning.fastest(("op",), candidates("ab"), CPU)
    monkeypatch.setattr(_tuning, "_known", {})
    assert _tuning.fastest(("op",), candidates("ac"), CPU) == "c"


def test_tuning_off_takes_the_first_and_touches_nothing(clock, monkeypatch):
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "0")
    assert _tuning.fastest(("op",), candidates(), CPU) == "a"
    assert clock == [] and not _tuning.folder().exists()


def test_a_folder_that_cannot_be_written_is_a_warning(clock, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="tuning of op is not kept"):
        assert _tuning.fastest(("op",), candidates(), CPU) == "b"


class TooLarge(Exception):
    pass


def test_a_candidate_that_does_not_fit_is_out_and_the_first_one_must(clock):
    def refuses():
        raise TooLarge

    some = candidates() | {"b": refuses}
    assert _tuning.fastest(("op",), some, CPU, unfit=(TooLarge,)) == "c"
    with pytest.raises(TooLarge):
        _tuning.fastest(("another",), some, CPU)
    with pytest.raises(TooLarge):
        _tuning.fastest(("op", "first"), candidates() | {"a": refuses}, CPU, unfit=(TooLarge,))


def test_nothing_is_timed_while_a_graph_is_captured(clock, monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(_tuning, "_machine", lambda device: (9, 0))
    for capturing, chosen, timed in ((True, "a", 0), (False, "b", 3), (True, "b", 3)):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        assert _tuning.fastest(("op",), candidates(), gpu) == chosen and len(clock) == timed
    monkeypatch.setattr(_tuning, "_known", {})
    assert _tuning.fastest(("op",), candidates(), gpu) == "b" and len(clock) == 3  # read from the disk in a capture


def test_rows_share_a_decision_up_to_a_power_of_two():
    assert [_tuning.bucket(rows) for rows in (0, 1, 2, 3, 512, 513)] == [1, 1, 2, 4, 512, 1024]


@pytest.mark.parametrize("name", ["lora_linear", "lora_dx", "ia3_linear", "ia3_dx_dl"])
@pytest.mark.parametrize("winner", ["cpu", "blas"])
def test_an_op_runs_its_fastest_kernel(clock, monkeypatch, name, winner):
    op = OPS[name]
    args = sample(name, Case(M=6, p=0.3))
    if pf.kernels()[name]["cpu"] != "available":
        pytest.skip("the C++ kernels are not built, and one kernel is no choice")
    monkeypatch.setattr(_op, "TIMED", ("cpu",))
    order = []

    def milliseconds(function, device):
        kernel = next(k.name for k in op.kernels if k.function is function.func)
        order.append(kernel)
        return 1.0 if kernel == winner else 2.0

    monkeypatch.setattr(_tuning, "milliseconds", milliseconds)
    with pf.recording() as ran:
        op(*args)
        op(*sample(name, Case(M=7, p=0.3)))  # the same bucket: no more timing
    assert ran == [(name, winner)] * 2 and order == ["cpu", "blas"]
    with pf.recording():  # which no call goes around
        op(*sample(name, Case(M=9, p=0.3)))
    assert order == ["cpu", "blas"] * 2
    with pf.using("reference"):
        assert op.choose(*args).name == "reference"


@pytest.mark.parametrize(
    "rows,dtype,capability,first",
    [
        (16, torch.bfloat16, (9, 0), "cuda"),
        (17, torch.bfloat16, (9, 0), "triton"),
        (17, torch.float16, (10, 3), "triton"),
        (17, torch.float32, (9, 0), "cuda"),
        (17, torch.bfloat16, (8, 0), "cuda"),
        (17, torch.bfloat16, (12, 0), "cuda"),
    ],
)
def test_before_anything_is_timed_the_newer_instructions_go_first(monkeypatch, rows, dtype, capability, first):
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    x = SimpleNamespace(
        shape=(rows, 64), device=torch.device("cuda:0"), dtype=dtype, element_size=lambda: dtype.itemsize
    )
    op = OPS["lora_linear"]
    monkeypatch.setattr(op, "_depends", lambda *args: ())
    able = [k for k in op.kernels if k.name in ("cuda", "triton", "blas")]
    assert op._fastest(able, (x,)).name == first


def test_tiles_are_timed_among_those_that_fit():
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from pypeft_fast.kernels import _tiles

    assert triton
    for arch in _tiles.SHARED:
        for op in (*OPS, *_tiles.GEMMS):
            for bits in (16, 32):
                options = _tiles.candidates(op, arch, bits)
                assert options[0] == _tiles.default(op, arch, bits) and len(set(options)) == len(options) >= 4
                assert len({str(c) for c in options}) == len(options)
                assert all(_tiles.fits(op, c, arch, bits) for c in options)
    assert _tiles.known(87) == 86 and _tiles.known(103) == 100 and _tiles.known(121) == 120
    assert _tiles.split(1000, 64, 1, CPU) == (192, 6) and _tiles.split(10, 16, 50, CPU) == (16, 1)


def test_candidates_run_once_each_and_then_the_winner(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from pypeft_fast.kernels import _tiles

    monkeypatch.setattr(_tiles, "architecture", lambda device: 90)
    ran = []
    cost = {config: i for i, config in enumerate(reversed(_tiles.candidates("lora_da", 90, 32)))}
    for _ in range(2):
        _tiles.launch("lora_da", lambda config: ran.append(config) or cost[config], (torch.ones(4, 4),), (4, 4, 1))
    assert ran == [*_tiles.candidates("lora_da", 90, 32), ran[-1], ran[-1]]
    assert ran[-1] == _tiles.candidates("lora_da", 90, 32)[-1]
