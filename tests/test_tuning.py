"""Tuning: timed once for each shape bucket, kept across processes, and switched off. The clock is fake."""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast import _native, _op, _tuning
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, sample
from tests.interpreter import python

CPU = torch.device("cpu")
COST = {"a": 3.0, "b": 1.0, "c": 2.0}
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def clock(monkeypatch, tmp_path):
    """The list of measured times; the function of a candidate returns the time to measure."""
    timed = []
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYPEFT_FAST_TUNE", raising=False)
    monkeypatch.setattr(_tuning, "_known", {})
    monkeypatch.setattr(_tuning, "_warned", False)
    monkeypatch.setattr(_tuning, "milliseconds", lambda function, device: timed.append(function()) or timed[-1])
    return timed


def fastest(key, names="abc", run=COST.get, device=CPU):
    return _tuning.fastest(key, {name: name for name in names}, run, device)


def another_process(monkeypatch):
    monkeypatch.setattr(_tuning, "_known", {})


def test_the_fastest_is_timed_once_and_kept_on_disk(clock, monkeypatch):
    assert fastest(("op", 8)) == "b" and clock == [3.0, 1.0, 2.0]
    assert fastest(("op", 8)) == "b" and len(clock) == 3
    another_process(monkeypatch)
    assert fastest(("op", 8)) == "b" and len(clock) == 3
    assert fastest(("op", 16)) == "b" and len(clock) == 6  # another key


# Changes after which a decision must be made again.
UPGRADES = {
    "PyTorch": lambda patch: patch.setattr(torch, "__version__", "2.99.0"),
    "Triton": lambda patch: patch.setattr(_tuning, "_triton_version", lambda: "3.99.0"),
    "the kernels": lambda patch: patch.setattr(_tuning, "_kernels_digest", lambda: "another"),
    "the meaning of a file": lambda patch: patch.setattr(_tuning, "_VERSION", 99),
}


@pytest.mark.parametrize("what", UPGRADES)
def test_an_upgrade_is_measured_anew(clock, monkeypatch, what):
    fastest(("op",))
    another_process(monkeypatch)
    UPGRADES[what](monkeypatch)
    monkeypatch.setattr(_tuning, "_machine", _tuning._machine.__wrapped__)  # without its cache
    assert fastest(("op",)) == "b" and len(clock) == 6


def test_what_a_decision_depends_on_is_read_off_this_installation(monkeypatch, tmp_path):
    assert _tuning._machine(CPU) == ("cpu", torch.__version__, _tuning._triton_version(), _tuning._kernels_digest())
    gpu = SimpleNamespace(major=9, minor=0, multi_processor_count=132, name="its name", gcnArchName="gfx942:sramecc+")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    told = {}
    for hip in (None, "6.4"):
        monkeypatch.setattr(torch.version, "hip", hip)
        told[hip] = _tuning._machine.__wrapped__(torch.device("cuda:0"))
    assert told[None][:2] == ("sm_90", 132) and told["6.4"][:2] == ("gfx942", 132)
    assert told[None][2:] == _tuning._machine(CPU)[1:] and "its name" not in told[None]
    digest = _tuning._kernels_digest.__wrapped__
    before, library = digest(), tmp_path / "_C_cuda.so"
    library.write_bytes(b"of another build")
    monkeypatch.setattr(_native, "CUDA_LIBRARY_PATH", library)
    assert digest() != before


def test_another_process_reads_the_decision(clock):
    fastest(("op",))
    code = (
        "import torch\nfrom pypeft_fast import _tuning\n"
        "print(_tuning.fastest(('op',), {n: n for n in 'abc'}, None, torch.device('cpu')))"
    )
    done = python("-c", code, expect_success=True)
    assert done.stdout.strip() == "b"  # calling None would have raised


WRITER = """
import sys, torch
from pypeft_fast import _tuning
_tuning.milliseconds = lambda function, device: function()
for i in range(int(sys.argv[1]), 150):
    cost = {name: float((i + k) % 7) for k, name in enumerate("abc")}
    _tuning.fastest(("op", i % 5), {name: name for name in "abc"}, cost.get, torch.device("cpu"))
    _tuning._known.clear()
    for path in _tuning.folder().glob("*.json"):
        path.unlink(missing_ok=True) if i % 3 == 0 else None
"""


def test_processes_that_write_at_the_same_time_leave_whole_files(clock):
    """A process reads a whole file or none. A partial file would cause a warning, which is an error here."""
    run = [sys.executable, "-W", "error", "-c", WRITER]
    started = [subprocess.Popen([*run, str(i)], env=os.environ, stderr=subprocess.PIPE, text=True) for i in range(2)]
    assert [(p.communicate(timeout=300)[1], p.returncode) for p in started] == [("", 0)] * 2
    files = list(_tuning.folder().iterdir())
    assert files and all(json.loads(path.read_text())["winner"] in "abc" for path in files)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_damaged_file_is_measured_anew_with_one_warning(clock, monkeypatch, text):
    keys = [("op", i) for i in range(2)]
    for key in keys:
        fastest(key)
    for path in _tuning.folder().iterdir():
        path.write_text(text, encoding="latin-1")
    another_process(monkeypatch)
    with pytest.warns(UserWarning, match="an earlier run cannot be read and is measured again") as warned:
        assert [fastest(key) for key in keys] == ["b", "b"] and len(clock) == 12 and len(warned) == 1
    assert all(json.loads(path.read_text())["winner"] == "b" for path in _tuning.folder().iterdir())


@pytest.mark.parametrize("text", ["[]", '{"winner": "b"}', '{"winner": ["b"], "key": "", "candidates": 1}'])
def test_a_foreign_file_is_measured_anew(clock, monkeypatch, text):
    fastest(("op",))
    (path,) = _tuning.folder().iterdir()
    path.write_text(text)
    another_process(monkeypatch)
    assert fastest(("op",)) == "b" and len(clock) == 6
    assert json.loads(path.read_text())["winner"] == "b"


def test_other_candidates_are_measured_anew(clock, monkeypatch):
    fastest(("op",), "ab")
    assert fastest(("op",), "ac") == "c"  # also in the same process
    another_process(monkeypatch)
    assert fastest(("op",), "ab") == "b" and len(clock) == 6


def test_tuning_off_takes_the_first_and_touches_nothing(clock, monkeypatch):
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "0")
    assert fastest(("op",)) == "a"
    assert clock == [] and not _tuning.folder().exists()


def test_a_folder_that_cannot_be_written_is_one_warning(clock, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not .* for the next run: .*file") as warned:
        assert [fastest(("op", i)) for i in range(3)] == ["b"] * 3 and len(clock) == 9
    assert len(warned) == 1


def test_a_full_disk_leaves_nothing_behind(clock, monkeypatch):
    def full(entry, file, **options):
        file.write("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    with pytest.warns(UserWarning, match="not .* for the next run: .*No space left"):
        assert fastest(("op",)) == "b"
    assert list(_tuning.folder().iterdir()) == []


def test_tuning_works_without_a_home_folder(clock, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PYPEFT_FAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(_tuning.Path, "home", home)
    with pytest.warns(UserWarning, match="no home folder and no PYPEFT_FAST_CACHE"):
        assert fastest(("op",)) == "b" and fastest(("op",)) == "b" and len(clock) == 3


def refusing(error, *refused):
    """COST.get that raises `error` for the refused candidates."""

    def run(name):
        if name in refused:
            raise error
        return COST[name]

    return run


def out_of_resources():
    return pytest.importorskip("triton.runtime.errors", reason="Triton is not installed").OutOfResources(2, 1, "shared")


SHORT = {
    "PyTorch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "csrc/cuda": lambda: RuntimeError("pypeft_fast: allocating tickets: out of memory"),
    "the stable ABI": lambda: RuntimeError("torch_call_dispatcher(...) API call failed at stable/ops.h, line 903"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


@pytest.mark.parametrize("source", [*SHORT, "Triton"])
def test_a_candidate_that_runs_out_of_memory_is_left_out(clock, monkeypatch, source):
    error = out_of_resources() if source == "Triton" else SHORT[source]()
    assert fastest(("op",), run=refusing(error, "b")) == "c"
    assert fastest(("op", "first"), run=refusing(error, "a", "c")) == "b"
    assert fastest(("op",), run=None) == "c"  # nothing is timed again
    another_process(monkeypatch)
    kept = source == "Triton"  # the limits of a GPU never change, but memory may be free later
    assert fastest(("op",)) == ("c" if kept else "b")


@pytest.mark.parametrize("source", [*SHORT, "Triton"])
def test_where_no_candidate_has_room_the_first_one_is_taken(clock, source):
    """The caller then runs the first candidate, which raises its own error, or works without the timing."""
    error = out_of_resources() if source == "Triton" else SHORT[source]()
    assert fastest(("op",), run=refusing(error, *"abc")) == "a"
    assert fastest(("op",), run=None) == "a"


def test_any_other_error_of_a_candidate_is_seen(clock):
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), KeyError("b")):
        with pytest.raises(type(error)):
            fastest(("op",), run=refusing(error, "b"))


def test_the_stable_abi_reports_missing_memory_in_the_expected_words(monkeypatch):
    """A failed allocation behind the stable ABI is no torch.OutOfMemoryError, and is recognised by its message."""
    if pf.kernels()["lora_shrink"]["cpu"] != "available":
        pytest.skip("the C++ kernels are not built")
    x = torch.empty(1, 1).expand(10**9, 16)
    with pf.using("cpu"), pytest.raises(RuntimeError) as caught:
        OPS["lora_shrink"](x, torch.randn(10**5, 16), 0.0, None)
    assert type(caught.value) is RuntimeError and any(text in str(caught.value) for text in _tuning.NO_MEMORY)


def test_nothing_is_timed_while_a_graph_is_captured(clock, monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(_tuning, "_machine", lambda device: (9, 0))
    for capturing, chosen, timed in ((True, "a", 0), (False, "b", 3), (True, "b", 3)):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        assert fastest(("op",), device=gpu) == chosen and len(clock) == timed
    another_process(monkeypatch)
    assert fastest(("op",), device=gpu) == "b" and len(clock) == 3  # read from the disk in a capture


def test_rows_share_a_decision_up_to_a_power_of_two():
    assert [_tuning.bucket(rows) for rows in (0, 1, 2, 3, 512, 513)] == [1, 1, 2, 4, 512, 1024]


TUNED = ["lora_linear", "lora_dx", "ia3_linear", "ia3_dx_dl", "lora_shrink", "lora_ds_db", "lora_da"]


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize("winner", ["cpu", "blas"])
def test_an_op_runs_its_fastest_kernel(clock, monkeypatch, name, winner):
    op = OPS[name]
    args = sample(name, Case(M=6, p=0.3))
    if pf.kernels()[name]["cpu"] != "available":
        pytest.skip("the C++ kernels are not built, and one kernel is no choice")
    monkeypatch.setattr(_op, "TIMED", ("cpu",))
    order = []

    def milliseconds(function, device):
        (kernel,) = (kernel.name for kernel in function.args)
        order.append(kernel)
        return 1.0 if kernel == winner else 2.0

    monkeypatch.setattr(_tuning, "milliseconds", milliseconds)
    with pf.recording() as ran:
        op(*args)
        op(*sample(name, Case(M=7, p=0.3)))  # the same bucket: no more timing
    assert ran == [(name, winner)] * 2 and order == ["cpu", "blas"]
    with pf.recording():  # recording sees every call
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
@pytest.mark.parametrize("name", ["lora_linear", "lora_shrink", "lora_ds_db"])
def test_before_anything_is_timed_the_newer_instructions_go_first(monkeypatch, name, rows, dtype, capability, first):
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert first_of(monkeypatch, name, on_gpu(rows, dtype)) == first


def test_the_gradient_of_a_float32_adapter_leaves_them_behind_beside_a_half_x(monkeypatch):
    """lora_da has the gradient first."""
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for x, first in ((BF16, "triton"), (F32, "cuda")):
        assert first_of(monkeypatch, "lora_da", on_gpu(64, F32), torch.empty(64, 64, dtype=x)) == first


def on_gpu(rows, dtype):
    """A tensor that says that it is on a GPU."""

    class OnGpu(torch.Tensor):
        device = torch.device("cuda:0")

    return torch.empty(rows, 64, dtype=dtype).as_subclass(OnGpu)


def first_of(monkeypatch, name, *args):
    op = OPS[name]
    monkeypatch.setattr(op, "_depends", lambda *args: ())
    able = [k for k in op.kernels if k.name in ("cuda", "triton", "blas")]
    return op._fastest(able, args).name


def test_tiles_are_timed_among_those_that_fit():
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from pypeft_fast.kernels import _tiles

    assert triton
    for arch in _tiles.SHARED:
        for op in (*OPS, *_tiles.GEMMS):
            for bits in (16, 32):
                options = _tiles.candidates(op, arch, bits)
                assert next(iter(options.values())) == _tiles.default(op, arch, bits) and len(options) >= 4
                assert all(_tiles.fits(op, c, arch, bits) and name == str(c) for name, c in options.items())
                assert len({dataclasses.replace(c, BR=0, group=0) for c in options.values()}) == len(options)
    assert [_tiles.shrunk(128, size) for size in (0, 1, 17, 100, 128, 999)] == [16, 16, 32, 128, 128, 128]
    assert [_tiles.cdiv(size, 64) for size in (0, 1, 64, 65)] == [0, 1, 1, 2]
    assert _tiles.known(87) == 86 and _tiles.known(103) == 100 and _tiles.known(121) == 120
    assert _tiles.split(1000, 64, 1, CPU) == (192, 6) and _tiles.split(10, 16, 50, CPU) == (16, 1)


@pytest.mark.parametrize(
    "launch,arch,bits,spilling",
    [
        ("lora_linear", 80, 32, "128x256x32-w8-s3"),
        ("lora_linear", 90, 32, "128x256x16-w8-s4-tma"),
        ("lora_linear", 100, 16, "128x256x64-w8-s3-tma"),
        ("lora_dx", 80, 16, "128x256x16-w8-s4"),
        ("lora_linear, segments", 80, 16, "16x64x32-w4-s4"),
        ("lora_linear, segments", 90, 16, "16x64x64-w4-s4-tma"),
        ("lora_shrink, segments", 80, 16, "32x128x64-w4-s3"),
        ("lora_shrink, segments", 90, 16, "32x128x64-w8-s3"),
        ("lora_ds_db, segments", 80, 16, "32x256x64-w8-s2"),
        ("lora_ds_db, segments", 89, 16, "32x256x64-w8-s2"),
        ("lora_ds_db, segments", 100, 16, "128x64x64-w4-s2"),
        ("lora_da, segments", 100, 16, "128x64x64-w8-s3"),
        ("lora_ds_db, segments", "gfx942", 16, "32x128x64-w8-s2"),
    ],
)
def test_tiles_that_spill_are_not_timed(launch, arch, bits, spilling):
    pytest.importorskip("triton", reason="Triton is not installed")
    from pypeft_fast.kernels import _tiles

    names = _tiles.candidates(launch, arch, bits)
    assert spilling not in names and len(names) >= 3


def test_candidates_run_once_each_and_then_the_winner(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from pypeft_fast.kernels import _tiles

    monkeypatch.setattr(_tiles, "architecture", lambda device: 90)
    ran = []
    tiles = list(_tiles.candidates("lora_da", 90, 32).values())
    cost = {config: i for i, config in enumerate(reversed(tiles))}
    for _ in range(2):
        _tiles.launch("lora_da", lambda config: ran.append(config) or cost[config], (torch.ones(4, 4),), (4, 4, 1))
    assert ran == [*tiles, tiles[-1], tiles[-1]]
