"""Runs the steps within the time limit, and keeps the results of each step, also if the step fails."""

import json
import time

from .found import SKIPPED, write_whole
from .process import Process

DONE, FAILED, LATE, STOPPED, SKIP = "done", "failed", "out of time", "stopped", "skipped"
LEAST = 5.0  # seconds: no step starts if less time is left
TAIL = 4000  # characters of a step's log that its result holds


def read(output, name):
    """A step's result, or None."""
    path = output / f"steps/{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


class Hour:
    """One run of some steps. `start(step)` gives its Process; `say` prints a line."""

    def __init__(self, output, seconds, start, say=print):
        self.output, self.start, self.say = output, start, say
        self.end = time.monotonic() + seconds
        self.running: list[tuple[Process, float]] = []  # [(process, the time at which it is stopped)]
        for folder in ("steps", "logs"):
            (output / folder).mkdir(parents=True, exist_ok=True)

    def run(self, steps, again=False):
        """{name: status} of the steps that this run started, skipped, or found done. Results are also kept after a
        KeyboardInterrupt."""
        statuses = {}
        try:
            for step in steps:
                before = read(self.output, step.name)
                if before is not None and before["status"] == DONE and not again:
                    statuses[step.name] = DONE
                    self.say(f"{step.name}: done before")
                    continue
                if step.alone:
                    self._wait(lambda: not self.running, statuses)
                if self.end - time.monotonic() < LEAST:
                    self.say(f"{step.name}: no time is left")
                    break
                if (reason := step.why_not()) is not None:
                    statuses[step.name] = self._keep(step, SKIP, reason, 0.0, {})
                    continue
                process = self.start(step)
                self.running.append((process, min(self.end, process.began + step.seconds)))
                if step.beside:
                    continue
                self._wait(lambda process=process: process not in [p for p, _ in self.running], statuses)
                if step.essential and statuses[step.name] != DONE:
                    break
            self._wait(lambda: not self.running, statuses)
        except KeyboardInterrupt:
            for process, _ in self.running:
                process.stop()
                statuses[process.step.name] = self._ended(process, STOPPED, "the run was stopped")
            self.running = []
            raise
        return statuses

    def _wait(self, is_over, statuses):
        while not is_over():
            for process, end in list(self.running):
                if process.ended is not None:
                    status, why = _outcome(process)
                elif time.monotonic() >= end:
                    status, why = LATE, f"stopped after {process.seconds:.0f} s"
                    process.stop()
                else:
                    continue
                self.running.remove((process, end))
                statuses[process.step.name] = self._ended(process, status, why)
            time.sleep(0.02)

    def _ended(self, process, status, why):
        found = json.loads(process.found.read_text()) if process.found.is_file() else {}
        why = found.pop("skipped", why) if status == SKIP else why
        log = process.log.read_text(errors="replace")[-TAIL:] if process.log.is_file() else ""
        status = self._keep(process.step, status, why, process.seconds, found, log)
        process.found.unlink(missing_ok=True)
        return status

    def _keep(self, step, status, why, seconds, found, log=""):
        result = {"step": step.name, "status": status, "why": why, "seconds": round(seconds, 1), "found": found,
                  "log": log}  # fmt: skip
        write_whole(self.output / f"steps/{step.name}.json", json.dumps(result, indent=1) + "\n")
        self.say(f"{step.name}: {status}, {seconds:.0f} s: {why or found.get('line', '')}")
        return status


def _outcome(process):
    """(status, reason) of a process that was not stopped."""
    if process.ended == 0:
        return DONE, ""
    if process.ended == SKIPPED:
        return SKIP, "the step skipped itself"
    lines = process.log.read_text(errors="replace").strip().splitlines() if process.log.is_file() else []
    return FAILED, f"exit status {process.ended}: {lines[-1] if lines else 'nothing was printed'}"
