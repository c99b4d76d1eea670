"""bench.gpu_hour, rehearsed on this CPU: every step is collected and started, and all results are kept.

Small programs as steps test the plan when a step fails, hangs, is stopped or lacks something.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.interpreter import ROOT, python

PLAN = """
import signal, sys, time
from pathlib import Path
from bench.gpu_hour.plan import Step
from bench.gpu_hour.process import Process, environment
from bench.gpu_hour.running import Hour
output = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
given = environment(output, True)
given["PYTHONPATH"] += ":" + str(output)
seconds, steps, again = 60, [], False
exec(sys.argv[2])
hour = Hour(output, seconds, lambda step: Process(step, output, given, forked=False))
print(hour.run(steps, again))
"""
STEPS = {
    "good": "from bench.gpu_hour import found; found.keep(n=3, line='three')",
    "bad": "import sys; print('before'); sys.exit('it broke')",
    "none": "from bench.gpu_hour import found; found.skip('no such tool')",
    "slow": "import time; from bench.gpu_hour import found\n"
    "found.keep(n=1); print('begun', flush=True); time.sleep(60)",
    "deaf": "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)",
    "child": "import subprocess, sys, time\n"
    "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True); time.sleep(60)",
}


def hour(*arguments, **environment):
    return python("-W", "ignore", "-m", "bench.gpu_hour", *arguments, timeout=600, **environment)


def deaf():
    """Ignores SIGINT, as a shell does for background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def planned(folder, code, wait=True):
    """Runs a plan of small programs; `code` fills `steps`. Returns (stdout, stderr), or the process if not `wait`."""
    for name, program in STEPS.items():
        (folder / f"step_{name}.py").write_text(program)
    run = [sys.executable, "-c", PLAN, str(folder), code]
    process = subprocess.Popen(
        run, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=deaf
    )
    return process.communicate(timeout=60) if wait else process


def step(name, seconds=30, **options):
    more = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"steps.append(Step({name!r}, {seconds}, '', 'step_{name}'{more}))\n"


def result(folder, name):
    return json.loads((folder / f"steps/{name}.json").read_text())


def test_every_step_is_rehearsed(tmp_path):
    done = hour("--rehearse", "--output", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu-hour.json").read_text())
    ended = {name: result["status"] for name, result in results.items()}
    for tool in ("sanitize", "ncu"):
        if ended.pop(tool) != "done":
            assert "is not on PATH" in results[tool]["why"] or "CUDA library" in results[tool]["why"]
    assert len(ended) == 12 and set(ended.values()) == {"done"}, ended
    found = {name: result["found"] for name, result in results.items()}
    assert set(found["kernels"]["kernels"]["lora_dx"]) >= {"triton"} and found["kernels"]["wrong"] == []
    assert found["tests-gpu"]["counts"]["collected"] > 300 and found["tests-layers"]["counts"]["collected"] > 300
    assert found["tests-fuse"]["counts"]["collected"] > 20
    (layer,) = found["layer"]["results"]
    assert {"frozen", "PEFT", "addmm", "ours", "ours blas"} <= set(layer["seconds"])
    for how in ("seconds", "without_graph"):
        assert {"frozen", "PEFT", "eager", "ours"} <= set(found["decode"]["results"][0][how])
    assert set(found["llama"]["seconds"]) == {"frozen", "PEFT", "fused", "frozen again"}
    assert found["llama"]["off"]["logits"] < 0.05
    assert json.loads((tmp_path / "tuning-cache.json").read_text()) == {}
    table = (tmp_path / "gpu-hour.md").read_text()
    assert "| measured / predicted |" in table and "llama, fused: step, ms" in table and table in done.stdout
    assert "not started" not in table and "decoding without a graph 1x24x40" in table

    again = hour("--rehearse", "--from", "cache", "--output", tmp_path)
    assert again.returncode == 0 and again.stdout.startswith("cache: done before\n"), again.stderr
    listed = hour("--list", "--output", tmp_path).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(results)
    assert "frozen, PEFT, fused: done" in listed


@pytest.mark.slow
def test_every_step_is_a_program_of_its_own(tmp_path):
    """The rehearsal forks its steps. On a GPU, and in this test, each step is started by `python -m`."""
    code = (
        "import dataclasses, os\nfrom bench.gpu_hour import plan\n"
        "os.environ |= given\n"
        "steps += [dataclasses.replace(step, seconds=300) for step in plan.STEPS]\n"
        "seconds = 1500\n"
    )
    out, _ = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PLAN, str(tmp_path), code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).communicate(timeout=1600)
    statuses = {path.stem: json.loads(path.read_text())["status"] for path in (tmp_path / "steps").iterdir()}
    assert set(statuses.values()) <= {"done", "skipped"} and len(statuses) == 14, out


def test_what_each_step_found_is_kept(tmp_path):
    code = step("good") + step("bad") + step("none") + step("good2", needs=("no_such_package",))
    out, error = planned(tmp_path, code.replace("step_good2", "step_good"))
    assert result(tmp_path, "good")["found"] == {"n": 3, "line": "three"} and result(tmp_path, "good")["why"] == ""
    bad = result(tmp_path, "bad")
    assert (bad["status"], bad["why"], bad["log"]) == ("failed", "exit status 1: it broke", "before\nit broke\n")
    assert (result(tmp_path, "none")["status"], result(tmp_path, "none")["why"]) == ("skipped", "no such tool")
    lacking = result(tmp_path, "good2")
    assert (lacking["status"], lacking["why"]) == ("skipped", "this Python lacks no_such_package")
    assert out.splitlines()[0] == "good: done, 0 s: three" and not error
    assert not list((tmp_path / "steps").glob("*.found.json"))


def test_a_step_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path):
    ignores = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # a step still handles SIGINT
    planned(tmp_path, ignores + step("slow", 3) + step("child", 2) + step("good"))
    slow, child = result(tmp_path, "slow"), result(tmp_path, "child")
    assert slow["status"] == child["status"] == "out of time" and slow["found"] == {"n": 1}
    assert 3 <= slow["seconds"] < 7.5 and result(tmp_path, "good")["status"] == "done"
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int(child["log"].split()[0]), 0)
            time.sleep(0.05)


def test_a_step_that_does_not_listen_is_ended(tmp_path):
    began = time.monotonic()
    code = "from bench.gpu_hour import process\nprocess.GRACE = 0.5\n" + step("deaf", 1)
    planned(tmp_path, code)
    assert result(tmp_path, "deaf")["status"] == "out of time" and time.monotonic() - began < 20


def test_a_run_ends_at_its_time_limit_and_names_the_steps_that_were_left(tmp_path):
    out, _ = planned(tmp_path, "seconds = 6\n" + step("slow", 60) + step("good"))
    assert result(tmp_path, "slow")["status"] == "out of time" and result(tmp_path, "slow")["seconds"] < 10
    assert "good: no time is left" in out and not (tmp_path / "steps/good.json").exists()


def test_a_stopped_run_keeps_what_it_has_and_the_next_goes_on(tmp_path):
    process = planned(tmp_path, step("good") + step("slow"), wait=False)
    log = tmp_path / "logs/slow.log"
    while not (log.is_file() and "begun" in log.read_text()):
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    slow = result(tmp_path, "slow")
    assert (slow["status"], slow["found"]) == ("stopped", {"n": 1})
    (tmp_path / "logs/good.log").write_text("untouched")
    out, _ = planned(tmp_path, step("good") + step("slow").replace("step_slow", "step_good"))
    assert (
        "good: done before\nslow: done, 0 s: three" in out and (tmp_path / "logs/good.log").read_text() == "untouched"
    )
    planned(tmp_path, "again = True\n" + step("good"))
    assert (tmp_path / "logs/good.log").read_text() == ""


def test_a_step_beside_others_is_waited_for_before_one_that_runs_alone(tmp_path):
    code = step("slow", 2, beside=True) + step("good") + step("none", alone=True)
    out, _ = planned(tmp_path, code)
    assert [line.split(":")[0] for line in out.splitlines()[:3]] == ["good", "slow", "none"]


def test_nothing_follows_an_essential_step_that_fails(tmp_path):
    planned(tmp_path, step("bad", essential=True) + step("good"))
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["bad.json"]


def test_without_a_gpu_it_says_so(tmp_path):
    done = hour("--output", tmp_path, CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    why = result(tmp_path, "versions")["why"]
    assert done.returncode == 1 and "bench.gpu_hour needs a GPU, and PyTorch" in why and "--rehearse" in why
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["versions.json"]


def test_without_pytorch_one_line_says_what_to_run(tmp_path):
    command = [sys.executable, "-S", "-m", "bench.gpu_hour", "--rehearse", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{sys.executable} has no PyTorch" in done.stderr and "PYTHON=.venv/bin/python" in done.stderr


def test_a_closed_pipe_ends_the_list_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bench.gpu_hour", "--list"]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def printed(code):
    return python("-c", code, expect_success=True).stdout


def test_what_was_measured_stands_beside_the_pages_prediction():
    out = printed(
        "from bench.gpu_hour import prediction, summary\n"
        "p = prediction.prediction_for('NVIDIA H200')\n"
        "print(p.step(4096, 4096, 4096, 'ours') > 1, p.step(4096, 4096, 4096, 'frozen, ms') > 0.1)\n"
        "print(p.op(4096, 4096, 4096, 16, 'lora_linear') > 100)\n"
        "print(p.step(1, 2, 3, 'ours'), p.op(1, 2, 3, 16, 'lora_dx'))\n"
        "print(prediction.prediction_for('a faked one').step(4096, 4096, 4096, 'ours'))\n"
        "for columns in summary.COLUMNS.values():\n"
        "    if columns != 'ours, float32 adapters': assert p.step(4096, 4096, 4096, columns), columns\n"
        "case = dict(M=4096, K=4096, N=4096, dtypes='bfloat16', p=0.05)\n"
        "found = dict(results=[dict(case=case, name='c', seconds={'frozen': 1e-3, 'ours': 1.2e-3, 'blas': 2e-3})])\n"
        "for row in summary.layer_rows(found, p): print(row[0], row[1], bool(row[2]), bool(row[3]))\n"
        "op = dict(case=[4096, 4096, 4096, 16, 0.05], seconds={'lora_da': {'cuda': 2e-5, 'triton': 1e-5}})\n"
        "for row in summary.op_rows(dict(ops={'c': op}), p): print(row[0], row[1], bool(row[2]))\n"
    )
    assert out.splitlines() == [
        "True True",
        "True",
        "None None",
        "None",
        "c: frozen, ms 1.000 True True",
        "c: ours / frozen 1.20 True True",
        "c: blas / frozen 2.00 False False",
        "c: lora_da, triton, us 10.0 True",
    ]


def test_a_python_without_peft_leaves_out_what_needs_it():
    out = printed(
        "from bench.gpu_hour.plan import STEPS\nfrom bench.gpu_hour import plan\n"
        "plan.find_spec = lambda name: None if name in ('peft', 'pytest') else name\n"
        "print({step.name: step.why_not() for step in STEPS if step.why_not()})\n"
        "from bench.gpu_hour.steps import layer, tests\n"
        "tests.find_spec = layer.find_spec = plan.find_spec\n"
        "case = layer.layer_cases()[0]\n"
        "print([name for name in layer.names_of(case, True) if 'PEFT' in name])\n"
        "print(sorted(tests.left_out(['tests/autograd', 'tests/nn'])))\n"
    )
    skipped, providers, files = out.splitlines()
    assert skipped == str(
        {f"tests-{name}": "this Python lacks pytest" for name in ("gpu", "layers")}
        | {"tests-fuse": "this Python lacks pytest and peft", "llama": "this Python lacks peft"}
    )
    assert providers == "[]" and files == str(["tests/autograd/test_dora.py", "tests/nn/test_ia3_linear.py"])


def test_versions_that_are_too_old():
    out = printed(
        "from bench.gpu_hour.steps.versions import too_old\n"
        "print(too_old({'torch': '2.9.1+cu130', 'triton': '3.6.0'}))\n"
        "print(too_old({'torch': '2.10.0', 'triton': None}))\n"
        "print(too_old({'torch': '2.11.0a0+git1', 'triton': '3.6.0'}))"
    )
    assert out.splitlines() == [
        "torch is 2.9.1+cu130; torch >= 2.10 is needed",
        "triton is not installed; triton >= 3.6 is needed",
        "None",
    ]


def test_what_starts_the_steps_does_not_import_pytorch():
    assert printed("import sys, bench.gpu_hour.__main__\nprint('torch' in sys.modules)").strip() == "False"
