"""verify_inclusion, the check that verified boxes depend on: everything it accepts is true, in exact arithmetic."""

import pytest
import torch
from equilibria import (
    RHOS,
    channel_matrix,
    random_h,
    random_weight,
    wide_interval_equilibrium,
    with_one,
)
from oracles import Exact, encloses, fractions

from cerdeq import Box
from cerdeq.equilibrium import certificate, contraction, verify_inclusion


def good_box(weight, h):
    """Return a box that the check accepts by a wide margin, made by hand: all that [-t v, t v] maps to, and more."""
    v = contraction(weight).v
    shaped = v.view(1, -1, *[1] * (h.center.dim() - 2))
    slack = shaped - (channel_matrix(weight) @ v).view_as(shaped)
    reach = 2 * ((h.center.abs() + h.radius) / slack).max()
    box = Box(torch.zeros_like(h.center), (reach * shaped).expand_as(h.center).clone())
    assert verify_inclusion(weight, h, box, v).all()
    return box, v


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("kernel", [None, 3])
def test_the_closed_form_box_is_accepted(kernel, rho):
    """It is the fallback where the solver fails: its lower end is 0, as F's is wherever a unit can be off."""
    weight = random_weight(3, kernel, rho=rho)
    for shift in (-1.0, 0.0, 1.0):
        h = random_h((4, 3) if kernel is None else (4, 3, 3, 3), 0.3, shift)
        proof = contraction(weight)
        box = certificate.closed_form_box(weight, h, proof)
        assert verify_inclusion(weight, h, box, proof.v).all()


def broken_boxes():
    return {
        "a centre that is not a number": lambda box: Box(with_one(box.center, float("nan")), box.radius),
        "a radius that is not a number": lambda box: Box(box.center, with_one(box.radius, float("nan"))),
        "an infinite radius": lambda box: Box(box.center, with_one(box.radius, float("inf"))),
        "an infinite centre": lambda box: Box(with_one(box.center, float("inf")), box.radius),
        "both infinite": lambda box: Box(with_one(box.center, float("inf")), with_one(box.radius, float("inf"))),
        "a negative radius": lambda box: Box(box.center, with_one(box.radius, -1.0)),
        "all radii negative": lambda box: Box(box.center, -box.radius),
        "shifted": lambda box: Box(box.center + 3 * box.radius, box.radius),
        "shrunk": lambda box: Box(box.center, box.radius * 1e-3),
        "a point": lambda box: Box(box.center, 0 * box.radius),
        "nothing": lambda box: Box(0 * box.center, 0 * box.radius),
    }


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("name", broken_boxes())
def test_broken_boxes_are_refused(name, kernel):
    weight = random_weight(3, kernel, rho=0.9)
    h = random_h((2, 3) if kernel is None else (2, 3, 3, 3), 0.2, shift=1.0)
    box, v = good_box(weight, h)
    proved = verify_inclusion(weight, h, broken_boxes()[name](box), v)
    assert not proved[0]
    if "number" in name or name in ("an infinite radius", "a negative radius"):
        assert proved[1], "one broken example must not break the others"


def test_inputs_that_are_no_box_are_refused():
    """A negative radius makes F(B) smaller than it is."""
    weight, h = random_weight(3, rho=0.9), random_h((2, 3), 0.2, shift=1.0)
    box, v = good_box(weight, h)
    for value in (-1e-3, -1.0, float("nan"), float("inf")):
        proved = verify_inclusion(weight, Box(h.center, with_one(h.radius, value)), box, v)
        assert proved.tolist() == [False, True]
    for value in (float("nan"), float("inf")):
        assert not verify_inclusion(weight, Box(with_one(h.center, value), h.radius), box, v)[0]


@pytest.mark.parametrize("amount", [1e-3, 1e-6, 1e-9])
def test_the_exact_box_made_a_little_smaller_is_refused(amount):
    """For W >= 0 no box smaller at either end contains both equilibria at the ends."""
    weight, h = random_weight(4, rho=0.9, signed=False), random_h((2, 4), 0.2, shift=1.0)
    low, high = wide_interval_equilibrium(weight, h)
    v, center, radius = contraction(weight).v, (low + high) / 2, (high - low) / 2
    for lift, drop in ((amount, 0.0), (0.0, amount), (amount, amount)):
        smaller = Box(center + (lift - drop) / 2, radius - (lift + drop) / 2)
        assert not verify_inclusion(weight, h, smaller, v).any()
    assert verify_inclusion(weight, h, Box(center, radius + amount * v), v).all()


@pytest.mark.parametrize("seed", range(2))
def test_what_is_accepted_is_an_inclusion_in_exact_arithmetic(seed):
    """Boxes within a few roundings of F(B) = B: whatever is accepted, Fractions accept."""
    torch.manual_seed(seed)
    weight, h = random_weight(3, rho=0.8), random_h((1, 3), 0.3, shift=1.0)
    low, high = wide_interval_equilibrium(weight, h)
    center, radius, v = (low + high) / 2, (high - low) / 2, contraction(weight).v
    matrix, h_ends, verdicts = fractions(weight), Exact.of(h), []
    for ulps in [*range(-4, 60, 2), 1000]:
        box = Box(center, (radius + ulps * 2.0**-53 * (1 + high.max()) * v).clamp(min=0))
        verdicts.append(bool(verify_inclusion(weight, h, box, v)))
        if verdicts[-1]:
            image = Exact.of(box).affine(matrix)
            image = Exact(
                [a + b for a, b in zip(image.low, h_ends.low, strict=True)],
                [a + b for a, b in zip(image.high, h_ends.high, strict=True)],
            )
            assert encloses(box, image.relu())
    assert verdicts[-1] and not verdicts[0]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e300, 5e-324, 1e-323, 1e-310])
def test_v_must_prove_the_contraction(value):
    """rho(|W|) = 1.2, and the box [-0.1, 1] is mapped into itself: only uniqueness fails (0 and 2.5 are equilibria)."""
    weight = torch.full((3, 3), 0.4, dtype=torch.float64)
    h = Box(torch.full((1, 3), -0.5, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64))
    z = Box(torch.full((1, 3), 0.45, dtype=torch.float64), torch.full((1, 3), 0.55, dtype=torch.float64))
    assert not verify_inclusion(weight, h, z, torch.full((3,), value, dtype=torch.float64)).any()
    for mixed in ([1.0, 1.0, value], [value, -value, 1.0], [-1.0, -1.0, value]):
        assert not verify_inclusion(weight, h, z, torch.tensor(mixed, dtype=torch.float64)).any()


def test_a_rate_of_1_that_rounding_hides_proves_nothing():
    """Rows of |W| whose exact sums are at least 1, by so little that the float sums are below it."""
    h = Box(torch.full((1, 8), -5.0, dtype=torch.float64), torch.zeros(1, 8, dtype=torch.float64))
    z, v = Box(torch.zeros_like(h.center), torch.full_like(h.center, 0.1)), torch.ones(8, dtype=torch.float64)
    assert verify_inclusion(0.05 * torch.ones(8, 8), h, z, v).all()
    hidden = 0
    for _ in range(300):
        row = torch.rand(8, dtype=torch.float64)
        row /= row.sum()
        for ulps in range(-4, 5):
            weight = row.repeat(8, 1)
            weight[:, 0] += ulps * 2.0**-55
            if sum(fractions(weight[0])) >= 1:
                hidden += int((weight @ v < 1).all())
                assert not verify_inclusion(weight, h, z, v).any()
    assert hidden


def test_boxes_without_a_batch_are_not_taken_for_a_batch_of_channels():
    """[C, H, W]: z_1 = 2 and z_0 = 1 + z_1 / 2 = 2, but channel 0 alone is consistent with the wrong box of z_1."""
    weight = torch.zeros(2, 2, 1, 1, dtype=torch.float64)
    weight[0, 1] = 0.5
    h, z, radius = (torch.tensor(v, dtype=torch.float64).view(2, 1, 1) for v in ([1.0, 2.0], [1.5, 1.0], [0.1, 0.1]))
    with pytest.raises(ValueError, match=r"boxes must be \[B, C, H, W\]"):
        verify_inclusion(weight, Box(h, 0 * h), Box(z, radius), torch.tensor([1.0, 1.0]))
