"""One input that reaches n outputs: sums of n coefficients are charged the rounding of n terms, by every operator.

All against exact rational arithmetic. `lost` coefficients are made so that a sum in few parts loses most of them.
"""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from oracles import Lambda
from pairs import every_pair
from torch import nn

from cerdeq import Box, bound, verify
from cerdeq.bounds import UnsupportedOperator

pytestmark = pytest.mark.usefixtures("short_searches", "slow_float64")


def side(n):
    """Return a whole number whose square is about n."""
    return max(1, round(n**0.5))


def pool_of_windows(n, pool):
    k = side(n)
    return lambda module, x: pool(F.pad(x, (k - 1, k - 1, k - 1, k - 1)), k, 1).flatten(1)


def ones_like_layer(layer):
    nn.init.ones_(layer.weight)
    return nn.Sequential(layer, nn.Flatten())


def shared(n):
    """Return x + h (x + x + ...), h (x + ...) one step after the other: as many terms as outputs elsewhere."""

    def sums(module, x):
        total = x
        for _ in range(n):
            total = torch.add(total, x, alpha=2.0**-24)
        return total

    return Lambda(sums)


COPIES = {
    "index by a list": lambda n: Lambda(lambda module, x: x[:, [0] * min(n, 20_000)]),
    "index by a tuple": lambda n: Lambda(lambda module, x: x[:, (0,) * min(n, 20_000)]),
    "index by a list beside slices": lambda n: Lambda(lambda module, x: x[:, :, [0] * min(n, 20_000)].flatten(1)),
    "index by a range": lambda n: Lambda(lambda module, x: x[:, range(-1, 1)]),
    "index by a tensor": lambda n: Lambda(lambda module, x: x[:, torch.zeros(n, dtype=torch.long)]),
    "index_select": lambda n: Lambda(lambda module, x: torch.index_select(x, 1, torch.zeros(n, dtype=torch.long))),
    "concatenation": lambda n: Lambda(lambda module, x: torch.cat([torch.cat([x] * side(n), 1)] * side(n), 1)),
    "sum with a constant": lambda n: Lambda(lambda module, x: x + module.c, c=torch.zeros(n)),
    "difference of a constant": lambda n: Lambda(lambda module, x: module.c - x, c=torch.zeros(n)),
    "product with a constant": lambda n: Lambda(lambda module, x: module.c * x, c=torch.ones(n)),
    "quotient by a constant": lambda n: Lambda(lambda module, x: x / module.c, c=torch.ones(n)),
    "sum with a wider value": lambda n: Lambda(lambda module, x: x + 0 * (x @ module.c), c=torch.ones(1, n)),
    "linear": lambda n: ones_like_layer(nn.Linear(1, n, bias=False)),
    "matmul": lambda n: Lambda(lambda module, x: x @ module.c, c=torch.ones(1, n)),
    "convolution": lambda n: ones_like_layer(nn.Conv2d(1, max(1, n // 1024), 32, padding=31, bias=False)),
    "transposed convolution": lambda n: ones_like_layer(nn.ConvTranspose2d(1, 1, side(n), bias=False)),
    "average pooling": lambda n: Lambda(pool_of_windows(min(n, 2500), F.avg_pool2d)),
    "max pooling": lambda n: Lambda(pool_of_windows(min(n, 400), F.max_pool2d)),
    "adaptive pooling": lambda n: Lambda(lambda module, x: F.adaptive_avg_pool2d(x, side(n)).flatten(1)),
    "shared value": lambda n: shared(min(n, 300)),
}
IMAGES = {"index by a list beside slices", "convolution", "transposed convolution"}
IMAGES |= {"average pooling", "max pooling", "adaptive pooling"}


def lost(n, seed):
    """Return n coefficients: many of half a digit of the largest, which is somewhere among them; numbers of float32."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.finfo(torch.float32).eps / 2
    values = torch.full((n,), half, dtype=torch.float64)
    if seed % 2:
        values = half * (1 + torch.rand(n, generator=generator).double())
    values[torch.randint(n, (1,), generator=generator) if seed else 0] = 1
    return values.float()


def exact_sum(row):
    """Return the sum of floats, exactly: of multiples of the smallest subnormal number."""
    return Fraction(sum(int(m * 2**53) << (e + 1074) for m, e in map(math.frexp, row.tolist())), 2 ** (53 + 1074))


@pytest.mark.parametrize(("name", "n", "method"), every_pair(COPIES, [1000, 100_000], ["ibp", "crown", "alpha-crown"]))
def test_sums_of_coefficients_of_one_input_are_charged_all_of_their_terms(name, n, method):
    """In float32: float64 also charges the sum over all outputs, of as many terms."""
    shape = (1, 1, 1, 1) if name in IMAGES else (1, 1)
    model = COPIES[name](n).eval()
    x = torch.ones(shape)
    with torch.no_grad():
        outputs = model.double()(x.double())[0]
    model.float()
    value = outputs.unique().item()  # of all outputs alike
    exact_value = 1 / Fraction(round(1 / value)) if "average" in name else Fraction(value)
    for seed in range(2):
        row = lost(len(outputs), seed)
        spec = torch.stack([row, -row])[None]
        exact = exact_value * exact_sum(row)
        lower, upper = bound(model, Box(x, torch.zeros_like(x)), method, spec)
        for sign, low, high in zip((1, -1), lower[0].tolist(), upper[0].tolist(), strict=True):
            assert Fraction(low) <= sign * exact <= Fraction(high), (seed, sign)


def test_what_is_negative_at_its_only_point_is_not_certified():
    """A float64 network whose float32 bound would lose what makes the sum negative."""
    n, half = 10_000, 2.0**-24
    spec = torch.full((n,), -half).double()
    spec[0], spec[-1] = -1.0, torch.tensor(1 + n * half / 2).double()
    x = torch.ones(1, 1).double()
    assert spec.sum() < -2e-4
    result = verify(Lambda(lambda module, x: x[:, [0] * n]).eval(), Box(x, 0 * x), spec[None, None], branches=10)
    assert result.status != ["certified"] and result.lower.item() <= exact_sum(spec)


@pytest.mark.parametrize(
    "forward",
    [
        lambda module, x: x.expand(-1, 5),
        lambda module, x: x.repeat(1, 5),
        lambda module, x: torch.stack([x, x], 1),
        lambda module, x: torch.gather(x, 1, torch.zeros(1, 5, dtype=torch.long)),
        lambda module, x: F.pad(x.unflatten(1, (1, 1)), (2, 2), "replicate").flatten(1),
    ],
)
def test_other_ways_to_copy_a_value_have_no_rule_yet(forward):
    """Each needs a case in COPIES before it gets a rule."""
    with pytest.raises((UnsupportedOperator, ValueError)):
        bound(Lambda(forward).eval(), Box(torch.ones(1, 1), torch.zeros(1, 1)), "crown")
