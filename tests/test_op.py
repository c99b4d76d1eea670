"""The op core: the choice of a kernel, forced kernels, recording, and the errors for unavailable kernels."""

import functools
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast import _library, _native
from pypeft_fast._op import KERNELS, OPS
from pypeft_fast.cli.info import collect
from pypeft_fast.testing import Case, sample
from tests.interpreter import python

ARGS = sample("lora_shrink", Case(p=0.3))
shrink = OPS["lora_shrink"]
ALL_HOLD = (_native.all_hold_in_python, _native.all_hold)


def test_kernels_lists_every_op_in_the_order_of_choice():
    table = pf.kernels()
    lora = {"lora_forward", "lora_backward", "lora_shrink", "lora_linear", "lora_ds_db", "lora_dx", "lora_da"}
    lora |= {"multi_lora_forward", "multi_lora_backward"}
    assert set(table) == lora | {"dequantize", "dora_norm", "ia3_linear", "ia3_dx_dl", "swiglu", "swiglu_backward"}
    for kernels in table.values():
        assert list(kernels) == [k for k in KERNELS if k in kernels]
        assert kernels.get("blas", "available") == kernels["reference"] == "available" and "cpu" in kernels


def test_the_automatic_choice_is_the_first_that_can_run():
    for op in OPS.values():
        args = sample(op.name, Case(p=0.3))
        kernels = pf.kernels()[op.name]
        expected = "cpu" if kernels["cpu"] == "available" else "blas" if "blas" in kernels else "reference"
        assert op.choose(*args).name == expected  # the interpreter of GPU kernels is never chosen automatically


def test_forcing_nests_and_ends_with_the_block():
    automatic = shrink.choose(*ARGS).name
    with pf.using("reference"):
        with pf.using("blas"):
            assert shrink.choose(*ARGS).name == "blas"
        assert shrink.choose(*ARGS).name == "reference"
    with pytest.raises(ZeroDivisionError), pf.using("blas"):
        raise ZeroDivisionError
    assert shrink.choose(*ARGS).name == automatic


def test_a_forced_kernel_runs_or_raises():
    with pf.using("cuda"), pytest.raises(RuntimeError, match="lora_shrink: kernel 'cuda' cannot run: .*This op has: "):
        shrink(*ARGS)
    with pytest.raises(
        ValueError, match="kernel='nope' is not a kernel of pypeft_fast; choose one of cuda, triton, triton.blas, cpu"
    ):
        with pf.using("nope"):
            pass


def test_recording_names_what_ran_and_nests():
    with pf.recording() as outer:
        with pf.using("blas"), pf.recording() as inner:
            shrink(*ARGS)
        with pf.using("reference"):
            shrink(*ARGS)
    assert inner == [("lora_shrink", "blas")] and outer == [("lora_shrink", "reference")]


def overlapping(first, second, at_both, after_first):
    """Two threads, a block each: both begin, at_both(block), the first ends, after_first(block), the second ends."""
    begun, ended = threading.Event(), threading.Event()

    def other():
        with first():
            begun.set()
            ended.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(60)
    with second() as block:
        at_both(block)
        ended.set()
        thread.join(60)
        assert not thread.is_alive()
        after_first(block)


def test_forcing_in_threads_that_overlap_ends_with_the_last_block():
    automatic = shrink.choose(*ARGS).name

    def is_reference(_):
        assert shrink.choose(*ARGS).name == "reference"

    overlapping(lambda: pf.using("blas"), lambda: pf.using("reference"), is_reference, is_reference)
    assert shrink.choose(*ARGS).name == automatic


def test_recording_in_threads_that_overlap_ends_with_the_last_block():
    recorded = []
    call = functools.partial(shrink, *ARGS)

    def run(record):
        recorded.append(record)
        call()

    overlapping(pf.recording, pf.recording, run, run)
    assert len(recorded[0]) == 2 and recorded[0] is recorded[1]
    call()
    assert len(recorded[0]) == 2  # recording has ended


AGAIN = """
import sys, torch
{first}
import pypeft_fast as old
x, W, A, B = torch.randn(3, 8), torch.randn(6, 8), torch.randn(2, 8, requires_grad=True), torch.randn(6, 2)
expected = old.lora_linear(x, W, A, B)
for _ in range(2):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pypeft_fast"]:
        del sys.modules[name]
    import pypeft_fast as pf
    assert pf is not old and pf.lora_linear is not old.lora_linear
    with pf.using("reference"), pf.recording() as ran:
        y = pf.lora_linear(x, W, A, B)
        y.sum().backward()
    assert ran == [("lora_forward", "reference"), ("lora_backward", "reference")], ran
    torch.testing.assert_close(y, expected)
    assert torch.equal(old.lora_linear(x, W, A, B), expected)  # what was imported before still runs
    compiled = torch.compile(pf.lora_linear, backend="aot_eager", fullgraph=True)(x, W, A, B)
    torch.testing.assert_close(compiled, expected)
    torch.compiler.reset()
    layer = pf.nn.LoRALinear(8, 6)
    torch.nn.init.normal_(layer.lora_B)
    frozen, low_rank = torch.nn.functional.linear(x, layer.weight, layer.bias), x @ layer.lora_A.t() @ layer.lora_B.t()
    torch.testing.assert_close(layer(x), frozen + layer.scaling * low_rank)
{last}
print("imported three times")
"""


@pytest.mark.parametrize(
    "first,last",
    [("", ""), ("", "import peft; pf.fuse"), ("import peft", "pf.fuse; assert pf.LoraConfig is peft.LoraConfig")],
    ids=["alone", "before peft", "after peft"],
)
def test_the_package_may_be_deleted_from_sys_modules_and_imported_again(first, last):
    code = AGAIN.format(first=first, last=last)
    result = python("-c", code)
    assert result.returncode == 0 and "imported three times" in result.stdout, result.stderr


def test_another_schema_in_the_same_process_is_an_error():
    with pytest.raises(
        RuntimeError, match="defined lora_shrink as lora_shrink.*, now as lora_shrink.Tensor x.*restart"
    ):
        _library.define("lora_shrink", "lora_shrink(Tensor x) -> Tensor")


@pytest.mark.parametrize("value,words", [("reference", "reference"), ("nope", "kernel='nope' is not a kernel")])
def test_the_environment_forces_a_whole_process(value, words):
    code = (
        "import torch, pypeft_fast as pf\n"
        "with pf.recording() as ran: pf.lora_linear(*(torch.ones(2, 2),) * 4)\n"
        "print({kernel for _, kernel in ran})"
    )
    result = python("-c", code, PYPEFT_FAST_KERNEL=value)
    assert words in result.stdout + result.stderr and (result.returncode == 0) == (value == "reference")


@pytest.mark.parametrize("capability,accepted", [((7, 5), False), ((8, 0), True), ((12, 1), True)])
def test_a_gpu_older_than_the_cuda_kernels_is_named_in_the_reason(capability, accepted, monkeypatch):
    monkeypatch.setattr(_native, "CUDA_LIBRARY_PATH", Path("_C_cuda.abi3.so"))
    monkeypatch.setattr(_native, "_oldest_target", lambda: 80)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    told = _native.too_old(torch.device("cuda:0"))
    assert told == (None if accepted else "cuda:0 is sm_75 and _C_cuda.abi3.so was compiled for sm_80 and later")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
def test_the_cuda_library_under_a_pytorch_without_cuda_says_why_it_is_not_used(monkeypatch):
    monkeypatch.setattr(_native, "CUDA_LIBRARY_PATH", Path("_C_cuda.abi3.so"))
    reason = f"_C_cuda.abi3.so needs a PyTorch with CUDA; this one, {torch.__version__}, has none"
    assert {kernels["cuda"] for kernels in pf.kernels().values() if "cuda" in kernels} == {reason}
    assert collect()["build"]["cuda_library"] == reason


NEEDED = b"aoti_torch_get_storage_size"  # a function of PyTorch that the library needs


@pytest.mark.skipif(_native.LIBRARY_PATH is None, reason=str(_native.missing_cpu()))
@pytest.mark.parametrize(
    "spoil,words",
    [
        (lambda whole: b"", "does not load under PyTorch .*: .*too short"),
        (lambda whole: whole.replace(NEEDED, NEEDED.upper()), "does not load under PyTorch .*: .*undefined symbol"),
        (lambda whole: whole[: len(whole) // 2], r"was cut short: it has \d+ bytes of at least \d+"),
        (lambda whole: whole[:-1], r"was cut short: it has \d+ bytes of at least \d+"),
    ],
    ids=["empty", "for another PyTorch", "half", "a byte lost"],
)
def test_a_library_that_does_not_load_makes_only_its_kernels_unavailable(spoil, words, tmp_path):
    package = Path(pf.__file__).parent
    shutil.copytree(package, tmp_path / "pypeft_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "pypeft_fast/_C.abi3.so").write_bytes(spoil(_native.LIBRARY_PATH.read_bytes()))
    code = (
        "import torch, pypeft_fast as pf\n"
        "print(pf.__file__)\n"
        "with pf.recording() as ran: y = pf.lora_linear(*(torch.ones(2, 2),) * 4)\n"
        "print({kernel for _, kernel in ran}, y.tolist())\n"
        "print(pf.kernels()['lora_linear']['cpu'])\n"
        "pf._native.cpu_isa()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    file, ran, reason = done.stdout.splitlines()
    assert file.startswith(str(tmp_path)) and ran == "{'blas'} [[6.0, 6.0], [6.0, 6.0]]"
    assert re.match(f"_C.abi3.so {words}", reason)
    assert done.stderr.splitlines()[-1] == f"RuntimeError: {reason}"


@pytest.mark.parametrize("all_hold", ALL_HOLD, ids=["python", "native"])
def test_all_hold_compares_identities(all_hold):
    absent, one, value = object(), {"a": 1.5, "none": None}, object()
    dicts, keys, values = [one, one, {}, {"v": value}], ["a", "none", "a", "v"], [one["a"], None, absent, value]
    objects, types = [1, "a", value], [int, str, object]
    assert all_hold(dicts, keys, values, absent, objects, types)
    assert all_hold([], [], [], absent, [], [])
    for place, other in enumerate((float("1.5"), absent, None, object())):
        wrong = values.copy()
        wrong[place] = other
        assert not all_hold(dicts, keys, wrong, absent, objects, types), place
    for place, other in enumerate((bool, object, int)):
        wrong = types.copy()
        wrong[place] = other
        assert not all_hold(dicts, keys, values, absent, objects, wrong), place
    assert not all_hold([{}], ["a"], [None], absent, [], [])
    many = [{"a": value} for _ in range(100)]
    assert all_hold(many, ["a"] * 100, [value] * 100, absent, many, [dict] * 100)
    many[-1] = {}
    assert not all_hold(many, ["a"] * 100, [value] * 100, absent, many, [dict] * 100)


@pytest.mark.skipif(bool(_native.missing_cpu()), reason=str(_native.missing_cpu()))
def test_all_hold_refuses_what_are_no_lists_of_equal_length():
    _, native = ALL_HOLD
    for lengths in [(1, 0, 1, 0, 0), (1, 1, 0, 0, 0), (0, 1, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)]:
        dicts, keys, values, objects, types = ([{}] * n for n in lengths)
        with pytest.raises(ValueError, match="different lengths"):
            native(dicts, keys, values, None, objects, types)
    with pytest.raises(TypeError, match="dicts holds another object"):
        native([1], ["a"], [None], None, [], [])
    with pytest.raises(TypeError, match="unhashable"):
        native([{"a": 1}], [[]], [None], None, [], [])
    with pytest.raises(TypeError):
        native(({},), ["a"], [None], None, [], [])


@pytest.mark.skipif(bool(_native.missing_cpu()), reason=str(_native.missing_cpu()))
@pytest.mark.parametrize("cleared", range(5))
def test_all_hold_survives_a_key_that_empties_a_list(cleared):
    class Key:
        def __hash__(self):
            return hash("k")

        def __eq__(self, other):
            lists[cleared].clear()
            return False

    absent = object()
    lists = [[{Key(): 1}] * 40, ["k"] * 40, [absent] * 40, [1] * 40, [int] * 40]
    with pytest.raises(IndexError):
        ALL_HOLD[1](*lists[:3], absent, *lists[3:])
