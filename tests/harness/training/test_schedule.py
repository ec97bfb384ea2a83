"""The eps ramp and the learning rate, against references computed another way."""

import pytest

from harness.training.schedule import EPS_FLOOR, Ramp, learning_rate


def test_the_ramp_is_a_quartic_then_a_line_of_the_same_slope():
    ramp, begin, middle, end = Ramp(8 / 255, 2, 80, 100), 100, 2100, 8100
    quartic = [ramp(step) / (step - begin) ** 4 for step in range(begin + 900, middle, 37)]
    slopes = [ramp(step + 1) - ramp(step) for step in range(middle, end, 37)]
    for values in (quartic, slopes):
        assert [value / values[0] for value in values] == pytest.approx([1.0] * len(values))
    assert slopes[0] == pytest.approx(4 * ramp(middle) / (middle - begin))
    assert [ramp(0), ramp(begin), ramp(end), ramp(2 * end)] == [EPS_FLOOR, EPS_FLOOR, 8 / 255, 8 / 255]


def test_a_linear_ramp_is_a_straight_line():
    ramp = Ramp(0.3, 2, 5, 10, "linear")
    assert [ramp(step) for step in (0, 10, 35, 60, 70)] == pytest.approx([EPS_FLOOR, EPS_FLOOR, 0.15, 0.3, 0.3])
    assert [ramp(step + 1) - ramp(step) for step in range(11, 60)] == pytest.approx([0.3 / 50] * 49)


@pytest.mark.parametrize(("length", "steps"), [(0, 10), (1, 1), (1, 2), (1, 3), (2, 1)])
def test_short_ramps_stay_in_range(length: int, steps: int):
    ramp = Ramp(0.1, 1, length, steps)
    values = [ramp(step) for step in range(length * steps + 3)]
    assert values == sorted(values)
    assert all(EPS_FLOOR <= value <= 0.1 for value in values)
    assert values[length * steps] == 0.1


def test_the_learning_rate_falls_after_each_decay_epoch():
    rates = {epoch: learning_rate(5e-4, (120, 140), 0.2, epoch) for epoch in (1, 120, 121, 140, 141, 160)}
    assert rates == pytest.approx({1: 5e-4, 120: 5e-4, 121: 1e-4, 140: 1e-4, 141: 2e-5, 160: 2e-5})


def test_without_a_ramp_eps_jumps_where_it_would_begin():
    ramp = Ramp(8 / 255, 2, 0, 10)
    assert [ramp(0), ramp(9), ramp(10)] == [EPS_FLOOR, EPS_FLOOR, 8 / 255]
