"""The tickets of the sums in Triton kernels: which memory they have, and that a launch sets them back to 0."""

import importlib
import threading
from types import SimpleNamespace

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, sample
from tests.device import ON_GPU

pytest.importorskip("triton", reason="Triton is not installed")
if ON_GPU:
    pytest.skip("tests/gpu/test_compile.py has the real thing", allow_module_level=True)

from pypeft_fast.kernels import _reduce  # noqa: E402


@pytest.fixture
def made(monkeypatch):
    """(stream, ids of the threads that have allocated), on an emulated GPU."""
    threads, zeros = [], torch.zeros
    monkeypatch.setattr(_reduce, "_tickets", {})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "default")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stream.capturing)

    def allocate(size, dtype, device):
        threads.append(threading.get_ident())
        return zeros(size, dtype=dtype)

    stream = SimpleNamespace(cuda_stream=7, waited=[], capturing=False)
    stream.wait_stream = stream.waited.append
    monkeypatch.setattr(torch, "zeros", allocate)
    return stream, threads


def test_kept_tickets_are_allocated_in_a_thread_of_their_own(made):
    stream, threads = made
    gpu = torch.device("cuda:0")
    few, many = _reduce.tickets(10, gpu), _reduce.tickets(5000, gpu)
    assert len(threads) == 2 and threading.get_ident() not in threads and stream.waited == ["default"] * 2
    assert few.numel() >= 10 and many.numel() >= 5000
    assert _reduce.tickets(20, gpu) is few and _reduce.tickets(4097, gpu) is many and len(threads) == 2


def test_a_captured_graph_gets_tickets_of_its_own(made):
    stream, threads = made
    stream.capturing = True
    first, second = (_reduce.tickets(10, torch.device("cuda:0")) for _ in range(2))
    assert first is not second and set(threads) == {threading.get_ident()}


LONG, WIDE = Case(150, 130, 140, 4, 0.3), Case(20, 300, 17, 4, 0.3)
SEVERAL = Case(300, 40, 80, 4, 0.3, options={"adapters": 2})
# Each sum has several parts. {op: (case, the file of its kernels with sums)}.
SUMS = {"lora_shrink": (WIDE, "lora_shrink"), "lora_ds_db": (LONG, "lora_ds_db"), "lora_da": (LONG, "lora_da"),
        "ia3_dx_dl": (LONG, "ia3_dx_dl"), "multi_lora_forward": (WIDE, "_segment_shrink"),
        "multi_lora_backward": (SEVERAL, "_segment_gradients")}  # fmt: skip


@pytest.mark.parametrize("name", list(SUMS))
def test_a_launch_sets_its_tickets_back_to_zero(name, monkeypatch):
    """On a GPU the next launch uses the same tickets. On a CPU each launch has its own."""
    case, file = SUMS[name]
    kept = torch.zeros(1000, dtype=torch.int32)
    kernel = importlib.import_module(f"pypeft_fast.kernels.{file}")
    monkeypatch.setattr(kernel, "tickets", lambda count, device: kept)
    args = sample(name, case)
    with pf.using("triton"):
        first = OPS[name](*args)
        assert not kept.any()
        torch.testing.assert_close(OPS[name](*args), first, rtol=0, atol=0)
