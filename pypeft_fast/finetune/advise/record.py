"""The advice as plain data, for JSON."""

from dataclasses import asdict

from ..plan.record import record as plan_record
from .evidence import CONFLICTS, FINDINGS, against
from .lines import peft_config, train_command
from .make import Advice
from .rule import RULES
from .shares import Share, by_block, by_module
from .trial import Trial


def record(advice: Advice) -> dict:
    """All that the report shows, in bytes, seconds, nats and shares from 0 to 1."""
    settings = advice.wanted.settings
    return {
        "model": settings.model,
        "data": settings.data,
        "examples": {
            "training": len(advice.data.train),
            "held_out": len(advice.data.held_out),
            "read_by_the_probe": advice.read,
        },
        "rank": settings.rank,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "hybrid": advice.hybrid,
        "recommendation": {
            **asdict(advice.choice),
            "target_modules": advice.chosen.target_modules,
            "command": train_command(advice),
            "lora_config": peft_config(advice),
        },
        "rules": list(RULES),
        "costs": plan_record(advice.plan),
        "gradient_energy": {
            "candidates": {name: _share(share) for name, share in advice.shares.items()},
            "modules": {name: _share(share) for name, share in by_module(advice.layers).items()},
            "blocks": {str(block): _share(share) for block, share in by_block(advice.layers).items()},
            "layers": [asdict(layer) for layer in advice.layers],
        },
        "trial": None if advice.trial is None else _trial(advice.trial),
        "literature": {
            "findings": [{**asdict(its), "disagrees_with": against(its.key)} for its in FINDINGS],
            "conflicts": [asdict(its) for its in CONFLICTS],
        },
    }


def _share(share: Share) -> dict:
    return {**asdict(share), "energy_per_parameter": share.density}


def _trial(trial: Trial) -> dict:
    lead, error = trial.lead()
    losses = {}
    for its in (trial.base, *trial.tried):
        loss, spread = its.loss
        losses[its.targets] = {"held_out_loss": loss, "standard_error": spread, **asdict(its)}
    return {
        "steps": trial.steps,
        "learning_rate": trial.learning_rate,
        "examples": trial.examples,
        "tokens": trial.tokens,
        "losses": losses,
        "lead": lead,
        "standard_error_of_lead": error,
    }
