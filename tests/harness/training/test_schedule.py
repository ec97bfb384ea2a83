"""The eps ramp and the learning rate, against references computed another way."""

import pytest
import sympy

from harness.training.schedule import EPS_FLOOR, Ramp, learning_rate


def test_the_ramp_is_a_quartic_then_a_line_of_the_same_slope():
    """Solve for the curve from its defining properties instead of its formula."""
    steps, start, length, eps = 100, 2, 80, sympy.Rational(8, 255)
    s0, s1 = (start - 1) * steps, (start - 1 + length) * steps
    middle = s0 + (s1 - s0) // 4
    s, a, slope, offset = sympy.symbols("s a slope offset")
    quartic, line = a * (s - s0) ** 4, slope * s + offset
    solution = sympy.solve(
        [
            (quartic - line).subs(s, middle),
            (quartic.diff(s) - line.diff(s)).subs(s, middle),
            line.subs(s, s1) - eps,
        ],
        [a, slope, offset],
    )
    ramp = Ramp(8 / 255, start, length, steps)
    for step in range(0, 170 * steps, 37):
        piece = 0 if step < s0 else quartic if step < middle else line if step < s1 else eps
        expected = float(sympy.sympify(piece).subs(solution).subs(s, step))
        assert ramp(step) == pytest.approx(max(expected, EPS_FLOOR), rel=1e-9)


def test_a_linear_ramp_is_a_straight_line():
    ramp = Ramp(0.3, 2, 5, 10, "linear")
    assert [ramp(step) for step in (0, 10, 35, 60, 70)] == pytest.approx([EPS_FLOOR, EPS_FLOOR, 0.15, 0.3, 0.3])
    assert [ramp(step + 1) - ramp(step) for step in range(11, 60)] == pytest.approx([0.3 / 50] * 49)


def test_the_ramp_never_falls_and_ends_at_exactly_eps():
    ramp = Ramp(8 / 255, 1, 5, 10)
    values = [ramp(step) for step in range(80)]
    assert values == sorted(values)
    assert values[0] == EPS_FLOOR
    assert values[50:] == [8 / 255] * 30
    assert values[49] < 8 / 255


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
