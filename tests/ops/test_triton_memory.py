"""Triton kernels access only elements of their arguments, on every path, also at offsets past 2**31."""

import dataclasses

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops import _triton
from pypeft_fast.testing import Case, assert_agrees, sample
from tests.device import ON_GPU

if _triton.why_no_triton() is not None or ON_GPU:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from pypeft_fast.kernels import _tiles  # noqa: E402
from pypeft_fast.testing import triton_accesses  # noqa: E402

NAMES = [name for name, op in OPS.items() if "triton" in {k.name for k in op.kernels}]
LORA = [name for name in NAMES if name.startswith("lora")]
CASES = [
    Case(67, 83, 45, 5, 0.3),
    Case(33, 50, 37, 9, 0.3, torch.bfloat16, layout="strided"),
    Case(70, 40, 24, 33, 0.0, torch.bfloat16, torch.float32),
]
SIZES = (1, 3, 17, 63, 65, 129)
GRID = [
    Case(M, K, N, r, p, dtype)
    for at, M in enumerate((0, *SIZES))
    for K, N in zip(SIZES, SIZES[at % 5 :] + SIZES[: at % 5], strict=True)
    for r, p, dtype in ((1, 0.3, torch.float32), (8, 0.0, torch.float16), (16, 0.3, torch.bfloat16))
] + [Case(65, 63, 17, r, 0.3) for r in (1, 2, 7, 8, 16, 33, 64)]


LAUNCHES = {"multi_lora_forward": 3, "multi_lora_backward": 4}  # 1 for every other op


def run(name, args):
    """The launches of the op, without those that write the addresses of adapters into a table."""
    lists = {i: value for i, value in enumerate(args) if isinstance(value, list)}
    beside = {f"{i}[{j}]": t for i, ts in lists.items() for j, t in enumerate(ts) if isinstance(t, torch.Tensor)}
    with pf.using("triton"), triton_accesses.traced(beside) as launches:
        OPS[name](*args)
    return [launch for launch in launches if launch.kernel != "_write_adapter"]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name,options", [*((name, {}) for name in NAMES), ("lora_linear", {"scale": True})])
def test_touches_nothing_but_its_arguments_in_as_few_launches_as_planned(name, options, case):
    launches = run(name, sample(name, dataclasses.replace(case, options=options)))
    assert len(launches) == LAUNCHES.get(name, 1)
    for launch in launches:
        assert launch.outside == [] and launch.loaded.total() > 0 and launch.stored.total() > 0


@triton.jit
def _strays(x_ptr, y_ptr, N, LOAD: tl.constexpr):
    at = tl.arange(0, 16)
    x = tl.load(x_ptr + at, mask=(at < N) | LOAD, other=0.0)
    tl.store(y_ptr + at, x, mask=(at < N) | (not LOAD))


@pytest.mark.parametrize("load", [True, False])
def test_an_access_outside_every_argument_is_reported(load):
    arena = torch.zeros(64)
    with triton_accesses.traced() as launches:
        _strays[(1,)](arena[:13], arena[32:45], 13, LOAD=load)
    assert launches[0].outside == [f"{'loaded' if load else 'stored'} 3 elements outside every argument"]


@triton.jit
def _passes(x_ptr, y_ptr, AGAIN: tl.constexpr):
    at = tl.arange(0, 16)
    x = tl.load(x_ptr + at)
    if AGAIN:
        x += tl.load(x_ptr + at)
    tl.store(y_ptr + at, x)


@pytest.mark.parametrize("again", [False, True])
def test_a_pass_counts_once_for_all_programs_and_a_second_one_again(again):
    with triton_accesses.traced() as launches:
        _passes[(3,)](torch.ones(16), torch.empty(16), AGAIN=again)
    (launch,) = launches
    passes = 1 + again
    assert launch.once["x_ptr"] == passes * 64 and launch.loaded["x_ptr"] == 3 * passes * 64
    assert launch.once["y_ptr"] == 0 and launch.stored["y_ptr"] == 3 * 64


# {op: the number of the argument that gets three rows, 2**30 elements apart}, for ops whose operands may have strides.
FAR = {"lora_shrink": 0, "lora_linear": 0, "lora_ds_db": 0, "lora_dx": 0, "lora_da": 1, "ia3_linear": 0, "ia3_dx_dl": 0,
       "swiglu": 1, "swiglu_backward": 2, "multi_lora_forward": 0, "multi_lora_backward": 0}  # fmt: skip


@pytest.mark.parametrize("name,at", [*FAR.items(), ("multi_lora_backward", 1)])
def test_offsets_past_31_bits(name, at, tmp_path, monkeypatch):
    args = list(sample(name, Case(3, 40, 24, 4, 0.3)))
    near = args[at]
    rows = 2**30 + 8  # row 2 begins past 2**31; a sparse file has addresses, no memory
    size = (2 * rows + near.shape[1]) * 4
    storage = torch.UntypedStorage.from_file(str(tmp_path / "sparse"), shared=True, nbytes=size)
    far = torch.empty(0).set_(storage, 0, near.shape, (rows, 1))
    far.copy_(near)
    # The interpreter copies whole storages back to their device. On a CPU this copy is not needed.
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    with pf.using("triton"):
        expected = OPS[name](*args)
        args[at] = far
        torch.testing.assert_close(OPS[name](*args), expected, rtol=0, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "name,options",
    [*((name, {}) for name in NAMES if name in (*_tiles.GEMMS, *LAUNCHES)), ("lora_linear", {"scale": True})],
)
def test_tensor_descriptors(name, options, transposed, monkeypatch):
    config = dataclasses.replace(_tiles.default(name, "interpreter", 32), tma=True)
    monkeypatch.setattr(_tiles, "default", lambda *_: config)
    described = []
    describe = _tiles.TensorDescriptor.from_tensor
    monkeypatch.setattr(
        _tiles.TensorDescriptor, "from_tensor", staticmethod(lambda t, b: described.append(t) or describe(t, b))
    )
    case = Case(70, 84, 44, 5, 0.3, options=options)
    args = list(sample(name, case))
    weight = 2 if name == "multi_lora_backward" else 1
    args[weight] = args[weight].t().contiguous().t() if transposed else args[weight]
    with pf.using("triton"):
        outputs = OPS[name](*args)
    with pf.using("reference"):
        torch.testing.assert_close(outputs, OPS[name](*args), rtol=1e-4, atol=1e-4)
    assert len(described) == 3 + (options != {} or name == "ia3_linear")  # x, weight, the output, z
    args[0] = torch.nn.functional.pad(args[0], (1, 0))[:, 1:]  # TMA cannot describe these rows
    described.clear()
    with pf.using("triton"):
        torch.testing.assert_close(OPS[name](*args), outputs, rtol=1e-5, atol=1e-5)
    assert described == []


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("name", FAR)
def test_stride_0_and_empty_axes(name, p):
    for M, K, N in ((5, 0, 9), (5, 9, 0), (0, 9, 5)):
        args = sample(name, Case(M, K, N, 3, p))
        with pf.using("triton"):
            outputs = OPS[name](*args)
        with pf.using("reference"):
            torch.testing.assert_close(outputs, OPS[name](*args))
    args = list(sample(name, Case(21, 40, 24, 3, p)))
    args[FAR[name]] = args[FAR[name]][:1].expand(21, -1)
    with pf.using("triton"):
        outputs = OPS[name](*args)
    with pf.using("reference"):
        torch.testing.assert_close(outputs, OPS[name](*args), rtol=1e-4, atol=1e-4)


def _on_the_grid():
    """Every case; an eighth of them for ops with several launches over several adapters, which take seconds."""
    return [pytest.param(n, case, id=f"{n}-{case}") for n in NAMES for case in GRID[:: 8 if n in LAUNCHES else 1]]


@pytest.mark.slow
@pytest.mark.parametrize("name,case", _on_the_grid())
def test_grid_of_odd_sizes(name, case, poisoned):
    assert_agrees(name, "triton", case)
    for launch in run(name, sample(name, case)):
        assert launch.outside == []
