"""Makes a plan: for each candidate and each format of the base model, its parameters, memory and time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from ..adapters.adapted import check_rank
from ..errors import UserError, as_user_error
from ..memory import resident_bytes
from . import candidates as choices
from .candidates import Candidate
from .counted import at_rank, file_bytes, parameters, tensors_of, with_adapter
from .live import DEPTH, activations
from .memory import Base, Memory, memory
from .probe import Probe, Times, between, ends
from .skeleton import Skeleton, read_skeleton, remarks
from .weights import base_bytes, largest_layer

MOST_TOKENS = 2**31  # of a step, above which PyTorch's sizes may overflow
FITS, CHECKPOINTED, NO = "yes", "checkpointed", "no"


@dataclass(frozen=True)
class Wanted:
    """What a plan is asked for. room: the bytes of the device. on_gpu: whether these are a GPU's."""

    methods: tuple[str, ...] = choices.METHODS
    groups: tuple[str, ...] = choices.GROUPS
    ranks: tuple[int, ...] = (4, 16, 64)
    bases: tuple[str | None, ...] = choices.BASES
    batch_size: int = 4
    max_length: int = 512
    dtype: str = "float32"
    room: int = 0
    on_gpu: bool = False
    timed: bool = True


@dataclass(frozen=True)
class Row:
    """One candidate over the base model in one format; the second of two values is with gradient checkpointing."""

    candidate: Candidate
    base: str | None
    parameters: int
    file_bytes: int
    memory: tuple[Memory, Memory]
    seconds: tuple[float, float] | None
    room: int

    @property
    def fits(self) -> str:
        return FITS if self.memory[0].peak <= self.room else CHECKPOINTED if self.memory[1].peak <= self.room else NO


@dataclass
class Plan:
    skeleton: Skeleton
    wanted: Wanted
    weights: int  # parameters of the base model
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def make_plan(model: str, wanted: Wanted, told: Callable[[str], None] = lambda text: None, clock=None) -> Plan:
    """The plan of a model's candidates. told: is called with what is being done. clock: see `Probe`.

    UserError as from `read_skeleton`, or if the model has none of the wanted groups of layers.
    """
    skeleton = read_skeleton(model)
    told("counting parameters")
    full = skeleton.model(wanted.dtype)
    process = resident_bytes()
    groups = choices.target_groups(full, skeleton.depth, wanted.groups)
    if not groups:
        raise UserError(f"`model` {model} has no linear layers of {', '.join(wanted.groups)} in its blocks")
    for rank in wanted.ranks if set(wanted.methods) != {"ia3"} else ():
        check_rank(full, rank)
    asked = choices.candidates(groups, wanted.methods, wanted.ranks)
    plan = Plan(skeleton, wanted, sum(p.numel() for p in full.parameters()), remarks=remarks(full, skeleton.depth))
    bases = {base: base_of(skeleton, full, base, wanted.dtype, wanted.on_gpu) for base in wanted.bases}
    shapes = _shapes(skeleton, asked, wanted.dtype)
    told("simulating a step of each candidate on tensors without memory")
    live = {(its, saves): _live(skeleton, its, wanted, saves) for its in asked for saves in (False, True)}
    for base, held in bases.items():
        able = [its for its in asked if choices.runs_over(its, base)]
        if wanted.timed:
            told(f"timing one block, {base or 'dense'}")
        times = _times(Probe(skeleton, wanted.dtype, base, _shape(wanted), clock), able) if wanted.timed else {}
        for its in able:
            count = parameters(shapes[its])
            sizes = [
                memory(held, count, live[its, saves], skeleton.depth, process, wanted.on_gpu) for saves in (False, True)
            ]
            seconds = [times[its].step(skeleton.depth, saves) for saves in (False, True)] if times else None
            plan.rows.append(
                Row(its, base, count, file_bytes(shapes[its]), tuple(sizes), seconds and tuple(seconds), wanted.room)
            )
    return plan


def _shape(wanted: Wanted) -> tuple[int, int]:
    return wanted.batch_size, wanted.max_length


def base_of(skeleton: Skeleton, full, base: str | None, dtype: str, on_gpu: bool) -> Base:
    """The base model in a format. full: the model in this dtype on the meta device."""
    dense, stored = base_bytes(full, None), getattr(torch, dtype)
    file = getattr(skeleton.config, "dtype", None) or stored
    checkpoint = dense * file.itemsize // stored.itemsize
    copy = largest_layer(full) * stored.itemsize if base and on_gpu else 0
    return Base(base_bytes(full, base), dense, checkpoint, file != stored, copy)


def _shapes(skeleton: Skeleton, asked: Iterable[Candidate], dtype: str) -> dict[Candidate, dict]:
    """{candidate: the tensors of its adapter}; PEFT makes one adapter for the ranks of a method and its targets."""
    made: dict[tuple, dict] = {}
    found = {}
    for its in asked:
        key = its.method, its.targets
        if key not in made:
            made[key] = tensors_of(with_adapter(skeleton.model(dtype), its, skeleton.task))
        found[its] = at_rank(made[key], its.rank)
    return found


def _live(skeleton: Skeleton, its: Candidate, wanted: Wanted, saves: bool):
    model = with_adapter(skeleton.model(wanted.dtype, DEPTH), its, skeleton.task)
    # Some kernels refuse a dtype also without memory: the product of stacked experts in PyTorch takes bfloat16 alone.
    remedy = "try `dtype` bfloat16" if wanted.dtype != "bfloat16" else "this model cannot be planned"
    if wanted.batch_size * wanted.max_length > MOST_TOKENS:
        remedy = "give fewer tokens by `batch_size` or `max_length`"
    with as_user_error(f"no step of the model in {wanted.dtype} can be simulated; {remedy}", (RuntimeError,)):
        return activations(model, _shape(wanted), skeleton.causal, saves)


def _times(probe: Probe, able: list[Candidate]) -> dict[Candidate, Times]:
    """{candidate: its times}. The smallest and the largest rank are timed."""
    found: dict[Candidate, Times] = {}
    for its in able:
        ranks = ends([o.rank for o in able if (o.method, o.targets) == (its.method, its.targets)]) if its.rank else None
        if ranks is None:
            found[its] = probe.times(its)
            continue
        low, high = (Candidate(its.method, its.targets, its.target_modules, rank) for rank in ranks)
        for end in (low, high):
            if end not in found:
                found[end] = probe.times(end)
        found[its] = between(found[low], found[high], ranks, its.rank)
    return found
