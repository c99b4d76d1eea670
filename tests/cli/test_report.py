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
        common = ["--model", tiny_model, "--output", tmp_path / "a", "--rank", 2, "--max-steps", 2, "--save-every", 0]
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

    # The next run replaces the page, or deletes it.
    out = finetune("--data", data("desk"), "--overwrite", "--report", "--report-examples", 0, "--eval-fraction", 0)
    assert "answering" not in out and "Answers" not in text_of(tmp_path / "a" / "report.html")
    out = finetune("--data", data("desk"), "--overwrite")
    assert "report.html" not in out and not (tmp_path / "a" / "report.html").exists()


def test_several_adapters_have_one_page(finetune, data, tmp_path):
    both = [f"{name}={data(name)}" for name in ("desk", "billing")]
    finetune("--data", both[0], "--data", both[1], "--report", "--report-examples", 1)
    text = text_of(tmp_path / "a" / "report.html")
    assert "desk & " in text and "billing & " in text and text.count(HOSTILE) == 2
    assert f"--adapter {tmp_path}/a/desk --adapter {tmp_path}/a/billing" in text
    assert not list(tmp_path.glob("a/*/report.html"))
