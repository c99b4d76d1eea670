"""The standard error of a ratio of sums."""

import math
import statistics

import pytest

from pypeft_fast.finetune.advise.spread import ratio


def test_by_hand():
    value, error = ratio([2.0, 6.0], [1, 2])
    assert value == pytest.approx(8 / 3)
    assert error == pytest.approx(4 / 9)  # residuals -2/3 and 2/3: sqrt(2 * 8/9) / 3


def test_of_equal_wholes_it_is_the_error_of_a_mean():
    parts = [1.0, 2.0, 4.0, 4.5]
    value, error = ratio(parts, [1] * 4)
    assert value == statistics.mean(parts)
    assert error == pytest.approx(statistics.stdev(parts) / math.sqrt(4))


def test_one_pair_has_no_error_and_equal_ratios_have_none_left():
    assert ratio([3.0], [2]) == (1.5, None)
    assert ratio([3.0, 6.0, 1.5], [2, 4, 1]) == (1.5, 0.0)
