"""Linear bounds through equilibria: the adjoint, multipliers and their rounding."""

import pytest
import torch
from equilibria import solutions
from graphs import contractive
from oracles import DTYPES, Lambda, assert_contains, points_of, random_box
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import BOUNDS, Backward, Interval
from cerdeq.equilibrium import adjoint
from cerdeq.equilibrium.certificate import preactivation_box, verified_box
from cerdeq.operators.relu import relaxation_of

pytestmark = pytest.mark.usefixtures("short_searches")


def equilibrium_model(kernel, rate, seed=0):
    torch.manual_seed(seed)
    layer = contractive(3, rate, kernel)
    if kernel is None:
        return nn.Sequential(nn.Linear(4, 3), layer, nn.Linear(3, 2)).double().eval(), (4,)
    inject = nn.Conv2d(1, 3, 2, padding=1, stride=2)
    return nn.Sequential(inject, layer, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double().eval(), (1, 3, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [None, 3])
def test_any_multiplier_is_sound(kernel, dtype):
    torch.manual_seed(3)
    layer, shape = contractive(3, 0.8, kernel), (3,) if kernel is None else (3, 2, 2)
    weight = layer.weight.detach().to(dtype)
    h = random_box(2, *shape, dtype=dtype)
    proved = verified_box(weight, h)
    radius = (proved.radius * (1 + 1e-6) + 1e-6 * proved.center.abs()).to(dtype)
    z = Interval(proved.center.to(dtype), radius)
    wide = Box(h.center.double(), h.radius.double())
    points = points_of(wide, 30)
    solved = torch.stack([solutions(weight.double(), point) for point in points])
    preactivation = preactivation_box(weight, h, z.box)
    coefficients = torch.randn(2, 4, *shape, dtype=dtype)
    for size in (0, 1e-3, 1.0, 1e3):
        ctx = Backward(sound=True, step="here", output=z, slopes={"here": torch.rand(2, 4, *shape, dtype=dtype)})
        multiplier = coefficients + size * torch.randn_like(coefficients)
        pulled = adjoint._bound(
            ctx, coefficients, multiplier, relaxation_of(ctx, preactivation), weight, z, preactivation
        )
        left = (coefficients.double() * solved.unsqueeze(2)).flatten(3).sum(3)
        right = (pulled.coefficients[0].double() * points.unsqueeze(2)).flatten(3).sum(3) + pulled.constant.double()
        assert right.isfinite().all()
        assert (right <= left + 1e-11 * (1 + size)).all()


@pytest.mark.parametrize("method", BOUNDS)
def test_an_equilibrium_may_stand_among_branches_and_be_used_twice(method):
    """One FixedPoint at two places, its input read elsewhere too."""
    torch.manual_seed(8)
    model = Lambda(lambda m, x: m.last(torch.cat([m.point(m.point(m.first(x)) - m.first(x)), m.first(x), x], 1)))
    model.first, model.point, model.last = nn.Linear(3, 3), contractive(3, 0.6), nn.Linear(9, 2)
    model, box = model.double().eval(), random_box(2, 3)
    values = []
    with torch.no_grad():
        for x in points_of(box, 40):
            h, weight = model.first(x), model.point.weight
            z = solutions(weight, solutions(weight, h) - h)
            values.append(model.last(torch.cat([z, h, x], 1)))
    assert_contains(*bound(model, box, method), torch.stack(values))


def test_a_box_of_an_equilibrium_that_is_not_proved_gives_no_bound():
    """A radius of infinity, which the forward pass gives where its check fails."""
    model, shape = equilibrium_model(None, 0.6)
    box = Box(torch.zeros(1, *shape, dtype=torch.float64), torch.full((1, *shape), 1e308, dtype=torch.float64))
    for method in BOUNDS:
        lower, upper = bound(model, box, method)
        assert not lower.isfinite().any() or (lower < -1e300).all()
        assert not upper.isfinite().any() or (upper > 1e300).all()
