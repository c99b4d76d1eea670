"""Makes the advice: costs from a plan, gradient energy on the user's data, a trial if wanted, and the rule."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import transformers

from ..adapters.adapted import adapted, check_rank
from ..base_models import load_base, load_tokenizer
from ..data.records import Example
from ..data.tokens import Collator
from ..errors import UserError, as_user_error
from ..plan.candidates import Candidate
from ..plan.make import CHECKPOINTED, NO, Plan, Row, make_plan
from ..plan.make import Wanted as Costs
from ..plan.probe import without_adapter
from ..plan.skeleton import blocks_of, read_skeleton
from ..sizes import written
from ..training.prepare import Data, prepare
from ..training.ready import check_data
from ..training.settings import Settings
from .energy import LayerEnergy, batches_of, gradient_energies
from .rule import Choice, Compared, Option, choose, runner_up
from .shares import Share, of_targets
from .trial import Trial, run_trial

# In the names or classes of modules with a recurrent state, such as Mamba and gated delta networks.
RECURRENT = re.compile(r"mamba|ssm|deltanet|linear_attn|recurrent|rwkv|retention", re.IGNORECASE)


@dataclass(frozen=True)
class Wanted:
    """What is asked for. settings: of the runs. batches: of the probe. groups: the candidates. room: the bytes of the
    device, on_gpu: whether they are a GPU's. timed: whether a block is timed. steps: of the trial, None for none."""

    settings: Settings
    batches: int
    groups: tuple[str, ...]
    room: int
    on_gpu: bool
    timed: bool
    steps: int | None = None


@dataclass(frozen=True)
class Advice:
    """shares: {candidate's targets: its share of the gradient energy}. read: examples that the probe has read."""

    wanted: Wanted
    plan: Plan
    data: Data
    layers: list[LayerEnergy]
    shares: dict[str, Share]
    hybrid: bool
    read: int
    trial: Trial | None
    choice: Choice

    @property
    def chosen(self) -> Candidate:
        return plan_rows(self.plan)[self.choice.targets].candidate


def make_advice(
    wanted: Wanted, examples: list[Example], held_out: list[Example] | None, told: Callable[[str], None]
) -> Advice:
    """The advice for these examples. told: is called with what is being done.

    UserError as from `make_plan`, `load_base`, `prepare` and `gradient_energies`; also for an encoder, for fewer
    examples than a batch has, if no candidate fits, and for a trial with nothing held out or with one candidate.
    """
    settings = wanted.settings
    skeleton = read_skeleton(settings.model)
    if not skeleton.causal:
        raise UserError(
            f"`model` {settings.model} is an encoder of the type {skeleton.config.model_type}; give a decoder, such as "
            "a Llama"
        )
    check_rank(skeleton.model(settings.dtype), settings.rank)
    tokenizer = load_tokenizer(settings.model)
    data = prepare(tokenizer, examples, settings, held_out)
    collator = Collator.of(tokenizer)
    batches = batches_of(data.train, collator, settings.batch_size, wanted.batches, settings.seed)
    if wanted.steps is not None and not data.held_out:
        raise UserError("`try` needs held-out examples; give `eval_data`, or an `eval_fraction` above 0")
    plan = make_plan(settings.model, _costs(wanted, data), told)
    _check_fits(plan, wanted)
    told("loading the model")
    base, _ = load_base(settings.model, settings.dtype, settings.quantize)
    check_data(base, data, settings)
    hybrid = is_hybrid(base, skeleton.depth)
    with as_user_error("no memory is left; take a smaller `batch_size`", (torch.OutOfMemoryError, MemoryError)):
        base, layers = _probe(base, skeleton.depth, batches, settings, _checkpointing(plan), told)
        shares = {name: of_targets(row.candidate.target_modules, layers) for name, row in plan_rows(plan).items()}
        options = [
            Option(name, row.parameters, row.fits, shares[name].energy, shares[name].error)
            for name, row in plan_rows(plan).items()
        ]
        choice, trial = choose(options, hybrid), None
        if wanted.steps is not None:
            pair = [
                (row.candidate, row.fits == CHECKPOINTED)
                for row in (plan_rows(plan)[name] for name in (choice.targets, runner_up(options, choice.targets)))
            ]
            trial, _ = run_trial(base, pair, data, collator, _training(wanted), told)
            choice = choose(options, hybrid, _compared(trial))
    return Advice(wanted, plan, data, layers, shares, hybrid, len(batches) * settings.batch_size, trial, choice)


def plan_rows(plan: Plan) -> dict[str, Row]:
    """{candidate's targets: its row}."""
    return {row.candidate.targets: row for row in plan.rows}


def is_hybrid(model, depth: int) -> bool:
    """Whether the blocks have modules with a recurrent state and modules of attention."""
    names = [f"{name} {type(its).__name__}" for name, its in blocks_of(model, depth).named_modules()]
    recurrent = [name for name in names if RECURRENT.search(name)]
    attention = [name for name in names if "attention" in name.lower() and not RECURRENT.search(name)]
    return bool(recurrent and attention)


def _costs(wanted: Wanted, data: Data) -> Costs:
    its = wanted.settings
    return Costs(
        methods=("lora",),
        groups=wanted.groups,
        ranks=(its.rank,),
        bases=(its.quantize,),
        batch_size=its.batch_size,
        max_length=max(len(encoded.input_ids) for encoded in data.train + data.held_out),
        dtype=its.dtype,
        room=wanted.room,
        on_gpu=wanted.on_gpu,
        timed=wanted.timed,
    )


def _check_fits(plan: Plan, wanted: Wanted) -> None:
    able = [row.candidate.targets for row in plan.rows if row.fits != NO]
    if not able:
        least = min(row.memory[1].peak for row in plan.rows)
        raise UserError(
            f"no candidate fits in {written(wanted.room)}: the smallest needs {written(least)}, with gradient "
            "checkpointing; `quantize` nf4, a smaller `batch_size` and a smaller `max_length` take less, and `gpu` or "
            "`cpu` names the memory of another device"
        )
    if wanted.steps is not None and len(able) < 2:
        raise UserError(f"`try` compares two candidates, and only {able[0]} fits or was asked for; leave `try` out")


def _checkpointing(plan: Plan) -> bool:
    """Whether the largest candidate, which the probe trains, needs gradient checkpointing."""
    return max(plan.rows, key=lambda row: row.parameters).fits in (CHECKPOINTED, NO)


def _probe(base, depth: int, batches: list, settings: Settings, checkpointing: bool, told):
    """(the base model, the gradient energy of its layers): adapters on all linear layers, as a run makes them."""
    transformers.set_seed(settings.seed)
    model = adapted(base, replace(settings, target_modules="all-linear", dropout=0.0)).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    told(f"measuring gradients on {len(batches)} batches")
    layers = gradient_energies(model, depth, batches)
    base = without_adapter(model)
    if checkpointing:
        base.gradient_checkpointing_disable()
    return base, layers


def _training(wanted: Wanted) -> Settings:
    return replace(wanted.settings, max_steps=wanted.steps, save_every=0)


def _compared(trial: Trial) -> Compared:
    best, second = trial.ranked()[:2]
    lead, error = trial.lead()
    return Compared(best.targets, second.targets, lead, error, trial.examples, trial.steps)
