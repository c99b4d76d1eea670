"""Names in scripts that matplotlib's own font lacks: a font that has them, or escapes; never a warning."""

import warnings

import matplotlib
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from pypeft_fast.finetune.advise import figures
from pypeft_fast.finetune.advise.shares import Share
from pypeft_fast.finetune.report import fonts
from pypeft_fast.finetune.report.page import figure_svg
from pypeft_fast.finetune.report.plot import Curve, loss_figure, plot_losses

HAN, NAME = "客服", "Test Han"


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch):
    """Only matplotlib's own fonts, and an error for each warning."""
    own = matplotlib.get_data_path()
    monkeypatch.setattr(fontManager, "ttflist", [its for its in fontManager.ttflist if its.fname.startswith(own)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def han(no_other_fonts, tmp_path):
    """A font of two characters, each a square."""
    pen = TTGlyphPen(None)
    for move, corner in (
        (pen.moveTo, (0, 0)),
        (pen.lineTo, (0, 800)),
        (pen.lineTo, (800, 800)),
        (pen.lineTo, (800, 0)),
    ):
        move(corner)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", "a", "b"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): name for c, name in zip(HAN, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": NAME, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    builder.save(tmp_path / "han.ttf")
    fontManager.addfont(tmp_path / "han.ttf")


def texts(figure):
    return {its.get_text(): its.get_fontfamily() for its in figure.findobj(matplotlib.text.Text) if its.get_text()}


def test_a_font_that_has_the_characters_is_used(han):
    figure = loss_figure([Curve(HAN, [2.0, 1.0], 2.0, 1.0), Curve("desk", [2.0, 1.0])])
    figure.canvas.draw()
    assert NAME in texts(figure)[f"training: {HAN}"] and NAME in texts(figure)[f"Loss of {HAN} and desk"]
    assert fonts.drawable(f"{HAN}\N{ROBOT FACE}") == f"{HAN}\\U0001f916"


def test_without_a_font_the_label_has_escapes(tmp_path):
    figure = loss_figure([Curve(HAN, [2.0, 1.0], 2.0, 1.0), Curve("naïve $x", [2.0, 1.0])])
    figure.canvas.draw()
    assert {"training: \\u5ba2\\u670d", "training: naïve \\$x"} <= texts(figure).keys()
    plot_losses([Curve("\N{ROBOT FACE}", [2.0, 1.0])], tmp_path / "loss.png")


def test_a_page_has_the_name_itself_which_the_browser_draws():
    assert f">training: {HAN}<" in figure_svg([Curve(HAN, [2.0, 1.0], 2.0, 1.0), Curve("desk", [2.0, 1.0])])


@pytest.mark.parametrize("with_font", [False, True])
def test_module_names_in_the_figures_of_advise(with_font, request):
    if with_font:
        request.getfixturevalue("han")
    share = Share(layers=1, parameters=8, energy=0.5, cost=0.5, error=0.1)
    figure = figures.energy_figure({"q_proj": share, "k_proj": share, HAN: share})
    figures.as_uri(figure)
    found = texts(figure)
    assert NAME in found[HAN] if with_font else "\\u5ba2\\u670d" in found
