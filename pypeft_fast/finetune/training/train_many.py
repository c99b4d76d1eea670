"""Several adapters over one base model in one run.

In each step every adapter that has not ended takes its next batch; one forward and one backward pass serve all of them,
then each makes its own step. The adapters share nothing but the frozen model: each ends with the losses and the weights
of a run of its own, as far as rounding goes (dropout draws other numbers).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from tqdm import tqdm

from .. import json_text
from ..adapters.files import WEIGHTS
from ..errors import about
from ..report.plot import Curve, plot_losses
from ..whole_files import write_json
from . import many_checkpoints
from .course import Course
from .many_checkpoints import Saved
from .ready_many import ReadyMany
from .results import loss_before, write_results
from .together import Step, backward


def fine_tune_many(
    ready: ReadyMany,
    output: Path,
    callbacks: Callable[[str], Sequence] = lambda name: (),
    saved: Saved | None = None,
    report_to: Sequence[str] = (),
) -> dict[str, dict]:
    """Trains all adapters; returns the metrics of each, as `fine_tune` does.

    Each adapter's folder, output/NAME, gets what a run of its own writes, as soon as the adapter has ended: the adapter
    of the lowest held-out loss, README.md and metrics.json. output gets loss.png, with the losses of all, and during
    the run checkpoints. callbacks(name) gives transformers.TrainerCallbacks for each adapter. saved: the checkpoint to
    go on from. report_to: names of OF_MANY.

    Raises UserError, and ends the run, if a loss is or becomes NaN or infinite.
    """
    courses, before = [], dict(saved.before) if saved else {}
    for name, run in ready.runs.items():
        if saved is None:
            with ready.only(name):
                before[name] = loss_before(ready.model, run.data, ready.collator, run.settings)
        if saved is None or name not in saved.ended:
            courses.append(Course(name, ready, output / name, callbacks(name), report_to))
    for course in courses if saved else ():
        course.restore(saved.numbers[course.name], saved.tensors[course.name])
    if any(run.settings.gradient_checkpointing for run in ready.runs.values()):
        ready.model.gradient_checkpointing_enable({"use_reentrant": False})
    if saved is not None:
        many_checkpoints.restore_generators(saved.generators)
    metrics, curves = {}, {}
    for name in saved.ended if saved else ():
        metrics[name], curves[name] = _of_ended(ready, name, output / name)
    for course in _in_step(ready, courses, output, before, saved.step if saved else 0):
        metrics[course.name], curves[course.name] = _end(course, output / course.name, before[course.name])
    plot_losses([curves[name] for name in ready.runs], output / "loss.png")
    return {name: metrics[name] | {"losses": curves[name].losses} for name in ready.runs}


def _in_step(ready, courses, output: Path, before: dict, step: int):
    """Trains the courses step by step from this step on; yields each one when it has ended. Writes the checkpoints."""
    every = checkpoint_steps(ready)
    with tqdm(total=max((course.steps for course in courses), default=0), initial=step) as bar:
        while courses:
            steps = [Step(course.run.adapter, *course.next_batches()) for course in courses]
            for course in courses:
                course.begin()
            losses = backward(ready.model, ready.collator, steps)
            for course in courses:
                course.update()
            for course, loss in zip(courses, losses, strict=True):
                with about(course.name):
                    course.report(loss)
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.3f}", adapters=len(courses), refresh=False)
            yield from (course for course in courses if course.ended)
            courses = [course for course in courses if not course.ended]
            if every and step % every == 0 and courses:
                many_checkpoints.write(output, step, courses, before)


def checkpoint_steps(ready: ReadyMany) -> int:
    """Steps between checkpoints: the fewest steps between evaluations of any adapter. 0: no checkpoints."""
    of_each = (run.settings.checkpoint_steps(len(run.data.rows)) for run in ready.runs.values())
    return min(filter(None, of_each), default=0)


def _of_ended(ready: ReadyMany, name: str, folder: Path):
    """The metrics and the curve of an adapter that had ended before the run went on; the model gets its weights."""
    set_peft_model_state_dict(ready.model, load_file(folder / WEIGHTS), ready.runs[name].adapter)
    metrics = json_text.read_object(folder / "metrics.json", str(folder / "metrics.json"))
    return metrics, Curve.of(folder.resolve().name, metrics)


def _end(course, folder: Path, before: float | None):
    """Writes an adapter that has ended; returns its metrics and its curve."""
    run, ready = course.run, course.ready
    course.end()
    trained, of_all = ready.model.get_nb_trainable_parameters()  # of all adapters
    with about(course.name), ready.only(course.name):
        metrics, curve = write_results(course.trainer, run.data, run.settings, folder, before, run.adapter)
    metrics["total_parameters"] = of_all - trained + metrics["trainable_parameters"]
    write_json(folder / "metrics.json", metrics)
    return metrics, curve
