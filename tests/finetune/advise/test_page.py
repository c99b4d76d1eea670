"""The report: well-formed, complete, and without anything that a browser would load from elsewhere."""

import html.parser
import json
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest

from pypeft_fast.finetune.advise.evidence import FINDINGS
from pypeft_fast.finetune.advise.lines import in_lines, peft_config, train_command
from pypeft_fast.finetune.advise.make import plan_rows
from pypeft_fast.finetune.advise.page import page
from pypeft_fast.finetune.advise.record import record
from pypeft_fast.finetune.advise.rule import RULES

VOID = {"meta", "img", "br"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ORANGE, GREY = (0xD9, 0x82, 0x2B), (0xB9, 0xC3, 0xCF)  # of the pictures; the page itself has neither


class Reader(html.parser.HTMLParser):
    """Reads the cells of the tables by their id, all text, and all addresses; checks that the tags match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.addresses, self.words = [], {}, [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [(tag, attrs[name]) for name in ("src", "href", "data", "action") if name in attrs]
        if tag == "table":
            self.rows = self.tables[attrs["id"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def text(advice):
    return page(advice)


def test_the_tables_have_the_numbers(advice, text):
    found = Reader(text)
    costs = {row[0]: row for row in found.tables["costs"][1:]}
    for name, row in plan_rows(advice.plan).items():
        assert costs[name][1] == f"{row.parameters:,}" and costs[name][5] == "yes" and costs[name][4] == "-"
        assert costs[name][6] == f"{100 * advice.shares[name].energy:.0f} %"
    modules = record(advice)["gradient_energy"]["modules"]
    assert [row[0] for row in found.tables["modules"][1:]] == list(modules)
    for name, _, parameters, energy, error, _, density in found.tables["modules"][1:]:
        assert parameters == f"{modules[name]['parameters']:,}"
        assert energy == f"{100 * modules[name]['energy']:.1f} %" and error == f"{100 * modules[name]['error']:.1f} %"
        assert density == f"{modules[name]['energy_per_parameter']:.2f}"
    losses = [row[1] for row in found.tables["trial"][1:]]
    assert losses == [f"{its.loss[0]:.3f}" for its in (advice.trial.base, *advice.trial.tried)]
    assert len(found.tables["literature"]) == 1 + len(FINDINGS)


def test_the_answer_and_its_doubts_are_there(advice, text):
    said = Reader(text).text
    for line in (
        *advice.choice.why,
        *advice.choice.doubts,
        *RULES,
        in_lines(train_command(advice)),
        peft_config(advice),
    ):
        assert " ".join(line.split()) in said
    assert f"{advice.trial.tokens:,} target tokens" in said


def test_a_command_in_lines_is_the_same_for_a_shell():
    command = "pypeft-fast finetune --data 'my data.jsonl' --target-modules '.*\\.\\d+\\.(a|b)' --rank 4"
    lines = in_lines(command)
    assert [line.split()[0] for line in lines.splitlines()] == ["pypeft-fast", "--data", "--target-modules", "--rank"]
    shell = subprocess.run(["sh", "-c", f"printf '%s\\n' {lines}"], capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines() == shlex.split(command)


def test_nothing_is_loaded_from_elsewhere(text):
    found = Reader(text)
    links = {address for tag, address in found.addresses if tag == "a"}
    assert links == {its.url for its in FINDINGS}
    images = [address for tag, address in found.addresses if tag != "a"]
    assert len(images) == 4 and all(address.startswith("data:image/svg+xml;base64,") for address in images)
    assert "<script" not in text and "@import" not in text


def test_names_are_escaped(advice):
    hostile = "<script>alert(1)</script>\x1b[2J"
    settings = replace(advice.wanted.settings, model=hostile, data=hostile)
    text = page(replace(advice, wanted=replace(advice.wanted, settings=settings)))
    assert "<script" not in text and "\x1b" not in text
    assert "<script>alert(1)</script>\\x1b[2J" in Reader(text).text


def test_without_a_trial(advice):
    assert "trial" not in Reader(page(replace(advice, trial=None))).tables


def test_the_record_is_json(advice):
    text = json.dumps(record(advice), allow_nan=False)
    its = json.loads(text)
    assert its["recommendation"]["targets"] == advice.choice.targets
    assert len(its["gradient_energy"]["layers"]) == 14 and set(its["gradient_energy"]["blocks"]) == {"0", "1"}
    assert len(its["trial"]["losses"]["attention"]["held_out"]) == 6
    assert its["trial"]["lead"] == advice.trial.lead()[0]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here: apt-get install chromium")
def test_a_browser_shows_the_pictures(text, tmp_path):
    import matplotlib.image

    (tmp_path / "report.html").write_text(text)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,3600"]
    shot = tmp_path / "shot.png"
    command = [CHROMIUM, *options, f"--screenshot={shot}", (tmp_path / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = (matplotlib.image.imread(shot)[..., :3] * 255).round().astype(int)
    assert pixels.shape == (3600, 1000, 3)
    for colour in (ORANGE, GREY):
        assert (abs(pixels - colour).max(axis=2) <= 2).sum() > 300
    command = [CHROMIUM, *options, "--dump-dom", (tmp_path / "report.html").as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert Reader(dom).tables["costs"] == Reader(text).tables["costs"]
