"""LinfBall holds every image of the exact, clipped ball, and next to nothing else. Fractions are the judge."""

from dataclasses import FrozenInstanceError
from fractions import Fraction

import pytest
import torch
from oracles import DTYPES

from cerdeq import Box, LinfBall
from cerdeq.boxes import clipped_ball

torch.set_num_threads(1)

EPSILONS = [0, 1e-9, Fraction(1, 255), Fraction(2, 255), Fraction(8, 255), 8 / 255, 0.1, Fraction(3, 10), 0.5, 1, 2]


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_pixels_may_have_another_range(dtype):
    x = 2 * torch.rand(1, 300, dtype=dtype) - 1
    ball = LinfBall(x, Fraction(1, 7), lower=-1.0, upper=1.0)
    exact = exact_ends(x, Fraction(1, 7), Fraction(-1), Fraction(1))
    for (low, high), (exact_low, exact_high) in zip(ends(ball), exact, strict=True):
        assert low <= exact_low and exact_high <= high


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-40, 1e-45, 1e-60, 1e-310, 5e-324])
def test_a_ball_of_an_eps_that_underflows_contains_the_exact_one(dtype, eps):
    x = torch.tensor([[0.0, 1e-30, 0.5, 1.0]], dtype=dtype)
    for (low, high), (exact_low, exact_high) in zip(ends(LinfBall(x, eps)), exact_ends(x, eps), strict=True):
        assert low <= exact_low and exact_high <= high


def test_the_ball_is_clipped():
    ball = LinfBall(torch.tensor([[0.0, 0.05, 0.5, 1.0]], dtype=torch.float64), 0.1)
    torch.testing.assert_close(ball.lower, torch.tensor([[0.0, 0.0, 0.4, 0.9]], dtype=torch.float64))
    torch.testing.assert_close(ball.upper, torch.tensor([[0.1, 0.15, 0.6, 1.0]], dtype=torch.float64))


def test_an_eps_beyond_the_range_gives_the_whole_range():
    ball = LinfBall(torch.rand(2, 3), 1e6)
    assert (ball.lower <= 0).all() and (ball.upper >= 1).all() and (ball.radius >= 0.5).all()


def test_shape_and_dtype_are_the_images():
    x = torch.rand(2, 3, 4, 4)
    ball = LinfBall(x, Fraction(8, 255))
    assert ball.center.shape == ball.radius.shape == x.shape
    assert ball.center.dtype == ball.radius.dtype == torch.float32


@pytest.mark.parametrize("eps", [-1e-9, Fraction(-1, 255), float("nan"), float("inf"), float("-inf")])
def test_a_bad_eps_is_refused(eps):
    with pytest.raises(ValueError, match="eps must be finite and at least 0"):
        LinfBall(torch.rand(1, 4), eps)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.001, 1.001, 255.0])
def test_pixels_out_of_range_are_refused(value):
    x = torch.rand(1, 3, 4, 4)
    x[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match="pixels must lie in"):
        LinfBall(x, 8 / 255)


def test_normalised_images_are_refused():
    x = (torch.rand(1, 3, 8, 8) - 0.48) / 0.2
    with pytest.raises(ValueError, match="pixels must lie in"):
        LinfBall(x, 8 / 255)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images_are_refused(dtype):
    with pytest.raises(TypeError, match="floating-point"):
        LinfBall(torch.ones(1, 3, 4, 4).to(dtype), 8 / 255)


def test_training_ball_is_the_same_ball_without_slack():
    x = torch.rand(4, 3, dtype=torch.float64)
    ball, sound = clipped_ball(x, torch.tensor(0.3, dtype=torch.float64)), LinfBall(x, 0.3)
    torch.testing.assert_close(ball.center, sound.center, rtol=0, atol=1e-15)
    torch.testing.assert_close(ball.radius, sound.radius, rtol=0, atol=1e-14)
    assert (ball.radius <= sound.radius).all()
    assert ball.lower.min() >= -1e-15 and ball.upper.max() <= 1 + 1e-15


def test_training_ball_of_eps_zero_is_the_image():
    x = torch.rand(4, 3)
    ball = clipped_ball(x, torch.tensor(0.0))
    assert torch.equal(ball.center, x) and not ball.radius.any()


def test_a_box_is_its_ends_and_frozen():
    box = Box(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.25]))
    assert box.lower.tolist() == [0.5, -2.25] and box.upper.tolist() == [1.5, -1.75]
    with pytest.raises(FrozenInstanceError):
        box.center = torch.zeros(2)
