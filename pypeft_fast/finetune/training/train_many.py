"""Several adapters over one base model in one run.

In each step every adapter that has not ended takes its next batch; one forward and one backward pass serve all of them,
then each makes its own step. The adapters share nothing but the frozen model: each ends with the losses and the weights
of a run of its own, as far as rounding goes (dropout draws other numbers).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..errors import about
from ..report.plot import plot_losses
from ..whole_files import write_json
from .course import Course
from .ready_many import ReadyMany
from .results import loss_before, write_results
from .together import Step, backward


def fine_tune_many(
    ready: ReadyMany, output: Path, callbacks: Callable[[str], Sequence] = lambda name: ()
) -> dict[str, dict]:
    """Trains all adapters; returns the metrics of each, as `fine_tune` does.

    Each adapter's folder, output/NAME, gets what a run of its own writes, as soon as the adapter has ended: the adapter
    of the lowest held-out loss, README.md and metrics.json. output gets loss.png, with the losses of all.
    callbacks(name) gives transformers.TrainerCallbacks for each adapter.

    Raises UserError, and ends the run, if a loss is or becomes NaN or infinite.
    """
    courses, before = [], {}
    for name, run in ready.runs.items():
        with ready.only(name):
            before[name] = loss_before(ready.model, run.data, ready.collator, run.settings)
        courses.append(Course(name, ready, output / name, callbacks(name)))
    if any(run.settings.gradient_checkpointing for run in ready.runs.values()):
        ready.model.gradient_checkpointing_enable({"use_reentrant": False})
    metrics, curves = {}, {}
    for course in _in_step(ready, courses):
        metrics[course.name], curves[course.name] = _end(course, output / course.name, before[course.name])
    plot_losses([curves[name] for name in ready.runs], output / "loss.png")
    return {name: metrics[name] | {"losses": curves[name].losses} for name in ready.runs}


def _in_step(ready, courses):
    """Trains the courses step by step; yields each one when it has ended."""
    with tqdm(total=max(course.steps for course in courses)) as bar:
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
            bar.update()
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.3f}", adapters=len(courses), refresh=False)
            yield from (course for course in courses if course.ended)
            courses = [course for course in courses if not course.ended]


def _end(course, folder: Path, before: float | None):
    """Writes an adapter that has ended; returns its metrics and its curve."""
    run, ready = course.run, course.ready
    course.take_best()
    trained, of_all = ready.model.get_nb_trainable_parameters()  # of all adapters
    with about(course.name), ready.only(course.name):
        metrics, curve = write_results(course.trainer, run.data, run.settings, folder, before, run.adapter)
    metrics["total_parameters"] = of_all - trained + metrics["trainable_parameters"]
    write_json(folder / "metrics.json", metrics)
    return metrics, curve
