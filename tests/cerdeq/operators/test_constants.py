"""Constants of every type beside a value: bounds contain exact rational results; unusable constants are refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import DTYPES, Lambda, fractions
from pairs import every_pair
from torch import nn

from cerdeq import Box, bound, verify
from cerdeq.bounds import BOUNDS, UnsupportedOperator, trace

HALVES = torch.float16, torch.bfloat16
CONSTANTS = [
    torch.tensor([3, -7, 2**62 + 1]),
    torch.tensor([3, -7, 2**30 + 1], dtype=torch.int32),
    torch.tensor([3, -7, -128], dtype=torch.int8),
    torch.tensor([3, 7, 255], dtype=torch.uint8),
    *(torch.tensor([0.3, -0.7, 1.1], dtype=dtype) for dtype in (*HALVES, *DTYPES)),
    *(torch.tensor(value, dtype=torch.int8) for value in (3, -128)),
    *(torch.tensor(3, dtype=dtype) for dtype in (torch.uint8, torch.int64)),
    *(torch.tensor(0.3, dtype=dtype) for dtype in (*HALVES, *DTYPES)),
    *(3, -0.3, 2**53 + 1, 2**62 + 1),
]
NUMBERS = [constant for constant in CONSTANTS if not isinstance(constant, torch.Tensor) or constant.dim() == 0]
ARITHMETIC = {  # of a value and a constant; the same of one element and Fractions
    "sum": (lambda x, c: x + c, lambda x, c: x + c),
    "difference": (lambda x, c: x - c, lambda x, c: x - c),
    "difference, constant first": (lambda x, c: c - x, lambda x, c: c - x),
    "product": (lambda x, c: x * c, lambda x, c: x * c),
    "quotient": (lambda x, c: x / c, lambda x, c: x / c),
    "quotients": (lambda x, c: torch.div(x / c, c), lambda x, c: x / c / c),
}
OPTIONS = {
    "alpha": (lambda x, c: torch.add(x, torch.relu(x), alpha=c), lambda x, c: x + c * max(x, 0)),
    "alpha, subtracted": (lambda x, c: torch.sub(x, torch.relu(x), alpha=c), lambda x, c: x - c * max(x, 0)),
    "slope": (lambda x, c: F.leaky_relu(x, c), lambda x, c: x if x > 0 else c * x),
}
RADII = [[0.0, 0.0, 0.0], [0.3, 0.01, 0.1], [0.9, 2.5, 0.35]]  # points, boxes of one sign, boxes with 0 inside

METHODS = ["ibp", "crown-ibp"]


class WithConstant(nn.Module):
    """`function` of x and an attribute."""

    def __init__(self, function, constant):
        super().__init__()
        self.function, self.constant = function, constant

    def forward(self, x):
        return self.function(x, self.constant)


@pytest.mark.usefixtures("slow_float64")
@pytest.mark.parametrize(("computed", "method", "dtype"), every_pair(ARITHMETIC | OPTIONS, METHODS, DTYPES))
def test_a_constant_of_any_type_is_the_exact_number(computed, method, dtype):
    """Extremes lie at the ends of the box or at 0; bounds of points are close to them."""
    function, exactly = (ARITHMETIC | OPTIONS)[computed]
    radius = torch.tensor(RADII, dtype=dtype)
    box = Box(torch.tensor([[0.7, -1.9, 0.3]], dtype=dtype).expand_as(radius), radius)
    for constant in CONSTANTS if computed in ARITHMETIC else NUMBERS:
        ends = bound(WithConstant(function, constant).eval(), box, method)
        each = 3 * (fractions(constant.expand(3)) if isinstance(constant, torch.Tensor) else 3 * [Fraction(constant)])
        parts = [fractions(part.flatten()) for part in (box.center, box.radius, *ends)]
        for c, r, lower, upper, factor in zip(*parts, each, strict=True):
            values = [exactly(x, factor) for x in (c - r, c + r, Fraction(0)) if abs(x - c) <= r]
            assert lower <= min(values) and max(values) <= upper, constant
            size = max(map(abs, [*values, c, factor, factor * c]))
            assert r or upper - lower <= 200 * torch.finfo(dtype).eps * size, constant


INFINITE, NONE, SOME_ZEROS = torch.tensor([1, torch.inf]), torch.tensor([torch.nan]), torch.tensor([1.0, 0.0])
UNUSABLE = {
    "zero": lambda x: x / 0,
    "zero of numpy": lambda x: x / np.float64(0),
    "a quotient by zeros": lambda x: torch.div(x, SOME_ZEROS),
    "integers": lambda x: x / SOME_ZEROS.int(),
    "a computed zero": lambda x: x / SOME_ZEROS.square().view(1, 2),
    "infinity": lambda x: x / float("inf"),
    "a sum with infinity": lambda x: INFINITE + x,
    "a product with no number": lambda x: x * NONE,
    "alpha": lambda x: torch.add(x, x, alpha=float("nan")),
    "a slope": lambda x: F.leaky_relu(x, float("inf")),
    "padding": lambda x: F.pad(x, (1, 1), value=float("-inf")),
    "a weight": lambda x: F.linear(x, NONE.expand(2, 2)),
    "a part": lambda x: torch.cat([x, INFINITE.expand(1, 2)]),
    "a complex number": lambda x: x * 1j,
    "a complex tensor": lambda x: x * torch.tensor([1j, 1]),
    "a huge number": lambda x: x * 10**400,
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_constant_is_refused_with_its_node_and_line(name):
    model = Lambda(lambda module, x: UNUSABLE[name](x)).eval()
    message = r"at node '.*test_constants\.py.*(divides by zero|infinite, complex or not a number)"
    box = Box(torch.ones(1, 2), torch.ones(1, 2))
    for ask in (
        *(lambda m=method: bound(model, box, m) for method in BOUNDS),
        lambda: verify(model, box, torch.ones(1, 1, 2)),
    ):
        with pytest.raises(UnsupportedOperator, match=message):
            ask()


def test_a_zero_behind_an_argument_of_none_is_refused():
    model = WithConstant(lambda x, c: x / torch.clamp(c, None, 1.0), nn.Parameter(SOME_ZEROS)).eval()
    with pytest.raises(UnsupportedOperator, match="divides by zero"):
        trace(model)


@pytest.mark.parametrize("divisor", [1e-50, -1e-40])
def test_a_number_that_float32_rounds_to_zero_is_no_zero(divisor):
    model = Lambda(lambda module, x: x / divisor).double().eval()
    x = torch.tensor([[1.0, -2.0]]).double()
    lower, upper = bound(model, Box(x, torch.full_like(x, 0.5)), "ibp")
    ends = [sorted(Fraction(number) / Fraction(divisor) for number in pair) for pair in ((0.5, 1.5), (-2.5, -1.5))]
    for (low, high), least, most in zip(ends, lower[0].tolist(), upper[0].tolist(), strict=True):
        assert Fraction(least) <= low and high <= Fraction(most)
