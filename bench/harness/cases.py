"""The timed cases, with shapes of real layers, and the providers, which run one forward and backward pass of a case.

All providers of a case use the same frozen weight, adapter, input and output gradient, and draw their dropout mask from
torch's generator: "torch" providers by F.dropout, ours by Philox.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import pypeft_fast as pf

SCALING = 2.0


@dataclass(frozen=True)
class Case:
    M: int  # tokens
    K: int  # in_features
    N: int  # out_features
    r: int = 16
    p: float = 0.05
    dtype: torch.dtype = torch.float32
    adapter: torch.dtype = torch.float32
    kind: str = "lora"  # or "ia3", whose factor multiplies the output; r and p are then unused
    threads: int = 1

    @property
    def dtypes(self):
        names = [str(d).removeprefix("torch.") for d in (self.dtype, self.adapter)]
        return names[0] if names[0] == names[1] else "+".join(names)

    def __str__(self):
        low = f" r={self.r} p={self.p:g}" if self.kind == "lora" else " IA3"
        return f"{self.M}x{self.K}x{self.N}{low} {self.dtypes} {self.threads}t"


class Operands:
    """Leaves: x [M, K], weight [N, K], A [r, K] and B [N, r], or ia3_l [N]; and dY [M, N]."""

    def __init__(self, case):
        torch.manual_seed(0)
        self.x = torch.randn(case.M, case.K).to(case.dtype).requires_grad_()
        self.dY = torch.randn(case.M, case.N).to(case.dtype)
        self.weight = (torch.randn(case.N, case.K) / case.K**0.5).to(case.dtype)
        if case.kind == "lora":
            A, B = torch.randn(case.r, case.K) / case.K**0.5, torch.randn(case.N, case.r) / case.r**0.5
            self.adapters = tuple(t.to(case.adapter).requires_grad_() for t in (A, B))
        else:
            self.adapters = (torch.rand(case.N).add(0.5).to(case.adapter).requires_grad_(),)


@dataclass(frozen=True)
class Provider:
    build: (
        Callable  # (case, operands) -> a function without arguments that runs one step and returns a tuple of results
    )
    mask: str  # "torch", "philox", "compiled", or "none" for a provider without dropout
    kind: str


PROVIDERS: dict[str, Provider] = {}


def provider(name, mask="torch", kind="lora"):
    """Registers a function (case, operands) -> step, where step() returns y, dX and the adapter's gradients."""

    def register(build):
        PROVIDERS[name] = Provider(build, mask, kind)
        return build

    return register


def gradients(y, operands, adapters):
    return y.detach(), *torch.autograd.grad(y, (operands.x, *adapters), operands.dY)


def frozen_linear(case, operands):
    linear = nn.Linear(case.K, case.N, bias=False, dtype=case.dtype)
    linear.weight = nn.Parameter(operands.weight, requires_grad=False)
    return linear


@provider("frozen", mask="none", kind="both")
def frozen(case, operands):
    linear = frozen_linear(case, operands)
    return lambda: gradients(linear(operands.x), operands, ())


def peft_layer(case, operands):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=case.r, lora_alpha=SCALING * case.r, lora_dropout=case.p, target_modules=["0"])
    as_default = case.adapter == torch.float32
    model = get_peft_model(nn.Sequential(frozen_linear(case, operands)), config, autocast_adapter_dtype=as_default)
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight, layer.lora_B["default"].weight = map(nn.Parameter, operands.adapters)
    return layer.train()


@provider("PEFT")
def peft_lora(case, operands):
    """PEFT's default for float32 adapters; autocast_adapter_dtype=False for adapters in the layer's dtype."""
    layer = peft_layer(case, operands)
    parameters = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return lambda: gradients(layer(operands.x), operands, parameters)


@provider("PEFT compiled", mask="compiled")
def peft_compiled(case, operands):
    layer = peft_layer(case, operands)
    parameters = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    compiled = torch.compile(layer)
    return lambda: gradients(compiled(operands.x), operands, parameters)


@provider("addmm")
def addmm(case, operands):
    """The formula with the low-rank term accumulated by the GEMM (addmm), if the dtypes are equal."""

    def step():
        A, B = operands.adapters
        low = F.dropout(operands.x.to(A.dtype), case.p) @ A.t()
        y = F.linear(operands.x, operands.weight)
        if A.dtype == y.dtype:
            y = torch.addmm(y, low, B.t(), alpha=SCALING)
        else:
            y = (y + SCALING * (low @ B.t())).to(y.dtype)
        return gradients(y, operands, operands.adapters)

    return step


def ours(case, operands, kernel):
    def step():
        A, B = operands.adapters
        y = pf.lora_linear(operands.x, operands.weight, A, B, scaling=SCALING, dropout_p=case.p)
        return gradients(y, operands, operands.adapters)

    def forced():
        with pf.using(kernel):
            return step()

    return forced if kernel else step


provider("ours", mask="philox")(functools.partial(ours, kernel=None))
provider("ours cpu", mask="philox")(functools.partial(ours, kernel="cpu"))
provider("ours blas", mask="philox")(functools.partial(ours, kernel="blas"))


@provider("ours p=0", mask="none")
def ours_without_dropout(case, operands):
    """Our layer without dropout, timed in the same rounds as with dropout: the difference is the cost of dropout."""
    return ours(dataclasses.replace(case, p=0.0), operands, kernel=None)


@provider("PEFT IA3", mask="none", kind="ia3")
def peft_ia3(case, operands):
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["0"], feedforward_modules=[])
    as_default = case.adapter == torch.float32
    model = get_peft_model(nn.Sequential(frozen_linear(case, operands)), config, autocast_adapter_dtype=as_default)
    layer = model.base_model.model[0].train()
    layer.ia3_l["default"] = nn.Parameter(operands.adapters[0].detach()[:, None])

    def step():
        y, dX, dl = gradients(layer(operands.x), operands, (layer.ia3_l["default"],))
        return y, dX, dl[:, 0]

    return step


@provider("ours IA3", mask="none", kind="ia3")
def ours_ia3(case, operands):
    layer = pf.nn.IA3Linear.from_linear(frozen_linear(case, operands))
    layer.ia3_l = nn.Parameter(operands.adapters[0].detach().view_as(layer.ia3_l))
    return lambda: gradients(layer(operands.x), operands, (layer.ia3_l,))


SHAPES = [
    (512, 576, 576),
    (512, 576, 1536),
    (512, 1536, 576),
    (512, 1024, 1024),
    (512, 2048, 2048),
    (512, 4096, 4096),
    (64, 2048, 2048),
    (2048, 2048, 2048),
]
RANKS = (4, 8, 16, 32, 64, 100, 128, 256)
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]


def providers_of(case, compiled=False):
    """Every provider for a case at rank 16 with dropout on one thread; for other cases those that targets compare."""
    names = [n for n, p in PROVIDERS.items() if p.kind in ("both", case.kind) and (compiled or p.mask != "compiled")]
    if case.kind == "lora" and (case.p == 0 or case.threads > 1 or case.r != 16):
        names = [n for n in names if n in ("frozen", "PEFT", "ours")]
    return names


def all_cases():
    one = [Case(*s, p=p, dtype=d, adapter=a) for d, a in DTYPES for s in SHAPES for p in (0.05, 0.0)]
    two = [Case(*s, dtype=d, adapter=a, threads=2) for d, a in DTYPES for s in SHAPES[:6]]
    ranks = [Case(512, 576, 1536, r=r) for r in RANKS if r != 16]
    ia3 = [Case(*s, dtype=d, adapter=d, kind="ia3") for d in (torch.float32, torch.bfloat16) for s in SHAPES[:3]]
    return one + two + ranks + ia3
