"""report.html of `pypeft-fast finetune`, of one adapter and of several."""

import html
import json
import re

import pytest

HOSTILE = "what is <script>alert(1)</script> it"


@pytest.fixture
def data(tmp_path):
    def write(name):
        path = tmp_path / f"{name}.jsonl"
        records = [{"prompt": f"{HOSTILE} {i}", "completion": f"{name} & {i}"} for i in range(8)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


@pytest.fixture
def finetune(command, tiny_model, tmp_path):
    def run(*options):
        common = ["--model", tiny_model, "--output", tmp_path / "a", "--max-steps", 2, "--save-every", 0]
        common += [] if "--method" in options else ["--rank", 2]
        code, out, err = command("finetune", *common, *options)
        assert code == 0, err
        return out

    return run


def text_of(path):
    page = path.read_text()
    assert "<script" not in page and "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=[\"'](?!#)", page)
    return html.unescape(re.sub(r"<(?!script)[^>]+>", "", page))


def test_one_adapter(finetune, data, tmp_path):
    out = finetune("--data", data("desk"), "--report", "--report-examples", 1)
    assert "answering at most 1 question for report.html" in out and "loss.png and report.html are in" in out
    text = text_of(tmp_path / "a" / "report.html")
    assert text.count(HOSTILE) == 1 and "the held-out examples" in text and "desk & " in text
    assert f"pypeft-fast finetune --config {tmp_path}/a/finetune.json --output DIR" in text
    assert f"--adapter {tmp_path}/a" in text and "PeftModel.from_pretrained(model, " in text

    # A complete run gets the pages that it lacks.
    for name in ("report.html", "loss.png"):
        (tmp_path / "a" / name).rename(tmp_path / name)
    out = finetune("--data", data("desk"), "--report", "--report-examples", 1, "--resume")
    assert "there was no loss.png and no report.html; written now" in out
    assert text_of(tmp_path / "a" / "report.html") == text_of(tmp_path / "report.html")
    assert (tmp_path / "a" / "loss.png").read_bytes() == (tmp_path / "loss.png").read_bytes()
    assert "written now" not in finetune("--data", data("desk"), "--report", "--report-examples", 1, "--resume")

    # The next run replaces the page, or deletes it.
    out = finetune("--data", data("desk"), "--overwrite", "--report", "--report-examples", 0, "--eval-fraction", 0)
    assert "answering" not in out and "Answers" not in text_of(tmp_path / "a" / "report.html")
    out = finetune("--data", data("desk"), "--overwrite")
    assert "report.html" not in out and not (tmp_path / "a" / "report.html").exists()


def test_several_adapters_have_one_page(finetune, data, tmp_path):
    both = [f"{name}={data(name)}" for name in ("desk", "billing")]
    options = ["--data", both[0], "--data", both[1], "--report", "--report-examples", 1]
    finetune(*options)
    text = text_of(tmp_path / "a" / "report.html")
    assert "desk & " in text and "billing & " in text and text.count(HOSTILE) == 2
    assert f"--adapter {tmp_path}/a/desk --adapter {tmp_path}/a/billing" in text
    assert not list(tmp_path.glob("a/*/report.html"))
    for name in ("report.html", "loss.png"):
        (tmp_path / "a" / name).unlink()
    assert "there was no loss.png and no report.html; written now" in finetune(*options, "--resume")
    assert text_of(tmp_path / "a" / "report.html") == text
    assert (tmp_path / "a" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["prompt", "bottleneck"])
def test_a_complete_run_of_each_kind_of_files_gets_its_page(finetune, data, tmp_path, method):
    options = ["--data", data("desk"), "--method", method, "--report-examples", 1]
    finetune(*options)
    assert "there was no report.html; written now" in finetune(*options, "--resume", "--report")
    assert text_of(tmp_path / "a" / "report.html").count(HOSTILE) == 1
