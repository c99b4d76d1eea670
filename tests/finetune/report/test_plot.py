"""The lines and marks of the loss plot."""

from matplotlib.colors import rgb_to_hsv

from pypeft_fast.finetune.report.plot import Curve, loss_figure


def drawn(curve):
    (axes,) = loss_figure([curve]).axes
    return axes, {line.get_label(): line for line in axes.lines}


def test_the_picture():
    axes, lines = drawn(Curve("mine", [3.0, 2.5, 2.0], 4.0, 3.5))
    assert axes.get_title() == "Loss of mine" and axes.get_xlabel() == "step"
    assert lines["training"].get_color() != lines["held out"].get_color()
    assert lines["held out"].get_linestyle() == "None" and list(lines["held out"].get_xdata()) == [0, 3]
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    axes, lines = drawn(Curve("mine", [3.0, 2.5, 2.0, 1.0], 4.0, 3.5, [(0, 4.0), (2, 3.0), (4, 3.5)], 2))
    assert lines["held out"].get_linestyle() == "-" and list(lines["kept"].get_xdata()) == [2]


def test_many_runs_have_colours_of_their_own():
    for count in (2, 5, 6, 40):
        (axes,) = (figure := loss_figure([Curve(f"run {i}", [3.0, 2.0], 4.0, 3.5) for i in range(count)])).axes
        assert len({line.get_color() for line in axes.lines}) == 2 * count
        hues = {line.get_label().split(": ")[1]: [] for line in axes.lines}
        for line in axes.lines:
            hues[line.get_label().split(": ")[1]].append(rgb_to_hsv(line.get_color())[0])
        assert all(min(abs(a - b), 1 - abs(a - b)) < 0.03 for a, b in hues.values())
        assert {line.get_label() for line in axes.lines} >= {f"training: run {count - 1}", "held out: run 0"}
        assert axes.get_title() == ("Loss of 6 adapters" if count == 6 else axes.get_title())
        figure.canvas.draw()
