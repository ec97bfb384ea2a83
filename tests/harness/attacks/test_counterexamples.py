"""Stored counterexamples lie inside the exact ball, near the original points, and are the same in NumPy."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.attacks.counterexamples import LEVELS, corners, decode, encode, move_inside, pack, point_of, unpack

seeded = settings(derandomize=True, max_examples=60)
radii = st.sampled_from([Fraction(8, 255), Fraction(1, 255), Fraction(1), Fraction(3, 10), Fraction(1, 10**6)]) | (
    st.fractions(min_value=Fraction(1, 10**9), max_value=1, max_denominator=10**9)
)
PIXELS = torch.arange(256, dtype=torch.uint8)


def levels_of(seed):
    """Return one level for each pixel value, the ends among them."""
    k = torch.randint(-LEVELS, LEVELS + 1, (256,), generator=torch.Generator().manual_seed(seed))
    k[seed % 3 :: 3] = LEVELS
    k[(seed + 1) % 3 :: 3] = -LEVELS
    return k.to(torch.int16)


@seeded
@given(radii, st.integers(0, 100))
def test_points_lie_in_the_exact_ball(eps, seed):
    k = levels_of(seed)
    points = decode(k, PIXELS.double() / 255, eps)
    assert points.dtype == torch.float64
    step = float(eps - Fraction(1, 2**50)) / LEVELS
    in_numpy = np.clip(np.arange(256) / np.float64(255) + k.numpy() * step, 0, 1)
    assert in_numpy.tobytes() == points.numpy().tobytes()
    for pixel, point in zip(PIXELS.tolist(), points.tolist(), strict=True):
        assert abs(Fraction(point) - Fraction(pixel, 255)) <= eps
        assert 0 <= point <= 1


@seeded
@given(radii, st.integers(0, 100))
def test_points_are_stored_to_half_a_level_and_encoded_again(eps, seed):
    x = PIXELS.double() / 255
    noise = torch.rand(256, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = (x + float(eps) * (2 * noise - 1)).clamp(0, 1)
    k = encode(points, x, eps)
    assert k.dtype == torch.int16
    stored = decode(k, x, eps)
    assert ((stored - points).abs() <= float(eps) / LEVELS * 0.5001 + 1e-14).all()
    assert decode(encode(stored, x, eps), x, eps).sub(stored).abs().max() <= 1e-15


def test_points_beyond_the_ball_are_moved_into_it():
    x, eps = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64), Fraction(1, 10)
    k = encode(torch.tensor([0.9, -7.0, 1.5]), x, eps)
    assert k.tolist() == [LEVELS, -LEVELS, LEVELS]
    torch.testing.assert_close(decode(k, x, eps), torch.tensor([0.6, 0.4, 1.0], dtype=torch.float64))


@seeded
@given(radii, st.integers(0, 100))
def test_points_that_are_stored_as_they_are_lie_in_the_exact_ball_and_stay_what_they_are(eps, seed):
    x = PIXELS.double() / 255
    moved = x + 2 * float(eps) * (torch.rand(256, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1)
    for wished in (moved, (x - float(eps)).float(), torch.full_like(x, torch.inf)):
        inside = move_inside(wished, x, eps)
        assert torch.equal(move_inside(inside, x, eps), inside) and torch.equal(point_of(inside, x, eps), inside)
        for pixel, point in zip(PIXELS.tolist(), inside.tolist(), strict=True):
            assert abs(Fraction(point) - Fraction(pixel, 255)) <= eps and 0 <= point <= 1
        near = (wished - x).abs() < float(eps) - 2.0**-49
        assert torch.equal(inside[near], wished.double().clamp(0, 1)[near])


@seeded
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 100), st.booleans())
def test_what_is_stored_is_unpacked_to_itself(shape, seed, is_corner):
    """The signs of a corner take a bit a pixel."""
    signs = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    k = (LEVELS * signs).to(torch.int16)
    if not is_corner:
        k.flatten()[seed % k.numel()] = seed - 50
    stored = pack(k)
    assert (stored.dtype, stored.numel()) == ((torch.uint8, -(-k.numel() // 8)) if is_corner else (k.dtype, k.numel()))
    assert torch.equal(unpack(stored, shape), k)


def test_the_nearest_corner_is_that_of_the_clipped_ball():
    """At a black pixel the ball begins at the pixel itself, so points in its lower half are nearest to k = 0."""
    x = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.5, 0.5], dtype=torch.float64)
    k = torch.tensor([0, 0, 5, -5, 20000, -20000, 5, -5], dtype=torch.int16)
    corner = corners(k, x, Fraction(3, 10))
    assert corner.dtype == torch.int16
    assert corner.tolist() == [LEVELS * sign for sign in (-1, 1, -1, 1, 1, -1, 1, -1)]
    assert decode(corner, x, Fraction(3, 10))[:4].tolist() == [0, 1, 0, 1]


@seeded
@given(radii, st.integers(0, 100))
def test_no_other_corner_is_nearer(eps, seed):
    k, x = levels_of(seed), PIXELS.double() / 255
    points, corner = decode(k, x, eps), corners(k, x, eps)
    distance, other = ((decode(which, x, eps) - points).abs() for which in (corner, -corner))
    assert (distance <= other).all()


@pytest.mark.parametrize("shape", [(1, 3, 3), (9,), (1, 3, 4)])
@pytest.mark.parametrize("stored", [torch.zeros(1, 3, 2), torch.zeros(3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int8])
def test_tensors_of_another_size_are_no_counterexamples(shape, stored, dtype):
    with pytest.raises(ValueError, match="counterexample"):
        unpack(stored.to(dtype), shape)
