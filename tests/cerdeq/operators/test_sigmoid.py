"""Sigmoid and tanh: boxes and lines contain the exact curve, computed with sixty digits."""

import functools
import math
from decimal import Decimal, localcontext
from itertools import product

import pytest
import torch
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import Context, Interval
from cerdeq.operators.backward import Backward
from cerdeq.operators.sigmoid import SIGMOID, TANH

CURVES = {"sigmoid": SIGMOID, "tanh": TANH}
every_curve = pytest.mark.parametrize("name", CURVES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@functools.cache  # tests of other slopes ask at the same points
def exact(name, p):
    """The curve at a Decimal; within `localcontext`."""
    if name == "sigmoid":
        power = (-abs(p)).exp()
        return (1 if p >= 0 else power) / (1 + power)
    if abs(p) < Decimal("1e-20"):
        return p - p**3 / 3  # the next term is below the sixtieth digit
    power = (-2 * abs(p)).exp()
    return (1 - power) / (1 + power) * (1 if p >= 0 else -1)


def boxes(dtype):
    """Centres and radii [B, 1]: mixed, one-sided, in the tails, thin, of radius 0, subnormal, huge, overflowed."""
    tiny, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    centers = [0.0, -0.3, 0.3, 1.0, -2.0, 5.0, -9.0, 17.0, 36.7, -36.8, 88.0, -104.0, 700.0, -740.0, tiny, -tiny / 8]
    radii = [0.0, tiny / 4, 1e-30, 1e-7, 1e-3, 0.1, 1.0, 3.0, 20.0, 1e3]
    pairs = list(product(centers, radii))
    pairs += [(0.0, 1e30), (1e30, 1e30), (-1e30, 10.0), (largest, largest), (-largest, 1.0), (0.0, math.inf)]
    pairs += torch.stack([4 * torch.randn(60), torch.randn(60).exp()], 1).tolist()
    center, radius = torch.tensor(pairs, dtype=torch.float64).to(dtype).T.unsqueeze(2)
    return center, radius


def points(center, radius, slopes):
    """Decimals in a box: its ends, some between them, and where the curve less a slope is nearly extreme."""
    middle, half = Decimal(center), Decimal(radius)
    candidates = [middle + half * Decimal(share) / 16 for share in range(-16, 17)]
    steep = [4 * slope for slope in slopes if 0 < slope < 0.25] + [slope for slope in slopes if 0 < slope < 1]
    extreme = [Decimal(2 * math.atanh(math.sqrt(1 - s)) if s < 1 else 0) for s in steep]
    candidates += [sign * p / scale for p in extreme for sign in (-1, 1) for scale in (1, 2)]
    return [p for p in [*candidates, Decimal(0)] if abs(p - middle) <= half]


@every_curve
@every_dtype
@pytest.mark.parametrize("share", [None, 0.0, 0.4, 1.0])
def test_boxes_and_lines_contain_the_exact_curve(name, dtype, share):
    center, radius = boxes(dtype)
    x, coefficients = (
        Interval(center, radius),
        torch.tensor([1.0, -1.0], dtype=dtype).expand(len(center), 2).unsqueeze(2),
    )
    slopes = {} if share is None else {f"p/{end}": torch.full_like(coefficients, share) for end in ("lower", "upper")}
    box = CURVES[name].interval(Context(sound=True), x)
    pulled = CURVES[name].backward(Backward(sound=True, step="p", slopes=slopes), coefficients, x)
    assert pulled.constant.isfinite().all() and pulled.constant.dtype == torch.float64
    (slope,) = pulled.coefficients
    with localcontext() as context:
        context.prec = 60
        for number, (c, r) in enumerate(zip(center.flatten().tolist(), radius.flatten().tolist(), strict=True)):
            low, high = (Decimal(box.center[number].item()) + s * Decimal(box.radius[number].item()) for s in (-1, 1))
            own = [abs(s) for s in slope[number].flatten().tolist()]
            for p in points(c, r, own) if math.isfinite(r) else map(Decimal, (-1000, 0, 1000)):
                value = exact(name, p)
                assert low <= value <= high, (c, r, p)
                for row, sign in enumerate((1, -1)):
                    line = Decimal(slope[number, row].item()) * p + Decimal(pulled.constant[number, row].item())
                    assert line <= sign * value, (c, r, p, sign)


@every_curve
def test_the_libraries_errors_are_far_below_what_is_counted(name):
    p = torch.cat([torch.randn(300, dtype=torch.float64) * scale for scale in (1e-300, 1e-9, 1e-2, 1, 9, 99, 700)])
    with localcontext() as context:
        context.prec = 60
        errors = []
        for point, value in zip(p.tolist(), CURVES[name].function(p).tolist(), strict=True):
            right = exact(name, Decimal(point))
            allowed = abs(right) * Decimal(2) ** -52 + Decimal("2.3e-308")
            errors.append(abs(Decimal(value) - right) / allowed)
    assert max(errors) < 8


def test_outputs_of_saturated_units_are_never_reached():
    """In floats sigmoid(40) is 1: the exact value is below, so that the box and the line must not end at more."""
    x = Interval(torch.tensor([[40.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))
    box = SIGMOID.interval(Context(sound=True), x).box
    assert 0 < 1 - box.lower.item() < 1e-13 and box.upper.item() >= 1


def network(activation, inputs=2):
    model = nn.Sequential(nn.Linear(inputs, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 2))
    return model.double().eval()


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_each_bound_is_at_least_the_one_before_and_below_samples(activation):
    model, box = network(activation, 4), Box(torch.randn(3, 4).double(), torch.full((3, 4), 0.4).double())
    samples = box.center + box.radius * (2 * torch.rand(4000, 3, 4, dtype=torch.float64) - 1)
    smallest = model(samples).amin(0)
    before = torch.full_like(smallest, -torch.inf)
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown"):
        lower, _ = bound(model, box, method)
        assert (lower >= before).all() and (lower <= smallest).all()
        before = lower
    assert (smallest - before).max() < 0.7 * (smallest - bound(model, box, "ibp")[0]).max()
