"""`pypeft-fast info` reports the kernels that run."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast import _native, _op
from pypeft_fast.cli import info as info_of


def test_the_choice_it_tells_is_the_kernel_that_runs(command):
    code, out, _ = command("info", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["versions"]["torch"] == torch.__version__
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert facts["build"]["cpu_kernels"] == ("none" if _native.missing_cpu() else _native.cpu_isa())
    told = {op: about["choice"] for op, about in facts["kernels"]["cpu"].items()}
    assert told.keys() == pf.kernels().keys()
    x, W = torch.randn(4, 16, requires_grad=True), torch.randn(8, 16)
    A, B = torch.randn(2, 16, requires_grad=True), torch.randn(8, 2, requires_grad=True)
    with pf.recording() as ran:
        pf.lora_linear(x, W, A, B, dropout_p=0.1).sum().backward()
    assert len(ran) == 2 and dict(ran).items() <= told.items()


@pytest.mark.parametrize("cuda", [False, True])
def test_where_kernels_are_timed_none_is_told_as_the_one_that_runs(command, monkeypatch, cuda):
    """As on a GPU, with and without the kernel of csrc/cuda, whose rank depends on the rows and the GPU."""
    monkeypatch.setattr(_op, "TIMED", ("cpu",))
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "1")
    op = _op.OPS["lora_dx"]
    names = ["cuda", "blas"] if cuda else ["cpu", "blas"]
    some = [dataclasses.replace(k, name=name) for k in op.kernels if k.name == "blas" for name in names]
    monkeypatch.setattr(op, "kernels", some + [k for k in op.kernels if k.name == "reference"])
    _, text, _ = command("info")
    assert f"lora_dx on cpu tensors: the fastest of {', '.join(names)}, timed per shape\n" in text
    assert "swiglu on cpu tensors: " in text and text.count("timed per shape") <= 7  # swiglu is not timed
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "0")
    _, text, _ = command("info")
    assert f"lora_dx on cpu tensors: {'cuda or blas, by the shape' if cuda else 'cpu'}, untimed\n" in text
    monkeypatch.setattr(op, "kernels", some[1:])
    _, text, _ = command("info")
    assert "lora_dx on cpu tensors: blas\n" in text


@pytest.mark.parametrize("missing,choice", [(None, "cuda for a small product, else "), ("no library", "")])
def test_an_op_that_runs_as_other_ops_is_told_as_these(command, monkeypatch, missing, choice):
    """As on a GPU, with and without the kernel of csrc/cuda."""
    op = _op.OPS["lora_forward"]
    monkeypatch.setattr(op, "has_parts", lambda device: True)
    cuda = dataclasses.replace(op.kernels[0], devices=None, missing=lambda: missing)
    assert cuda.name == "cuda"
    monkeypatch.setattr(op, "kernels", [cuda, *op.kernels[1:]])
    _, text, _ = command("info")
    assert f"lora_forward on cpu tensors: {choice}the ops of its parts\n" in text


def test_it_says_why_a_kernel_is_not_there(command):
    _, out, _ = command("info", "--json")
    kernels = json.loads(out)["kernels"]["cpu"]["lora_shrink"]["kernels"]
    assert kernels["reference"] == "available"
    assert "triton" in kernels and kernels["triton"] != "available"
    _, text, _ = command("info")
    assert f"lora_shrink on cpu tensors: {json.loads(out)['kernels']['cpu']['lora_shrink']['choice']}\n" in text
    assert kernels["triton"] in text and pf.__version__ in text


def test_as_a_module_with_a_forced_kernel():
    environment = {**os.environ, "PYPEFT_FAST_KERNEL": "reference"}
    done = subprocess.run(
        [sys.executable, "-m", "pypeft_fast", "info"], capture_output=True, text=True, env=environment, check=True
    )
    assert "lora_da on cpu tensors: reference (PYPEFT_FAST_KERNEL)\n" in done.stdout


def info(*, output=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pypeft_fast", "info"],
        stdout=output, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def test_a_forced_kernel_that_cannot_run_is_not_told_as_the_choice():
    told = info(PYPEFT_FAST_KERNEL="triton", TRITON_INTERPRET="0", CUDA_VISIBLE_DEVICES="").stdout
    assert "lora_shrink on cpu tensors: none: PYPEFT_FAST_KERNEL=triton: no GPU is visible" in told
    assert "lora_forward on cpu tensors: none: PYPEFT_FAST_KERNEL=triton: the op has no such kernel" in told
    told = info(PYPEFT_FAST_KERNEL="triton", TRITON_INTERPRET="1").stdout
    assert "lora_shrink on cpu tensors: triton (PYPEFT_FAST_KERNEL)\n" in told
    assert "  available        triton, " in told


@pytest.mark.skipif(bool(_native.missing_cpu()), reason=str(_native.missing_cpu()))
def test_an_instruction_set_that_is_not_there():
    done = info(PYPEFT_FAST_CPU="bogus")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pypeft-fast info: the C++ kernels cannot run: PYPEFT_FAST_CPU=bogus" in done.stderr


def test_a_closed_pipe_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = info(output=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", ["info", "finetune", "chat"])
def test_help_has_an_example(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0 and f"example:\n  pypeft-fast {name}" in out


def test_it_says_a_reason_once(command, monkeypatch):
    """If only some ops can run a kernel, the reason names those that cannot."""
    monkeypatch.setattr(_native, "missing_cuda", lambda: "no CUDA library")
    for op in _op.OPS.values():
        its = [dataclasses.replace(k, missing=_native.missing_cuda) if k.name == "cuda" else k for k in op.kernels]
        monkeypatch.setattr(op, "kernels", its)
    monkeypatch.setitem(info_of.LIBRARIES, "cuda_library", None)
    _, text, _ = command("info")
    assert text.count("no CUDA library") == 1 and "  cuda_library     none\n" in text
    assert text.count("Triton's CPU interpreter") <= 1
    op = _op.OPS["lora_da"]
    some = [dataclasses.replace(k, missing=lambda: "spoiled") if k.name == "blas" else k for k in op.kernels]
    monkeypatch.setattr(op, "kernels", some)
    _, text, _ = command("info")
    assert "  blas             spoiled (lora_da)\n" in text


def test_a_library_that_cannot_be_used_is_not_told_as_none(command, monkeypatch):
    """As with a CUDA wheel on a machine without a GPU."""
    monkeypatch.setattr(_native, "missing_cuda", lambda: "no GPU is visible")
    for op in _op.OPS.values():
        its = [dataclasses.replace(k, missing=_native.missing_cuda) if k.name == "cuda" else k for k in op.kernels]
        monkeypatch.setattr(op, "kernels", its)
    monkeypatch.setitem(info_of.LIBRARIES, "cuda_library", "/a/_C_cuda.abi3.so")
    _, text, _ = command("info")
    assert "  cuda_library     /a/_C_cuda.abi3.so: no GPU is visible\n" in text
