"""Hard sigmoid and hard swish: boxes and lines contain the exact curve, in exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracles import DTYPES
from test_sigmoid import boxes

from cerdeq.bounds import Context, Interval
from cerdeq.operators.backward import Backward
from cerdeq.operators.hard_curves import HARDSIGMOID, HARDSWISH

CURVES = {"hardsigmoid": (HARDSIGMOID, F.hardsigmoid), "hardswish": (HARDSWISH, F.hardswish)}
every_curve = pytest.mark.parametrize("name", CURVES)


def exact(name, p):
    share = min(max(p + 3, Fraction(0)), Fraction(6)) / 6
    return share if name == "hardsigmoid" else p * share


def points(center, radius, slopes):
    """Return points of a box: ends, knots, and where hard swish less a slope is extreme."""
    low, high = Fraction(center) - Fraction(radius), Fraction(center) + Fraction(radius)
    some = [low, high, Fraction(-3), Fraction(3), *(3 * Fraction(slope) - Fraction(3, 2) for slope in (0, *slopes))]
    return [p for p in some if low <= p <= high]


@every_curve
@pytest.mark.parametrize("dtype", DTYPES)
def test_boxes_and_lines_contain_the_exact_curve(name, dtype):
    curve, (center, radius) = CURVES[name][0], boxes(dtype)
    x = Interval(center, radius)
    coefficients = torch.tensor([1.0, -1.0], dtype=dtype).expand(len(center), 2).unsqueeze(2)
    box = curve.interval(Context(sound=True), x)
    pulled = curve.backward(Backward(sound=True, step="p"), coefficients, x)
    (slope,) = pulled.coefficients
    for number, (c, r) in enumerate(zip(center.flatten().tolist(), radius.flatten().tolist(), strict=True)):
        if not math.isfinite(r) or not pulled.constant[number].isfinite().all():  # c + r has overflowed
            assert not math.isfinite(r) or abs(c) + r > 1e38
            continue
        own = slope[number].flatten().tolist()
        for p in points(c, r, (own[0], -own[1])):
            value = exact(name, p)
            if box.radius[number].isfinite():
                assert abs(value - Fraction(box.center[number].item())) <= Fraction(box.radius[number].item()), (c, r)
            for row, sign in enumerate((1, -1)):
                line = Fraction(own[row]) * p + Fraction(pulled.constant[number, row].item())
                assert line <= sign * value, (c, r, float(p), sign)


@every_curve
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_with_lines_count_their_rounding(name, dtype):
    """Of coefficients of many digits, at both ends, where lines are thin."""
    curve = CURVES[name][0]
    center, radius = 3 * torch.randn(300, 1, dtype=dtype), 1e-12 * torch.rand(300, 1, dtype=dtype)
    a = torch.randn(300, 5, 1, dtype=dtype)
    pulled = curve.backward(Backward(sound=True, step="p"), a, Interval(center, radius))
    for number, c in enumerate(center.flatten().tolist()):
        for row in range(5):
            value = Fraction(a[number, row].item()) * exact(name, Fraction(c))
            line = Fraction(pulled.coefficients[0][number, row].item()) * Fraction(c)
            assert line + Fraction(pulled.constant[number, row].item()) <= value


@every_curve
def test_the_curve_is_torch_s_and_lines_touch_where_it_is_straight(name):
    curve, torch_function = CURVES[name]
    p = torch.linspace(-8, 8, 401).double()
    torch.testing.assert_close(curve._at(p)[0], torch_function(p), rtol=1e-13, atol=1e-13)
    x = Interval(torch.tensor([[5.0, -6.0]]).double(), torch.tensor([[1.5, 2.0]]).double())
    rows = torch.eye(2).double().mul(-1).unsqueeze(0)
    pulled = curve.backward(Backward(sound=True, step="p"), rows, x)
    top = torch_function(x.center)
    at_center = (pulled.coefficients[0] * x.center.unsqueeze(1)).sum(2) + pulled.constant
    torch.testing.assert_close(at_center, -top, rtol=1e-12, atol=1e-12)
