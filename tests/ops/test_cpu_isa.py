"""The C++ kernels on every instruction set of this CPU, one process each, because a process selects one set.

The expected values are a float64 formula and a Philox in Python integers, both written here and independent of the
package.
"""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pypeft_fast import _native

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(_native.missing_cpu() is not None, reason=str(_native.missing_cpu())),
]
ROOT = Path(__file__).resolve().parents[2]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
HAS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}
AVAILABLE = HAS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",))
if "avx512" in AVAILABLE and torch.cpu._is_avx512_bf16_supported():
    AVAILABLE = ("avx512bf16", *AVAILABLE)
SEED, SCALING = -0x0123456789ABCDEF, 1.3

CHILD = """
import sys, torch
import pypeft_fast as pf
from pypeft_fast import _native
from pypeft_fast._op import OPS
with pf.using("cpu"):
    results = [OPS[op](*args) for op, args in torch.load(sys.argv[1])]
torch.save((_native.cpu_isa(), results), sys.argv[2])
"""


def child(calls, folder, isa):
    """Runs the calls [(op, arguments)] in a new process; returns its instruction set and results, or its stderr."""
    given, out = folder / "calls.pt", folder / "results.pt"
    torch.save(calls, given)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYPEFT_FAST_CPU": isa}
    run = [sys.executable, "-c", CHILD, given, out]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return torch.load(out) if done.returncode == 0 else done.stderr


def philox_bytes(count, threshold):
    """The first bytes of the packed mask's stream: Philox4x32-7 in Python integers."""
    for index in range(count):
        c, k = [index & 0xFFFFFFFF, index >> 32, 0, 0], [SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF]
        for _ in range(7):
            a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        yield sum((c[j // 2] >> 16 * (j % 2) & 0xFFFF >= threshold) << j for j in range(8))


@dataclass(frozen=True)
class Case:
    M: int
    K: int
    N: int
    r: int
    p: float
    T: torch.dtype = F32
    P: torch.dtype = F32
    strided: bool = False

    @functools.cache  # noqa: B019  the cases are few, and Python's integers slow
    def mask(self):
        across = (self.K + 7) // 8
        if self.p == 0:
            return torch.empty(0, across, dtype=torch.uint8)
        stream = list(philox_bytes(self.M * across, round(self.p * 65536)))
        mask = torch.tensor(stream, dtype=torch.uint8).view(self.M, across)
        if self.K % 8:
            mask[:, -1] &= (1 << self.K % 8) - 1
        return mask

    def keep(self):
        """float64 [M, K]: the dropout scale where x is kept, otherwise 0."""
        if self.p == 0:
            return torch.ones(self.M, self.K, dtype=torch.float64)
        bits = [[byte >> j & 1 for byte in row for j in range(8)][: self.K] for row in self.mask().tolist()]
        return torch.tensor(bits, dtype=torch.float64).view(self.M, self.K) * 65536 / (65536 - round(self.p * 65536))

    def random(self, rows, columns, dtype):
        if not self.strided:
            return torch.randn(rows, columns).to(dtype)
        return torch.randn(columns, 2 * rows + 1).to(dtype)[:, 1::2].t()

    def calls(self):
        """The arguments of every op. x is NaN where it is dropped, because a dropped element must become 0."""
        torch.manual_seed(1)
        S = torch.promote_types(self.T, self.P)
        x, dY = self.random(self.M, self.K, self.T), self.random(self.M, self.N, self.T)
        weight, bias = self.random(self.N, self.K, self.T), self.random(1, self.N, self.T)[0]
        A, B = self.random(self.r, self.K, self.P), self.random(self.N, self.r, self.P)
        s, dS = self.random(self.M, self.r, S), self.random(self.M, self.r, S)
        holes = x.masked_fill(self.keep() == 0, torch.nan)
        seed = torch.tensor([SEED]) if self.p > 0 else None
        z, whole = self.random(self.M, self.N, self.T), self.random(self.M, self.K, self.T)
        l_N, l_K = self.random(1, self.N, self.P)[0], self.random(1, self.K, self.P)[0]
        return [
            ("lora_shrink", (holes, A, self.p, seed)),
            ("lora_linear", (x, weight, bias, s, B, SCALING, None, False)),
            ("lora_linear", (x, weight, None, s, B, SCALING, None, False)),
            ("lora_linear", (x, weight, bias, s, B, SCALING, l_N, True)),
            ("lora_linear", (x, weight, None, s, B, SCALING, l_N, False)),
            ("lora_ds_db", (dY, B, s, SCALING, True, True)),
            ("lora_ds_db", (dY, B, s, SCALING, True, False)),
            ("lora_ds_db", (dY, B, s, SCALING, False, True)),
            ("lora_dx", (dY, weight, dS, A, self.mask(), self.p)),
            ("lora_da", (dS, holes, self.mask(), self.p, self.P)),
            ("ia3_linear", (whole, weight, bias, l_N, False, True)),
            ("ia3_linear", (whole, weight, None, l_N, False, False)),
            ("ia3_linear", (whole, weight, bias, l_K, True, True)),
            ("ia3_dx_dl", (dY, weight, l_N, z, False, True, True)),
            ("ia3_dx_dl", (dY, weight, l_N, z, False, False, True)),
            ("ia3_dx_dl", (dY, weight, l_K, whole, True, True, True)),
            ("ia3_dx_dl", (dY, weight, l_K, whole, True, True, False)),
            ("swiglu", (whole, x)),
            ("swiglu_backward", (dY, z, 30 * z, True)),
            ("swiglu_backward", (dY, 30 * z, z, False)),
        ]


def truth(op, args, keep):
    """The formula in float64."""
    d = [a.double().nan_to_num() if isinstance(a, torch.Tensor) else a for a in args]
    if op == "lora_shrink":
        return ((d[0] * keep) @ d[1].t(),)
    if op == "lora_linear":
        x, W, b, s, B, scaling, scale, need_z = d
        z = x @ W.t() + scaling * (s @ B.t())
        return (z if scale is None else scale * z) + (0 if b is None else b), z[: None if need_z else 0]
    if op == "lora_ds_db":
        return (d[3] * (d[0] @ d[1]))[: None if d[4] else 0], (d[3] * (d[0].t() @ d[2]))[: None if d[5] else 0]
    if op == "lora_dx":
        return (d[0] @ d[1] + keep * (d[2] @ d[3]),)
    if op == "lora_da":
        return (d[0].t() @ (d[1] * keep),)
    if op == "ia3_linear":
        x, W, b, scale, feedforward, need_z = d
        z = (x * scale if feedforward else x) @ W.t() + (0 if b is None else b)
        return (z, z[:0]) if feedforward else (z * scale, z if need_z else z[:0])
    if op == "swiglu":
        return (d[0] * torch.sigmoid(d[0]) * d[1],)
    if op == "swiglu_backward":
        dh, gate, up, need_h = d
        s = torch.sigmoid(gate)
        dgate, h = dh * up * s * (1 + gate * torch.sigmoid(-gate)), gate * s * up
        return dgate, dh * gate * s, h if need_h else h.new_empty(0)
    dY, W, scale, saved, feedforward, need_dX, need_dl = d
    dX = (dY @ W) * scale if feedforward else (dY * scale) @ W
    dl = ((dY @ W if feedforward else dY) * saved).sum(0)
    return dX[: None if need_dX else 0], dl[: None if need_dl else 0]


CASES = [
    Case(1, 1, 1, 1, 0.5),
    Case(5, 13, 7, 3, 0.3),
    Case(70, 130, 67, 17, 0.05, BF16, F32),
    Case(33, 601, 300, 40, 0.2, F16, F16),
    Case(9, 1100, 33, 70, 0.0, F16, F32),
    Case(8, 97, 19, 40, 0.0, F16, F16),
    Case(3, 100, 21, 5, 0.0, BF16, F32),
    Case(2, 164, 9, 40, 0.0, BF16, BF16),
    Case(130, 24, 16, 8, 2.5 / 65536, BF16, BF16),  # T is a tie: round() makes it 2
    Case(17, 40, 1030, 8, 65535 / 65536),
    Case(21, 50, 37, 9, 0.3, strided=True),
    Case(12, 31, 45, 5, 0.4, BF16, F32, strided=True),
    Case(0, 8, 9, 2, 0.5),
    # With at least 32 rows, or 192 in bfloat16, AVX-512 uses the package's matrix product. The sizes have all widths of
    # a panel, odd pairs, long sums and any strides.
    Case(70, 130, 67, 17, 0.05),
    Case(205, 131, 83, 5, 0.3, BF16, BF16),
    Case(33, 1300, 1, 1, 0.3),
    Case(193, 1200, 100, 2, 0.3, BF16, F32),
    Case(43, 97, 145, 3, 0.3, strided=True),
    Case(193, 97, 145, 3, 0.3, BF16, BF16, strided=True),
]
# Every float16, and float32 values at every rounding case: ties, subnormals, overflow and NaN.
HALVES = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(1, -1)
WORDS = torch.tensor([[0, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x1000, 0x3000, 0xFFFF, 0x2001, -0x8000, 0x4321]])
EXPONENTS = torch.arange(0, 256, dtype=torch.int32).view(-1, 1) << 23
FLOATS = (EXPONENTS + WORDS.to(torch.int32)).view(torch.float32).view(1, -1)
NO_MASK = torch.empty(0, 1, dtype=torch.uint8)
CONVERSIONS = [
    *(("lora_da", (torch.ones(1, 1), HALVES.view(half).clone(), NO_MASK, 0.0, F32)) for half in (BF16, F16)),
    *(("lora_da", (FLOATS, torch.ones(1, 37, dtype=half), NO_MASK, 0.0, half)) for half in (BF16, F16)),
]


@pytest.fixture(scope="module", params=AVAILABLE)
def results(request, tmp_path_factory):
    """The results of all calls on one instruction set, in order."""
    calls = [call for case in CASES for call in case.calls()] + CONVERSIONS
    isa, values = child(calls, tmp_path_factory.mktemp(request.param), request.param)
    assert isa == request.param
    return iter(values)


def agrees(op, args, outputs, keep):
    """Whether each output is within two roundings to its dtype and a few float32 roundings of the products."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    magnitude = truth(op, [a.abs() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args], keep)
    for output, expected, most in zip(outputs, truth(op, args, keep), magnitude, strict=False):
        assert output.shape == expected.shape and output.is_contiguous()
        bound = 2 * torch.finfo(output.dtype).eps * expected.abs() + 1e-6 * most
        # The frozen part is rounded to the dtype of x before the low-rank part is added or a factor is applied.
        if op in ("lora_linear", "lora_dx", "ia3_linear", "ia3_dx_dl"):
            bound = bound + torch.finfo(args[0].dtype).eps * most
        if op in ("swiglu", "swiglu_backward"):  # results may be subnormal
            bound = bound + torch.finfo(output.dtype).smallest_normal
        if not bool(((output.double() - expected).abs() <= bound).all()):
            return False
    return True


def test_every_kernel_agrees_with_float64_and_the_mask_with_philox(results):
    for case in CASES:
        keep = case.keep()
        for op, args in case.calls():
            outputs = next(results)
            if op == "lora_shrink":
                assert torch.equal(outputs[1], case.mask()), case
            assert agrees(op, args, outputs, keep), (op, case)
    for op, (dS, x, _, _, dtype) in CONVERSIONS:
        assert op == "lora_da"
        expected = (dS.t() * x.float()).to(dtype)
        torch.testing.assert_close(next(results), expected, rtol=0, atol=0, equal_nan=True)


def test_the_bound_notices_a_wrong_element_and_a_wrong_mask():
    case, other = CASES[2], Case(70, 130, 67, 17, 0.06, BF16, F32)
    keep = case.keep()
    for op, args in case.calls():
        outputs = tuple(t.float() for t in truth(op, args, keep))
        assert agrees(op, args, outputs, keep)
        if op in ("lora_shrink", "lora_dx", "lora_da"):
            assert not agrees(op, args, outputs, other.keep()), op
        written = next(t for t in outputs if t.numel())
        written.view(-1)[-1] += 0.1 * written.abs().max()
        assert not agrees(op, args, outputs, keep), op


def test_the_choice_is_the_best_unless_the_environment_says_otherwise(tmp_path):
    assert child([], tmp_path, "") == (AVAILABLE[0], [])
    asked = {"sse9": [("lora_shrink", (torch.ones(1, 1), torch.ones(1, 1), 0.0, None))], "AVX2": [], "avx512": []}
    for name in set(asked) - set(AVAILABLE):
        error = child(asked[name], tmp_path, name).strip().splitlines()[-1]
        assert f"RuntimeError: PYPEFT_FAST_CPU={name} is not an instruction set of this CPU; it has " in error
        assert ", ".join(AVAILABLE) in error
