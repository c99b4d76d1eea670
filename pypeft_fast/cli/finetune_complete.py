"""What `pypeft-fast finetune --resume` does in the folder of a complete run: it writes loss.png and report.html if they
are missing."""

from ..finetune.calm import calm_libraries
from ..finetune.data.products import Part
from ..finetune.training.run_folder import PLOT_FILE, REPORT_FILE
from ..finetune.training.settings import Settings
from .finetune_report import Trained, write_report
from .terminal import say


def complete_one(arguments, settings: Settings, part: Part, options: dict) -> None:
    """For a run of one adapter."""
    output = arguments.output
    if not (missing := _missing(arguments)):
        return
    calm_libraries()
    from ..finetune.training import finished

    if PLOT_FILE in missing:
        finished.plot(output, [output])
    if REPORT_FILE in missing:
        ready = finished.load_finished(settings, part.examples, part.held_out, output)
        its = Trained(finished.metrics_in(output), output, part.examples, ready.data.held_out_examples)
        write_report(arguments, options, ready, {output.resolve().name: its})
    _say_written(missing, arguments)


def complete_many(arguments, settings: dict[str, Settings], data: dict[str, Part], options: dict) -> None:
    """For a run of several adapters."""
    output = arguments.output
    if not (missing := _missing(arguments)):
        return
    calm_libraries()
    from ..finetune.training import finished

    if PLOT_FILE in missing:
        finished.plot(output, [output / name for name in settings])
    if REPORT_FILE in missing:
        examples = {name: its.examples for name, its in data.items()}
        held_out = {name: its.held_out for name, its in data.items() if its.held_out is not None}
        ready, trained = finished.load_finished_many(settings, examples, held_out, output), {}
        for name, run in ready.runs.items():
            metrics = finished.metrics_in(output / name)
            trained[name] = Trained(metrics, output / name, examples[name], run.data.held_out_examples)
        write_report(arguments, options, ready, trained, ready.only)
    _say_written(missing, arguments)


def _missing(arguments) -> list[str]:
    """The names of the files that the run should have written and that are not in --output."""
    wanted = [PLOT_FILE, REPORT_FILE] if arguments.report else [PLOT_FILE]
    return [name for name in wanted if not (arguments.output / name).exists()]


def _say_written(names: list[str], arguments) -> None:
    say(f"in {arguments.output} there was no {' and no '.join(names)}; written now")
