"""CUDA graphs of the forward and backward of a layer: a replay on new values computes what eager PyTorch does."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast import _tuning
from pypeft_fast._op import OPS
from pypeft_fast.testing import available
from tests.device import ON_GPU

if not ON_GPU:
    pytest.skip("needs a GPU: make test-gpu", allow_module_level=True)

LORA = ("lora_shrink", "lora_linear", "lora_ds_db", "lora_dx", "lora_da")
IA3 = ("ia3_linear", "ia3_dx_dl")


def on_all(*names):
    return sorted(set.intersection(*(set(available(OPS[name])) for name in names)))


def captured(step):
    """(graph of step(), its static results); three runs on another stream come first, as torch.cuda.graph requires."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def lora(p, dtype=torch.bfloat16):
    """([x, A, B], a step that returns y and their gradients); the sizes need several tiles and parts on any GPU."""
    x, W, dY = (torch.randn(s, dtype=dtype) for s in ((700, 520), (392, 520), (700, 392)))
    A, B = torch.randn(8, 520) / 20, torch.randn(392, 8)
    leaves = [t.requires_grad_() for t in (x, A, B)]

    def step():
        y = pf.lora_linear(x, W, A, B, scaling=0.5, dropout_p=p)
        return y, *torch.autograd.grad(y, leaves, dY)

    return leaves, step


def renew(leaves):
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(torch.randn_like(leaf))


def assert_replay_agrees(kernel, replayed, eager):
    """Compares bit for bit, or to two roundings if cuBLAS may choose another algorithm in a graph."""
    for a, b in zip(replayed, eager, strict=True):
        assert a.abs().max() > 0
        close = 0.0 if kernel in ("cuda", "triton") else 2 * torch.finfo(torch.bfloat16).eps
        torch.testing.assert_close(a, b, rtol=0, atol=close * b.abs().max().item())


@pytest.mark.parametrize("kernel", on_all(*LORA))
def test_lora_replays_on_new_values(kernel):
    leaves, step = lora(0.0)
    with pf.using(kernel):
        graph, results = captured(step)
        for _ in range(3):
            renew(leaves)
            graph.replay()
            assert_replay_agrees(kernel, results, step())


@pytest.mark.parametrize("kernel", on_all(*LORA))
def test_every_replay_draws_a_mask_of_its_own(kernel):
    _, step = lora(0.4)
    with pf.using(kernel):
        graph, results = captured(step)
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            for _ in range(2):
                graph.replay()
                runs.append([t.clone() for t in results])
    first, second, again, _, other, _ = runs
    assert all(map(torch.equal, first, again)), "the seed does not reach the graph"
    assert not any(map(torch.equal, first, second)) and not any(map(torch.equal, first, other))


@pytest.mark.parametrize("kernel", on_all(*IA3))
@pytest.mark.parametrize("feedforward", [False, True])
def test_ia3_replays_on_new_values(kernel, feedforward):
    x, W, dY = (torch.randn(s, dtype=torch.bfloat16) for s in ((700, 520), (392, 520), (700, 392)))
    leaves = [x.requires_grad_(), torch.randn(520 if feedforward else 392).requires_grad_()]

    def step():
        y = pf.ia3_linear(x, W, leaves[1], feedforward=feedforward)
        return y, *torch.autograd.grad(y, leaves, dY)

    with pf.using(kernel):
        graph, results = captured(step)
        renew(leaves)
        graph.replay()
        assert_replay_agrees(kernel, results, step())


@pytest.mark.parametrize("warm", [True, False])
def test_rows_of_several_adapters_replay_on_new_values_and_another_index(warm, monkeypatch):
    """The rows are grouped in the graph. The table of adapters is that of the calls before, or the graph's own."""
    from pypeft_fast.kernels import _adapters

    x, W, dY = (torch.randn(s, dtype=torch.bfloat16) for s in ((300, 520), (392, 520), (300, 392)))
    A, B = [torch.randn(r, 520) / 20 for r in (8, 4, 16)], [torch.randn(392, r) for r in (8, 4, 16)]
    index = torch.arange(300) % 4 - 1
    leaves = [t.requires_grad_() for t in (x, *A, *B)]

    def step():
        y = pf.multi_lora_linear(x, W, A, B, index, scalings=[0.5, 1.0, 2.0])
        return y, *torch.autograd.grad(y, leaves, dY)

    with pf.using("triton"):
        if warm:
            graph, results = captured(step)
        else:
            step()
            torch.cuda.synchronize()
            monkeypatch.setattr(_adapters, "_tables", _adapters.OrderedDict())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = step()
        for shift in (1, 2):
            renew(leaves)
            index.copy_((torch.arange(300) + shift) % 4 - 1)
            graph.replay()
            assert_replay_agrees("triton", results, step())


def test_tuning_never_happens_inside_a_capture(monkeypatch, tmp_path):
    """For a new shape a graph uses the first candidate, and the next eager call times the candidates."""
    from pypeft_fast.kernels import _tiles

    monkeypatch.setenv("PYPEFT_FAST_TUNE", "1")
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(_tuning, "_known", {})
    candidates = _tiles.candidates
    monkeypatch.setattr(_tiles, "candidates", lambda *args: dict(list(candidates(*args).items())[:3]))
    timed = []
    milliseconds = _tuning.milliseconds
    monkeypatch.setattr(_tuning, "milliseconds", lambda *args: timed.append(args) or milliseconds(*args))
    leaves, step = lora(0.0)
    with pf.using("triton"):
        monkeypatch.setenv("PYPEFT_FAST_TUNE", "0")
        step()  # compiled and loaded outside of the capture
        torch.cuda.synchronize()
        monkeypatch.setenv("PYPEFT_FAST_TUNE", "1")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        assert not timed
        graph.replay()
        torch.cuda.synchronize()
        replayed = [t.clone() for t in results]
        eager = step()
    assert timed
    for a, b in zip(replayed, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2 * b.abs().max().item())


def test_make_graphed_callables():
    layer = pf.nn.LoRALinear(520, 392, r=8, lora_dropout=0.1, dtype=torch.bfloat16).train()
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(64, 520, dtype=torch.bfloat16, requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (x,))
    graphed(x).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (x, layer.lora_A, layer.lora_B))
