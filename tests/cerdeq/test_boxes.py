"""LinfBall contains every image of the exact, clipped ball and little more, in exact arithmetic."""

from fractions import Fraction

import pytest
import torch
from oracles import DTYPES

from cerdeq import LinfBall
from cerdeq.boxes import clipped_ball

EPSILONS = [0, 5e-324, 1e-45, 1e-9, Fraction(2, 255), 8 / 255, Fraction(3, 10), 2]


def ends(box):
    """The exact ends of every element of a box of floats."""
    pairs = zip(box.center.flatten().tolist(), box.radius.flatten().tolist(), strict=True)
    return [(Fraction(c) - Fraction(r), Fraction(c) + Fraction(r)) for c, r in pairs]


def exact_ends(x, eps, lower=Fraction(0), upper=Fraction(1)):
    eps = Fraction(eps)
    return [(max(Fraction(v) - eps, lower), min(Fraction(v) + eps, upper)) for v in x.flatten().tolist()]


def pixels(dtype):
    """Every 8-bit pixel, random ones, the ends, and values that floats handle badly."""
    eight_bit = torch.arange(256).to(dtype) / 255
    hard = torch.tensor([0, 1, 1e-30, 1e-7, 1 - 2**-11, 2**-24, 1 / 3], dtype=torch.float64).to(dtype)
    return torch.cat([eight_bit, torch.rand(256, dtype=dtype), hard]).view(1, -1)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", EPSILONS)
def test_a_ball_contains_the_exact_one_and_little_more(dtype, eps):
    x = pixels(dtype)
    unit = Fraction(torch.finfo(dtype).eps)
    for pixel, (low, high), (exact_low, exact_high) in zip(
        x.flatten().tolist(), ends(LinfBall(x, eps)), exact_ends(x, eps), strict=True
    ):
        assert low <= exact_low and exact_high <= high, f"pixel {pixel}"
        allowed = 16 * unit * (Fraction(pixel) + Fraction(eps)) + 2 * Fraction(torch.finfo(dtype).tiny)
        assert exact_low - low <= allowed and high - exact_high <= allowed, f"pixel {pixel}"


REFUSED = {
    "eps below 0": (torch.rand(1, 4), -1e-9, ValueError, "eps must be finite and at least 0"),
    "eps not a number": (torch.rand(1, 4), float("nan"), ValueError, "eps must be finite and at least 0"),
    "eps infinite": (torch.rand(1, 4), float("inf"), ValueError, "eps must be finite and at least 0"),
    "a pixel not a number": (torch.tensor([[0.5, float("nan")]]), 0.1, ValueError, "pixels must lie in"),
    "a pixel above 1": (torch.tensor([[0.5, 1.001]]), 0.1, ValueError, "pixels must lie in"),
    "a pixel below 0": (torch.tensor([[0.5, -0.001]]), 0.1, ValueError, "pixels must lie in"),
    "integers": (torch.ones(1, 4, dtype=torch.uint8), 0.1, TypeError, "floating-point"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_ball_is_refused(name):
    x, eps, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        LinfBall(x, eps)


def test_training_ball_is_the_same_ball_without_slack():
    x = torch.rand(4, 3, dtype=torch.float64)
    ball, sound = clipped_ball(x, torch.tensor(0.3, dtype=torch.float64)), LinfBall(x, 0.3)
    torch.testing.assert_close(ball.center, sound.center, rtol=0, atol=1e-15)
    torch.testing.assert_close(ball.radius, sound.radius, rtol=0, atol=1e-14)
    assert (ball.radius <= sound.radius).all()
    assert ball.lower.min() >= -1e-15 and ball.upper.max() <= 1 + 1e-15
