"""Proofs of rho(|W|) < 1 and of boxes: what they accept is true, whatever the solver did.

Against samples, eigenvalues by numpy, exact rationals and mixed-integer programs.
"""

from fractions import Fraction

import pytest
import torch
from equilibria import (
    GARBAGE,
    RHOS,
    channel_matrix,
    channels,
    check_box,
    equilibrium_of,
    hard_matrices,
    random_h,
    random_weight,
    spectral_radius,
    wide_interval_equilibrium,
    with_one,
)
from oracles import Exact, dense_operator, encloses, fractions
from pairs import every_pair

from cerdeq import Box
from cerdeq.equilibrium import (
    FixedPoint,
    Implicit,
    NotContractiveError,
    Picard,
    certificate,
    contraction,
    layer,
    verified_box,
    verify_inclusion,
)


@pytest.mark.parametrize(("kernel", "signed"), [(1, True), (3, True), (3, False), (5, True)])
def test_rate_bounds_the_true_spectral_radius_on_any_image_size(kernel, signed):
    weight = random_weight(2, kernel, rho=0.8, signed=signed)
    rate = contraction(weight).rate
    radii = []
    for height, width in [(1, 1), (1, 5), (3, 2), (4, 4), (7, 6)]:
        radii.append(spectral_radius(dense_operator(weight.abs(), (2, height, width))))
    assert max(radii) <= rate * (1 + 1e-12)
    assert radii[0] <= radii[2] <= radii[3] <= radii[4]
    assert max(radii) > 0.6 * rate or kernel == 5
    signed_radius = spectral_radius(dense_operator(weight, (2, 7, 6)))
    assert signed_radius <= rate


def exactly_contractive(weight, v, rate) -> bool:
    """(|W| v)_i <= rate v_i and v_i > 0, in rational arithmetic."""
    magnitudes, v = fractions(weight.double().abs().flatten(1)), fractions(v)
    kernel = weight[0, 0].numel()
    sums = [sum(w * v[j // kernel] for j, w in enumerate(row)) for row in magnitudes]
    return all(b > 0 and a <= Fraction(rate) * b for a, b in zip(sums, v, strict=True))


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("seed", range(2))
def test_the_proof_holds_in_exact_arithmetic(seed, kernel):
    torch.manual_seed(seed)
    weight = torch.randn(4, 4) if kernel is None else torch.randn(4, 4, kernel, kernel)
    weight = weight * 10.0 ** torch.randint(-8, 3, weight.shape)
    proof = contraction(weight)
    assert proof.v.dtype == torch.float64
    assert exactly_contractive(weight, proof.v, proof.rate)


@pytest.mark.parametrize("name", hard_matrices())
def test_rates_of_hard_matrices_are_proved_and_close(name):
    """Reducible, periodic and degenerate ones: proved, and close enough to be of use."""
    weight = hard_matrices()[name]
    exact, proof = spectral_radius(channels(weight)), contraction(weight)
    assert exactly_contractive(weight, proof.v, proof.rate)
    assert exact * (1 - 1e-12) <= proof.rate <= 1.01 * exact + 0.02 * weight.abs().max().item() + 1e-300


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("rho", [1.0, 1.0001, float("nan"), float("inf")])
def test_a_w_that_is_no_contraction_has_no_box(rho, kernel):
    weight = random_weight(3, kernel, rho=rho)
    h = random_h((2, 3) if kernel is None else (2, 3, 4, 4), 0.1)
    with pytest.raises(NotContractiveError, match="not proved"):
        verified_box(weight, h)


def test_a_proof_is_kept_for_as_long_as_w_stays_the_same(monkeypatch):
    weights = []
    monkeypatch.setattr(layer, "contraction", lambda weight: (weights.append(weight), contraction(weight))[1])
    module = FixedPoint(0.1 * torch.eye(3), Picard(1), Implicit(1))
    first = module.contraction(module.weight)
    assert module.contraction(module.weight) is first and len(weights) == 1
    with torch.no_grad():
        module.weight *= 2
    second = module.contraction(module.weight)
    assert len(weights) == 2 and second.rate == pytest.approx(2 * first.rate)
    assert module.contraction(module.weight.double()).rate == pytest.approx(second.rate) and len(weights) == 3


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


@pytest.mark.parametrize(
    ("kernel", "rho", "eps", "signed"), every_pair([None, 3], RHOS, [0.0, 1e-6, 0.1, 10.0], [True, False])
)
def test_boxes_contain_sampled_equilibria(kernel, rho, eps, signed):
    weight = random_weight(4, kernel, rho=rho, signed=signed)
    h = random_h((3, 4) if kernel is None else (2, 4, 4, 3), eps)
    check_box(weight, h, verified_box(weight, h))


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("rho", RHOS)
def test_non_negative_w_gives_the_two_equilibria_at_the_ends(rho, kernel):
    """The map is monotone: no interval is lost in the recurrence."""
    weight = random_weight(3, kernel, rho=rho, signed=False)
    h = random_h((3, 3) if kernel is None else (3, 3, 3, 3), 0.3)
    matrix = dense_operator(weight, h.center.shape[1:])
    low = torch.from_numpy(equilibrium_of(matrix, h.lower.flatten(1).numpy())).view_as(h.center)
    high = torch.from_numpy(equilibrium_of(matrix, h.upper.flatten(1).numpy())).view_as(h.center)
    box = verified_box(weight, h)
    size = 1 + high.max()
    assert (box.lower <= low + 1e-12 * size).all() and (high - 1e-12 * size <= box.upper).all()
    torch.testing.assert_close(box.lower, low, rtol=0, atol=3e-4 * size.item())
    torch.testing.assert_close(box.upper, high, rtol=0, atol=3e-4 * size.item())


def exact_equilibrium(weight, h):
    """z = relu(W z + h) in Fractions: the pattern from the float solution, proved by the exact solve."""
    matrix, h = fractions(weight), list(h)
    pattern = equilibrium_of(weight.numpy(), [[float(value) for value in h]])[0] > 0
    alive = [i for i, active in enumerate(pattern) if active]
    rows = [[Fraction(int(i == j)) - matrix[i][j] for j in alive] + [h[i]] for i in alive]
    for pivot in range(len(rows)):  # Gauss and Jordan
        best = max(range(pivot, len(rows)), key=lambda row: abs(rows[row][pivot]))
        rows[pivot], rows[best] = rows[best], rows[pivot]
        rows[pivot] = [value / rows[pivot][pivot] for value in rows[pivot]]
        for other in range(len(rows)):
            if other != pivot:
                factor = rows[other][pivot]
                rows[other] = [a - factor * b for a, b in zip(rows[other], rows[pivot], strict=True)]
    z = [Fraction(0)] * len(h)
    for i, row in zip(alive, rows, strict=True):
        z[i] = row[-1]
    assert z == [max(sum(w * v for w, v in zip(row, z, strict=True)) + b, 0) for row, b in zip(matrix, h, strict=True)]
    return z


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rho", [0.3, 0.9, 0.99])
def test_boxes_contain_the_exact_rational_equilibria(rho, signed):
    """Of a point, and for W >= 0 of both ends of a box."""
    weight, h = random_weight(4, rho=rho, signed=signed), random_h((1, 4), 0.0 if signed else 0.3)
    ends = Exact.of(h)
    exact = Exact(exact_equilibrium(weight, ends.low), exact_equilibrium(weight, ends.high))
    assert encloses(verified_box(weight, h), exact)


@pytest.mark.parametrize(("name", "kernel", "rho"), every_pair(GARBAGE, [None, 3], [0.3, 0.97]))
def test_garbage_from_the_solver_never_makes_an_unsound_box(name, kernel, rho, monkeypatch):
    weight = random_weight(3, kernel, rho=rho)
    h = random_h((2, 3) if kernel is None else (2, 3, 3, 3), 0.2)
    solve = certificate.interval_equilibrium
    monkeypatch.setattr(certificate, "interval_equilibrium", lambda weight, h: GARBAGE[name](solve(weight, h)))
    check_box(weight, h, verified_box(weight, h))


def test_without_any_proof_the_radius_is_infinite(monkeypatch):
    weight, h = random_weight(3, rho=0.5), random_h((2, 3), 0.2)
    monkeypatch.setattr(certificate, "verify_inclusion", lambda *arguments: torch.tensor([True, False]))
    radius = verified_box(weight, h).radius
    assert radius[0].isfinite().all() and radius[1].isinf().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_h_out_of_range_bounds_nothing_and_spares_its_neighbours(value):
    weight, h = random_weight(3, rho=0.5), random_h((2, 3), 0.2)
    broken = Box(with_one(h.center, value), h.radius)
    box = verified_box(weight, broken)
    assert value == 1e300 or not (box.lower[0] > -torch.inf).any()
    check_box(weight, Box(h.center[1:], h.radius[1:]), Box(box.center[1:], box.radius[1:]))
