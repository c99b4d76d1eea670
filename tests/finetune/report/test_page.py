"""report.html: every text is escaped, nothing is loaded from elsewhere, and the numbers are those of the run."""

import html
from html.parser import HTMLParser

import pytest

from pypeft_fast.finetune.report.answers import Answered
from pypeft_fast.finetune.report.page import Part, figure_svg, page
from pypeft_fast.finetune.report.plot import Curve

HOSTILE = "</div><script>alert(1)</script><img src=http://x.example/a onerror='b'>{{ 7 * 7 }} & \u202eabc\x1b[31m"
METRICS = {
    "eval_loss_before": 4.0, "eval_loss_after": 3.0, "train_loss_last": 2.5, "steps": 3, "best_step": 2,
    "stopped_early": False, "seconds_per_step": 0.25, "peak_memory_bytes": 2 * 10**9, "train_examples": 1200,
    "eval_examples": 8, "dropped_examples": 0, "cut_examples": 2, "trainable_parameters": 10, "total_parameters": 200,
    "base_model": HOSTILE, "settings": {"method": "lora", "data": HOSTILE, "product": HOSTILE},
    "loss_history": {"train": [[1, 4.1], [2, 3.9], [3, 2.5]], "held_out": [[0, 4.0], [2, 3.0], [3, 3.2]]},
}  # fmt: skip


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    return reader


def made(parts, options=None):
    return page(HOSTILE, parts, options or {"model": HOSTILE, "rank": None}, [(HOSTILE, HOSTILE)])


@pytest.mark.parametrize("count", [1, 2])
def test_texts_are_texts(count):
    answers = [Answered(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]
    reader = read(made([Part(f"{HOSTILE}{i}", METRICS, answers) for i in range(count)]))
    assert not {"script", "img", "link", "iframe", "object"} & set(reader.tags)
    assert all(link.startswith("#") for link in reader.links)
    text = "".join(reader.text)
    assert "<script>alert(1)</script>" in text and "{{ 7 * 7 }}" in text and "49" not in text.split("Loss")[0]
    assert "\u202e" not in text and "\x1b" not in text and "\\u202eabc\\x1b[31m" in text


def test_the_numbers_of_a_run():
    text = html.unescape("".join(read(made([Part("a", METRICS)])).text))
    for says in (
        "4.000 → 3.000", "-25 %, nats per answer token of 8 examples", "the adapter of step 2 is kept", "0.25", "1,200",
        "5 % of the model", "2 cut", "2.00 GB",
    ):  # fmt: skip
        assert says in text
    assert "Answers before and after" not in text
    none = METRICS | {"eval_loss_before": None, "eval_loss_after": None, "best_step": None, "cut_examples": 0}
    text = "".join(read(made([Part("a", none, [Answered("q", "e", "b", "a")], of_training=True)])).text)
    for says in (
        "of the last step; nothing was held out",
        "the last adapter is kept",
        "none cut",
        "training data, since",
    ):
        assert says in text


def test_options_that_are_given():
    options = {"model": "m", "rank": None, "packing": False, "report": True, "report_to": ["a", "b"], "seed": 0}
    cells = read(made([Part("a", METRICS)], options)).text
    assert "a, b" in cells and "seed" in cells and "0" in cells and "packing" not in cells and "rank" not in cells


def test_the_plot_is_one_svg_element_with_text():
    svg = figure_svg([Curve("a <b>", [4.0, 3.0], 4.0, 3.0), Curve("c", [4.0, 3.0], 4.0, 3.0)])
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>") and "<?xml" not in svg
    assert "held out: a &lt;b&gt;</text>" in svg
    assert svg == figure_svg([Curve("a <b>", [4.0, 3.0], 4.0, 3.0), Curve("c", [4.0, 3.0], 4.0, 3.0)])
