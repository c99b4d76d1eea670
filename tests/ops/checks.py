"""Sample inputs for every op, PyTorch's own eager result, and the bound that every kernel must keep.

Truth is the op's reference in float64 on the same mask. A kernel may be wrong by twice what eager PyTorch in the same
dtypes is wrong, plus one ulp of the largest value.
"""

import contextlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from pypeft_fast import recording, using
from pypeft_fast._op import OPS
from pypeft_fast.ops import philox
from tests.device import DEVICE, ON_GPU

SCALING = 1.7


@dataclass(frozen=True)
class Case:
    M: int = 5
    K: int = 24
    N: int = 17
    r: int = 3
    p: float = 0.0
    dtype: torch.dtype = torch.float32
    adapter: torch.dtype | None = None  # None: dtype
    layout: str = "contiguous"  # or "strided": every operand a view with gaps, weight transposed
    bias: bool = True
    options: dict = field(default_factory=dict, hash=False)

    def __str__(self):
        dtypes = f"{self.dtype}".removeprefix("torch.") + (
            f"+{self.adapter}".replace("torch.", "") if self.adapter else ""
        )
        options = "".join(f"-{name}={value}" for name, value in self.options.items())
        bias = "" if self.bias else "-nobias"
        return f"{self.M}x{self.K}x{self.N}-r{self.r}-p{self.p}-{dtypes}-{self.layout}{bias}{options}"


def available(op):
    """The kernels that this machine has and that run, at least when forced, on the device of the tests."""
    on_device = (k for k in op.kernels if k.devices is None or DEVICE in k.devices + k.interpreted)
    return [k.name for k in on_device if k.missing() is None]


def _randn(case, *shape, dtype=None, transposed=False):
    dtype = dtype or case.dtype
    if case.layout == "contiguous":
        return torch.randn(shape).to(dtype)
    if transposed:
        return torch.randn(shape[::-1]).to(dtype).t()
    return torch.randn(*shape[:-1], 2 * shape[-1] + 3).to(dtype)[..., 1 : 2 * shape[-1] + 1 : 2]


def sample(op_name, case, draw=0):
    """Arguments of the op for this case; scaled so that the low-rank term weighs as much as the frozen one."""
    torch.manual_seed(draw)
    M, K, N, r, p = case.M, case.K, case.N, case.r, case.p
    P = case.adapter or case.dtype
    S = torch.promote_types(P, case.dtype)
    seed = torch.tensor([0x123456789ABCDEF]) if p > 0 else None
    mask = philox.packed_mask(M, K, p, seed) if p > 0 else torch.empty(0, (K + 7) // 8, dtype=torch.uint8)
    x, dY = _randn(case, M, K), _randn(case, M, N)
    weight, bias = _randn(case, N, K, transposed=True), _randn(case, N) if case.bias else None
    A, B = _randn(case, r, K, dtype=P), _randn(case, N, r, dtype=P)
    s, dS = _randn(case, M, r, dtype=S), _randn(case, M, r, dtype=S)
    needed = mask if p > 0 else None
    feedforward = case.options.get("feedforward", False)
    ia3_l, saved = _randn(case, K if feedforward else N, dtype=P), _randn(case, M, K if feedforward else N)
    gate, up = _randn(case, M, N), _randn(case, M, N)
    scale = _randn(case, N, dtype=P) if case.options.get("scale") else None
    return {
        "lora_forward": (x, weight, bias, A / K**0.5, B, SCALING, p, seed),
        "lora_backward": (
            dY,
            x,
            weight,
            A,
            B / r**0.5,
            s,
            needed,
            SCALING,
            p,
            *case.options.get("needs", (True,) * 3),
            P,
        ),
        "lora_shrink": (x, A, p, seed),
        "lora_linear": (
            x,
            weight,
            bias,
            s * (K / r) ** 0.5,
            B,
            SCALING,
            scale,
            case.options.get("need_z", scale is not None),
        ),
        "lora_ds_db": (dY, B, s, SCALING, *case.options.get("need", (True, True))),
        "lora_dx": (dY, weight, dS * (N / r) ** 0.5, A, mask, p),
        "lora_da": (dS, x, mask, p, P),
        "ia3_linear": (x, weight, bias, ia3_l, feedforward, case.options.get("need_z", True)),
        "ia3_dx_dl": (dY, weight, ia3_l, saved, feedforward, *case.options.get("need", (True, True))),
        "dora_norm": (weight, A, B.to(P) / r**0.5, SCALING),
        "swiglu": (gate, up),
        "swiglu_backward": (dY, gate, up, case.options.get("need_h", True)),
    }[op_name]


def _shrink(x, A, p, seed):
    S = torch.promote_types(x.dtype, A.dtype)
    mask = philox.packed_mask(*x.shape, p, seed) if p > 0 else torch.empty(0, (x.shape[1] + 7) // 8, dtype=torch.uint8)
    return F.linear(philox.dropped(x.to(S), mask, p), A.to(S)), mask


def _ds_db(dY, B, s, scaling, need_dS, need_dB):
    S = s.dtype
    dS = (dY.to(S) * scaling) @ B.to(S)
    dB = ((dY.to(S) * scaling).t() @ s).to(B.dtype)
    return dS if need_dS else dS[:0], dB if need_dB else dB[:0]


def _linear(x, W, b, s, B, scaling, scale, need_z):
    up = F.linear(s, B.to(s.dtype)) * scaling
    if scale is None:
        return (F.linear(x, W, b) + up).to(x.dtype), x.new_empty(0, W.shape[0])
    z = (F.linear(x, W) + up).to(x.dtype)
    y = (scale * z).to(x.dtype)
    return y if b is None else y + b, z if need_z else z[:0]


def _forward(x, W, b, A, B, scaling, p, seed):
    s, mask = EAGER["lora_shrink"](x, A, p, seed)
    return EAGER["lora_linear"](x, W, b, s, B, scaling, None, False)[0], s, mask


def _backward(dY, x, W, A, B, s, mask, scaling, p, need_dX, need_dA, need_dB, dtype):
    dS, dB = _ds_db(dY, B, s, scaling, True, need_dB)
    dX, dA = EAGER["lora_dx"](dY, W, dS, A, mask, p), EAGER["lora_da"](dS, x, mask, p, dtype)
    return dX if need_dX else dY.new_empty(0), dA if need_dA else A.new_empty(0), dB if need_dB else B.new_empty(0)


def _ia3(x, W, b, ia3_l, feedforward, need_z):
    if feedforward:
        return F.linear((x * ia3_l).to(x.dtype), W, b), x.new_empty(0, W.shape[0])
    z = F.linear(x, W, b)
    return (z * ia3_l).to(x.dtype), z if need_z else z[:0]


def _ia3_dx_dl(dY, W, ia3_l, saved, feedforward, need_dX, need_dl):
    dX = dY @ W if feedforward else (dY * ia3_l).to(dY.dtype) @ W
    P = ia3_l.dtype
    dl = ((dX if feedforward else dY).to(P) * saved.to(P)).sum(0)
    dX = (dX * ia3_l).to(dY.dtype) if feedforward else dX
    return dX if need_dX else dX[:0], dl if need_dl else dl[:0]


def _swiglu_backward(dh, gate, up, need_h):
    silu = F.silu(gate)
    dgate = torch.ops.aten.silu_backward(dh * up, gate)
    return dgate.contiguous(), dh * silu, silu * up if need_h else dh.new_empty(0)


# Eager PyTorch as PEFT would write it: separate matmuls, rounded to a dtype after each.
EAGER = {
    "lora_forward": _forward,
    "lora_backward": _backward,
    "lora_shrink": _shrink,
    "lora_linear": _linear,
    "lora_ds_db": _ds_db,
    "lora_dx": lambda dY, W, dS, A, mask, p: dY @ W + philox.dropped((dS @ A.to(dS.dtype)).to(dY.dtype), mask, p),
    "lora_da": lambda dS, x, mask, p, dtype: (dS.t() @ philox.dropped(x.to(dS.dtype), mask, p)).to(dtype),
    "ia3_linear": _ia3,
    "ia3_dx_dl": _ia3_dx_dl,
    "dora_norm": lambda W, A, B, scaling: torch.linalg.vector_norm(
        W + ((B @ A) * scaling).to(W.dtype), dim=1, dtype=torch.promote_types(W.dtype, torch.float32)
    ),
    "swiglu": lambda gate, up: F.silu(gate) * up,
    "swiglu_backward": _swiglu_backward,
}


def _wide(value):
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) else value


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _eager_errors(op_name, reference, case):
    """Eager's worst error in each output over several draws: a small output may be exact by luck in one."""
    errors, smallest = [], max(1, case.M * min(case.N, case.K))
    for draw in range(max(4, 64 // smallest)):
        args = sample(op_name, case, draw)
        pairs = zip(_tuple(EAGER[op_name](*args)), _tuple(reference(*map(_wide, args))), strict=True)
        errors.append([(own.double() - truth).abs().max() if truth.numel() else 0 for own, truth in pairs])
    return [max(column) for column in zip(*errors, strict=True)]


def _truncated_steps(case, output):
    """Half an ulp for each step of a sum on tensor cores, which truncate; beside PyTorch's float32, which rounds.

    On a GPU, where a half-precision operand meets a float32 one: three products in tf32 there, and none in PyTorch.
    """
    mixed = case.adapter == torch.float32 != case.dtype and output.dtype == torch.float32
    return max(case.M, case.K, case.N) / 8 / 2 if ON_GPU and mixed else 0


def assert_agrees(op_name, kernel, case, within=None):
    """The forced kernel runs, writes every element, changes no input, and stays within the bound of the truth.

    within: a context manager to enter around the op's call alone.
    """
    op, args = OPS[op_name], sample(op_name, case)
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    reference = next(k.function for k in op.kernels if k.name == "reference")
    truth = _tuple(reference(*map(_wide, args)))
    eager = _tuple(EAGER[op_name](*args))
    with using(kernel), recording() as ran, within or contextlib.nullcontext():
        outputs = _tuple(op(*args))
    assert ran == [(op_name, kernel)]
    for a, b in zip(args, before, strict=True):
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b), "the kernel changed an input"
    eager_errors = _eager_errors(op_name, reference, case)
    for output, own, expected, eager_error in zip(outputs, eager, truth, eager_errors, strict=True):
        assert output.shape == own.shape and output.dtype == own.dtype and output.is_contiguous()
        if not output.is_floating_point():
            assert torch.equal(output, expected), "the mask differs from the Philox stream"
        elif output.numel():
            error = (output.double() - expected).abs().max()
            ulp = torch.finfo(output.dtype).eps * expected.abs().max()
            assert error <= 2 * eager_error + ulp * (1 + _truncated_steps(case, output)), (
                f"error {error:.3g}, eager's own {eager_error:.3g}, one ulp {ulp:.3g}"
            )
