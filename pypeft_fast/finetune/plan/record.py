"""A plan as plain data, for JSON."""

from dataclasses import asdict

from .make import Plan, Row


def record(plan: Plan) -> dict:
    """What the table shows, in bytes and seconds, and the parts of each peak."""
    return {
        "model": plan.skeleton.name,
        "parameters": plan.weights,
        "blocks": plan.skeleton.depth,
        "wanted": asdict(plan.wanted),
        "remarks": plan.remarks,
        "candidates": [_row(row) for row in plan.rows],
    }


def _row(row: Row) -> dict:
    plain, saving = ({"peak": its.peak} | asdict(its) for its in row.memory)
    seconds = row.seconds or (None, None)
    return {
        **asdict(row.candidate),
        "base": row.base or "dense",
        "trained_parameters": row.parameters,
        "file_bytes": row.file_bytes,
        "memory": plain,
        "memory_with_checkpointing": saving,
        "seconds": seconds[0],
        "seconds_with_checkpointing": seconds[1],
        "fits": row.fits,
    }
