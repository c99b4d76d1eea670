"""Small LoRA layers on a GPU, each way one C++ op: the bits of its parts, the choice by size, streams and graphs."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, available, sample
from pypeft_fast.testing.cases import FORMATS
from tests.device import ON_GPU

if not ON_GPU:
    pytest.skip("needs a GPU: make test-gpu", allow_module_level=True)

if "cuda" not in available(OPS["lora_forward"]):
    pytest.skip(f"no CUDA C++ kernels: {pf.kernels()['lora_forward']['cuda']}", allow_module_level=True)

BF16, F32 = torch.bfloat16, torch.float32
PARTS = {"lora_forward": ["lora_shrink", "lora_linear"], "lora_backward": ["lora_ds_db", "lora_dx", "lora_da"]}


def as_one(op, args):
    with pf.recording() as ran:
        outputs = OPS[op](*args)
    assert ran == [(op, "cuda")]
    return outputs


@pytest.mark.parametrize("op", PARTS)
@pytest.mark.parametrize("dtype,adapter", [(BF16, None), (BF16, F32), (F32, None)])
@pytest.mark.parametrize("M", [1, 16, 200])
@pytest.mark.parametrize("format", ["dense", *FORMATS])
def test_a_small_layer_has_the_bits_of_its_parts(op, dtype, adapter, M, format):
    args = sample(op, Case(M, 512, 264, 8, 0.3, dtype, adapter, format=format))
    with pf.using("cuda"):
        expected = OPS[op]._parts(*args)
    for direct in (True, False):  # a plain call goes to the C++ op directly, a recorded one through the dispatcher
        with torch.no_grad():
            found = OPS[op](*args) if direct else as_one(op, args)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("op", PARTS)
def test_a_large_layer_runs_in_parts(op):
    args = sample(op, Case(4096, 2048, 2048, 8, 0.3, BF16))
    with pf.recording() as ran:
        OPS[op](*args)
    assert [name for name, _ in ran] == PARTS[op]


def test_a_layer_runs_on_the_current_stream():
    """The op waits for no other stream: on the side stream x is written after a sleep of the GPU."""
    x, W, A, B = (torch.randn(shape, dtype=BF16) for shape in ((16, 512), (264, 512), (8, 512), (264, 8)))
    late, side = torch.zeros_like(x), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        torch.cuda._sleep(10**8)
        late.copy_(x)
        y = pf.lora_linear(late, W, A, B)
    side.synchronize()
    with torch.no_grad():
        assert torch.equal(y, pf.lora_linear(x, W, A, B))


def test_decoding_replays_from_a_graph():
    x, W, A, B = (torch.randn(shape, dtype=BF16) for shape in ((1, 1, 512), (264, 512), (8, 512), (264, 8)))
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        pf.lora_linear(x, W, A, B)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            y = pf.lora_linear(x, W, A, B)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert torch.equal(y, pf.lora_linear(x, W, A, B)) and y.abs().max() > 0


@pytest.mark.parametrize("M", [1, 16])
@pytest.mark.parametrize("format", ["dense", "nf4", "int8"])
def test_a_chain_of_layers_has_the_bits_of_its_parts(M, format):
    """On sm_90 and later the second launch of a layer begins before the first has ended, eagerly and in a graph."""
    layers = [sample("lora_forward", Case(M, 2048, 2048, 64, 0.0, BF16, format=format))[1:] for _ in range(8)]
    x = torch.randn(M, 2048, dtype=BF16) / 64

    def chain(layer_of):
        y = x
        for rest in layers:
            y = layer_of(y, *rest)[0] / 64
        return y

    with torch.no_grad():
        with pf.using("cuda"):
            expected = chain(OPS["lora_forward"]._parts)
        assert expected.isfinite().all() and expected.any()
        for _ in range(50):
            assert torch.equal(chain(OPS["lora_forward"]), expected)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            y = chain(OPS["lora_forward"])
        for _ in range(50):
            y.zero_()
            graph.replay()
            assert torch.equal(y, expected)
