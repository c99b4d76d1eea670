"""The rule by which a candidate is recommended, as a function of costs, gradient energy and a trial."""

from dataclasses import dataclass

from ..plan.make import CHECKPOINTED, NO
from .evidence import ALL, EQUAL, FINDINGS

ENOUGH = 0.9  # the share of the gradient energy with which a smaller candidate replaces all-linear
ERRORS = 2  # standard errors
FEW_EXAMPLES = 5  # held-out examples of a trial that decides


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


RULES = (
    "A candidate must fit in memory, with --gradient-checkpointing if need be.",
    "Of the candidates that fit, all-linear is the start; in a model with recurrent layers, attention. If the start "
    "does not fit, the candidate with the most gradient energy takes its place.",
    f"mlp replaces all-linear if its share of the gradient energy, less {ERRORS} standard errors, is at least "
    f"{percent(ENOUGH)}. q,v and attention do not replace all-linear by their gradient energy alone, since studies "
    "found them worse than all-linear. In a model with recurrent layers this rule does not apply.",
    f"With --try, the candidate with the lower held-out loss is taken if the two losses differ by more than {ERRORS} "
    f"standard errors of their difference, and if at least {FEW_EXAMPLES} examples are held out.",
)


@dataclass(frozen=True)
class Option:
    """A candidate: its trained parameters, whether it fits (as in a plan), its share of the gradient energy with the
    standard error."""

    targets: str
    parameters: int
    fits: str
    energy: float
    error: float | None = None


@dataclass(frozen=True)
class Compared:
    """The result of a trial of two candidates. lead: by how much the held-out loss of `best` is lower. error: the
    standard error of this difference. examples: those that were held out."""

    best: str
    second: str
    lead: float
    error: float | None
    examples: int
    steps: int

    @property
    def decides(self) -> bool:
        enough = self.error is not None and self.examples >= FEW_EXAMPLES
        return enough and self.lead > ERRORS * self.error


@dataclass(frozen=True)
class Choice:
    """targets: the candidate. checkpointing: whether it needs gradient checkpointing. why: the rules that led to the
    candidate. doubts: what speaks against it, and what is not known."""

    targets: str
    checkpointing: bool
    why: tuple[str, ...]
    doubts: tuple[str, ...]


def choose(options: list[Option], hybrid: bool, trial: Compared | None = None) -> Choice:
    """Applies RULES. At least one option fits. hybrid: whether the model has recurrent layers beside attention."""
    able = {its.targets: its for its in options if its.fits != NO}
    chosen, why = _start(able, hybrid)
    if chosen.targets == "all-linear" and not hybrid:
        chosen, more = _smaller(able, chosen)
        why.append(more)
    doubts = [*_against_the_literature(options, hybrid), NOT_THE_END]
    if trial is None:
        doubts.append("No candidate was trained here. --try trains two and compares their held-out loss.")
    elif trial.decides:
        chosen = able[trial.best]
        why.append(
            f"After {trial.steps} steps on the same batches {trial.best} has a held-out loss that is {trial.lead:.3f} "
            f"lower than that of {trial.second} (standard error {trial.error:.3f}, {trial.examples} examples)."
        )
        doubts += [
            "The trial is short and has one seed. More steps or another seed may change the order.",
            _sizes(able, trial),
        ]
    else:
        doubts.append(_undecided(trial))
    if chosen.fits == CHECKPOINTED:
        why.append(f"{chosen.targets} fits with --gradient-checkpointing, which takes more time a step.")
    return Choice(chosen.targets, chosen.fits == CHECKPOINTED, tuple(why), tuple(doubts))


def runner_up(options: list[Option], chosen: str) -> str:
    """Of the other candidates that fit, the one with the most gradient energy: the second of a trial."""
    others = [its for its in options if its.fits != NO and its.targets != chosen]
    return max(others, key=lambda its: its.energy).targets


NOT_THE_END = (
    "Gradient energy says where the loss changes most in the first step. Studies disagree whether the end of training "
    "follows from it."
)


def _start(able: dict[str, Option], hybrid: bool) -> tuple[Option, list[str]]:
    better, equal = ([f for f in FINDINGS if f.verdict == verdict] for verdict in (ALL, EQUAL))
    start = "attention" if hybrid and "attention" in able else "all-linear"
    if start in able:
        if hybrid and start == "attention":
            return able[start], [
                "This model has recurrent layers beside attention. In the one study of such models, adapters on "
                "attention alone were better than adapters on all layers."
            ]
        return able[start], [
            f"Of {len(better) + len(equal)} comparisons on transformers, {len(better)} found adapters on the MLP "
            f"layers or on all linear layers better than on attention alone; {len(equal)} found no clear difference."
        ]
    most = max(able.values(), key=lambda its: its.energy)
    return most, [
        f"{start} does not fit or is not among the candidates; {most.targets} has the most gradient energy of the rest."
    ]


def _smaller(able: dict[str, Option], whole: Option) -> tuple[Option, str]:
    """mlp if it has enough of the gradient energy, or all-linear."""
    mlp = able.get("mlp")
    if mlp is None:
        return whole, "mlp alone does not fit or is not among the candidates."
    if mlp.energy < ENOUGH:
        return whole, f"The MLP layers alone have less than {percent(ENOUGH)} of the gradient energy of your data."
    if mlp.energy - ERRORS * (mlp.error or 0.0) < ENOUGH:
        return whole, (
            f"The MLP layers alone have {percent(mlp.energy)} of the gradient energy of your data; less {ERRORS} "
            f"standard errors it is below {percent(ENOUGH)}."
        )
    return mlp, (
        f"mlp has {percent(mlp.energy)} of the gradient energy of your data, with "
        f"{percent(mlp.parameters / whole.parameters)} of the parameters of all-linear."
    )


def _against_the_literature(options: list[Option], hybrid: bool) -> list[str]:
    """A sentence if the gradient energy and the literature favour different parts of the blocks."""
    energy = {its.targets: its.energy for its in options}
    attention, mlp = energy.get("attention"), energy.get("mlp")
    if hybrid or attention is None or mlp is None or attention <= mlp:
        return []
    return [
        f"On your data attention has {percent(attention)} of the gradient energy and mlp {percent(mlp)}, "
        "while the larger studies found adapters on the MLP layers more useful than on attention."
    ]


def _sizes(able: dict[str, Option], trial: Compared) -> str:
    small, large = sorted((able[trial.best], able[trial.second]), key=lambda its: its.parameters)
    return (
        f"Both have the same rank, so {large.targets} trains {large.parameters / small.parameters:.1f} times as many "
        f"parameters as {small.targets}."
    )


def _undecided(trial: Compared) -> str:
    if trial.examples < FEW_EXAMPLES:
        return (
            f"The trial decides nothing: {trial.examples} held-out example(s) are fewer than {FEW_EXAMPLES}. Give more "
            "data or --eval-data."
        )
    return (
        f"The trial cannot tell {trial.best} from {trial.second}: after {trial.steps} steps their held-out losses "
        f"differ by {trial.lead:.3f}, with a standard error of {trial.error:.3f} over {trial.examples} examples."
    )
