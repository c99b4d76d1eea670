"""torch.compile with inductor: one graph around the ops, with and without CUDA graphs."""

import pytest
import torch

import pypeft_fast as pf
from tests.device import ON_GPU

if not ON_GPU:
    pytest.skip("needs a GPU: make test-gpu", allow_module_level=True)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_compiled_layer_trains_as_an_eager_one(mode, dtype):
    layer = pf.nn.LoRALinear(136, 72, r=8, lora_dropout=0.0, dtype=dtype)
    torch.nn.init.normal_(layer.lora_B)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for _ in range(3):  # the second run of a CUDA graph records it, the third replays it
        x = torch.randn(50, 136, dtype=dtype, requires_grad=True)
        torch.compiler.cudagraph_mark_step_begin()
        grads = []
        for f in (compiled, layer):
            y = torch.nn.functional.gelu(f(x))
            leaves = (x, layer.lora_A, layer.lora_B)
            grads.append([y.detach().clone(), *(g.clone() for g in torch.autograd.grad(y.float().sum(), leaves))])
        eps = torch.finfo(dtype).eps
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=64 * eps * b.abs().max().item())


def test_dropout_is_drawn_anew_by_compiled_code():
    layer = pf.nn.LoRALinear(136, 72, r=8, lora_dropout=0.5).train()
    torch.nn.init.normal_(layer.lora_B)
    compiled, x = torch.compile(layer, fullgraph=True, mode="reduce-overhead"), torch.randn(50, 136)
    runs = []
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        runs.append(compiled(x).detach().clone())
    assert not any(torch.equal(a, b) for i, a in enumerate(runs) for b in runs[:i])
