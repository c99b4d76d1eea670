"""The number of threads, how they wait, and the warning on a busy machine."""

import os
import subprocess
import sys

import pytest

from pypeft_fast.finetune import threads


def test_openmp_is_told_to_sleep_early_before_it_is_loaded():
    code = (
        "import os, sys; from pypeft_fast.finetune import threads; threads.use(2); import torch; "
        "print(os.environ.get('GOMP_SPINCOUNT'), torch.get_num_threads())"
    )

    def told(**environment):
        known = {name: value for name, value in os.environ.items() if name not in (*threads.HOW_TO_WAIT, *environment)}
        run = [sys.executable, "-c", code]
        return subprocess.run(run, env=known | environment, capture_output=True, text=True, check=True).stdout.split()

    assert told() == [str(threads.SPINS), "2"]
    assert told(OMP_WAIT_POLICY="ACTIVE") == ["None", "2"] and told(GOMP_SPINCOUNT="7") == ["7", "2"]


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="about two threads on two cores, and there is one")
def test_two_threads_on_a_busy_machine_take_no_more_cpu_time_than_one():
    code = (
        "import os, sys, time; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2]); "
        "from pypeft_fast.finetune import threads; threads.use(int(sys.argv[1])); "
        "import torch; a = torch.ones(300, 300); "
        "start = time.process_time(); [(a @ a).relu_() for _ in range(500)]; print(time.process_time() - start)"
    )

    def seconds(number, **environment):
        run = [sys.executable, "-c", code, str(number)]
        known = {name: value for name, value in os.environ.items() if name not in threads.HOW_TO_WAIT}
        return float(subprocess.run(run, env=known | environment, capture_output=True, text=True, check=True).stdout)

    busy = "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(2)]
    try:
        one, two, spinning = seconds(1), seconds(2), seconds(2, GOMP_SPINCOUNT="300000")
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert two < 2 * one and two < spinning / 2, (one, two, spinning)


def test_a_busy_machine_is_named(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.2, 0, 0))
    assert "load 2.2 on 4 cores" in threads.why_oversubscribed(4) and "`threads` 2" in threads.why_oversubscribed(4)
    assert threads.why_oversubscribed(2) is None
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0, 0))
    assert "`threads` 1" in threads.why_oversubscribed(4) and threads.why_oversubscribed(1) is None
