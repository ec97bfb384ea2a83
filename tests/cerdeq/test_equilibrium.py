"""Equilibria: the proof of rho(|W|) < 1, boxes that must hold whatever the solver did, gradients, memory.

The oracles are numpy eigenvalues of dense operators, equilibria solved to convergence in numpy, exact rational
arithmetic and mixed-integer programs. None of them shares code with cerdeq.
"""

import copy
import inspect
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import Exact, assert_contains, dense_affine, encloses, fractions
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn
from torch.nn.utils import parametrize

from cerdeq import Box, LinfBall, bound, margin_spec
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.boxes import clipped_ball
from cerdeq.equilibrium import (
    Equilibrium,
    FixedPoint,
    NotContractiveError,
    NotConvergedError,
    certificate,
    contraction,
    fold,
    layer,
    verified_box,
    verify_inclusion,
)
from cerdeq.equilibrium.weights import Perron

torch.set_num_threads(1)
RHOS = [0.3, 0.9, 0.97]


def spectral_radius(matrix):
    return float(np.abs(np.linalg.eigvals(np.asarray(matrix, dtype=np.float64))).max())


def channels(weight):
    """Channel matrix of |W|, by numpy."""
    weight = np.abs(weight.detach().double().numpy())
    return weight if weight.ndim == 2 else weight.sum((2, 3))


def random_weight(size, kernel=None, rho=0.9, signed=True):
    """Float64 W whose channel matrix of |W| has spectral radius rho."""
    shape = (size, size) if kernel is None else (size, size, kernel, kernel)
    weight = torch.randn(shape, dtype=torch.float64)
    weight = weight if signed else weight.abs()
    return weight * (rho / spectral_radius(channels(weight)))


def dense_operator(weight, shape):
    """W as a matrix on flattened images of this shape."""
    if weight.dim() == 2:
        return weight.numpy()
    return dense_affine(lambda z: F.conv2d(z, weight, padding=weight.shape[-1] // 2), shape)[0].numpy()


def equilibrium_of(matrix, h):
    """Solved to convergence for the rows of h [n, N], by numpy."""
    h = np.asarray(h)
    z = np.maximum(h, 0)
    for _ in range(20000):
        following = np.maximum(z @ matrix.T + h, 0)
        if np.abs(following - z).max() <= 1e-15 * (1 + np.abs(following).max()):
            return following
        z = following
    raise AssertionError("the oracle did not converge")


def sampled_equilibria(weight, h: Box, count=60):
    """Equilibria [count, B, ...] of points of the box h, most of them corners."""
    shape = h.center.shape[1:]
    rng = np.random.default_rng(0)
    inside = rng.uniform(-1, 1, (count, *h.center.shape))
    inside[: 2 * count // 3] = np.sign(inside[: 2 * count // 3])
    inside[0], inside[1], inside[2] = 1, -1, 0
    points = h.center.numpy() + inside * h.radius.numpy()
    solved = equilibrium_of(dense_operator(weight, shape), points.reshape(-1, int(np.prod(shape))))
    return torch.from_numpy(solved.reshape(points.shape))


def random_h(shape, eps, shift=0.0):
    center = torch.randn(shape, dtype=torch.float64) + shift
    return Box(center, eps * torch.rand(shape, dtype=torch.float64))


def check_box(weight, h, box):
    assert box.radius.isfinite().all() and (box.radius >= 0).all()
    assert_contains(box.lower, box.upper, sampled_equilibria(weight, h))


def wide_interval_equilibrium(weight, h, steps=3000):
    """The interval equilibrium on (lower, upper), dense, by numpy: the box that no interval proof can beat."""
    shape = h.center.shape[1:]
    matrix = dense_operator(weight, shape)
    positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
    low_h, high_h = h.lower.flatten(1).numpy(), h.upper.flatten(1).numpy()
    low, high = np.zeros_like(low_h), np.zeros_like(high_h)
    for _ in range(steps):
        low, high = (
            np.maximum(low @ positive.T + high @ negative.T + low_h, 0),
            np.maximum(high @ positive.T + low @ negative.T + high_h, 0),
        )
    return torch.from_numpy(low).view_as(h.center), torch.from_numpy(high).view_as(h.center)


# ---------------------------------------------------------------------------------------------------------------------
# The proof of rho(|W|) < 1


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_rate_bounds_the_true_spectral_radius_on_any_image_size(seed, kernel, signed):
    torch.manual_seed(seed)
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


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("kernel", [None, 1, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_rate_is_at_least_exact_and_close(size, kernel, scale):
    weight = random_weight(size, kernel, rho=scale)
    exact = spectral_radius(channels(weight))
    rate = contraction(weight).rate
    assert exact * (1 - 1e-13) <= rate <= exact * (1 + 1e-3)


def exactly_contractive(weight, v, rate) -> bool:
    """(|W| v)_i <= rate v_i and v_i > 0, in rational arithmetic."""
    magnitudes, v = fractions(weight.double().abs().flatten(1)), fractions(v)
    kernel = weight[0, 0].numel()
    sums = [sum(w * v[j // kernel] for j, w in enumerate(row)) for row in magnitudes]
    return all(b > 0 and a <= Fraction(rate) * b for a, b in zip(sums, v, strict=True))


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_proof_holds_in_exact_arithmetic(seed, kernel):
    torch.manual_seed(seed)
    weight = torch.randn(4, 4) if kernel is None else torch.randn(4, 4, kernel, kernel)
    weight = weight * 10.0 ** torch.randint(-8, 3, weight.shape)
    proof = contraction(weight)
    assert proof.v.dtype == torch.float64
    assert exactly_contractive(weight, proof.v, proof.rate)


def hard_matrices():
    eye = torch.eye(3)
    return {
        "zero": torch.zeros(3, 3),
        "one by one": torch.tensor([[-0.5]]),
        "diagonal": torch.diag(torch.tensor([0.9, -0.1, 0.5])),
        "permutation": 0.7 * eye[[1, 2, 0]],
        "nilpotent": torch.tensor([[0.0, 5.0, 7.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]),
        "block": torch.block_diag(torch.full((2, 2), 0.45), torch.full((2, 2), 0.05)),
        "dead row": torch.tensor([[0.5, 0.4], [0.0, 0.0]]),
        "dead column": torch.tensor([[0.5, 0.0], [0.4, 0.0]]),
        "tiny": torch.full((2, 2), 1e-30),
        "subnormal": torch.full((2, 2), 1e-310, dtype=torch.float64),
        "periodic": torch.tensor([[0.0, 0.8], [0.2, 0.0]]),
        "periodic, large row": torch.tensor([[0.0, 2.0], [0.1, 0.0]]),
    }


@pytest.mark.parametrize("name", hard_matrices())
def test_rate_of_hard_matrices(name):
    """Reducible, periodic and degenerate ones: proved, and close enough to be of use."""
    weight = hard_matrices()[name]
    exact, proof = spectral_radius(channels(weight)), contraction(weight)
    assert exactly_contractive(weight, proof.v, proof.rate)
    assert exact * (1 - 1e-12) <= proof.rate <= 1.01 * exact + 0.02 * weight.abs().max().item() + 1e-300


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_proof_of_weights_that_are_not_finite(value):
    weight = random_weight(3)
    weight[1, 2] = value
    assert not contraction(weight).rate < 1
    with pytest.raises(NotContractiveError):
        verified_box(weight, random_h((1, 3), 0.1))


@pytest.mark.parametrize("rho", [1.0, 1.0001, 3.0])
@pytest.mark.parametrize("kernel", [None, 3])
def test_an_expansive_w_has_no_box(rho, kernel):
    weight = random_weight(3, kernel, rho=rho)
    h = random_h((2, 3) if kernel is None else (2, 3, 4, 4), 0.1)
    with pytest.raises(NotContractiveError, match="not proved"):
        verified_box(weight, h)


def test_bounds_of_an_expansive_network_are_refused():
    model = nn.Sequential(FixedPoint(torch.full((3, 3), 0.5), 5, 5)).eval()
    with pytest.raises(NotContractiveError):
        bound(model, LinfBall(torch.rand(2, 3), 0.1))


# ---------------------------------------------------------------------------------------------------------------------
# The Perron parametrisation


def perron_weight(kernel_shape, margin=0.3, gain=None, scale=1.0, dtype=torch.float32):
    part = Perron(kernel_shape[0], margin, gain).to(dtype)
    return part, scale * torch.randn(kernel_shape, dtype=dtype)


@pytest.mark.parametrize("margin", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("shape", [(6, 6), (5, 5, 3, 3)])
def test_rho_is_within_the_margin_for_any_kernel(shape, scale, margin):
    part, kernel = perron_weight(shape, margin, scale=scale)
    for passes in range(4):
        weight = part.eval()(kernel)
        rho = spectral_radius(channels(weight))
        assert rho <= (1 - margin) * (1 + 1e-5)
        assert contraction(weight).rate < 1
        if passes == 3 and scale >= 1:
            assert rho >= (1 - margin) * 0.999, "power iteration did not make the bound tight"
        part.train()
        for _ in range(20):
            part(kernel)


def test_a_kernel_below_the_bound_is_left_alone():
    part, kernel = perron_weight((4, 4, 3, 3), margin=0.5, scale=1e-3)
    assert torch.equal(part(kernel), kernel)


@pytest.mark.parametrize("gain", [0.1, 0.5, 0.9])
def test_the_gain_scales_w(gain):
    part, kernel = perron_weight((4, 4), gain=gain)
    plain = Perron(4, 0.3, None)
    torch.testing.assert_close(part(kernel), gain * plain(kernel))
    assert part.gain.item() == pytest.approx(gain) and plain.gain.item() == 1
    assert spectral_radius(channels(part(kernel))) <= gain * 0.7 * (1 + 1e-5)


def test_rho_stays_within_the_margin_while_training():
    torch.manual_seed(3)
    model = Equilibrium(4, nn.Conv2d(2, 4, 3, padding=1), margin=0.2, gain=0.5, iterations=5, backward_iterations=5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(25):
        optimiser.zero_grad()
        (-model(torch.rand(3, 2, 5, 5)).square().mean()).backward()  # outputs, and so W, want to grow
        optimiser.step()
        rho = spectral_radius(channels(model.recurrence.weight))
        assert rho <= 0.8 * (1 + 1e-5)
        gain = model.recurrence.parametrizations.weight[0].gain
        assert 0 <= gain <= 1
    assert rho > 0.5, "this training was meant to drive W to its bound"


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_a_zero_kernel_gives_zero_w_and_finite_gradients(shape, training):
    part = Perron(3, 0.3, 0.5).train(training)
    kernel = torch.zeros(shape, requires_grad=True)
    for _ in range(3):
        weight = part(kernel)
        (weight * torch.randn(shape)).sum().backward()
    assert not weight.any() and kernel.grad.isfinite().all() and kernel.grad.any()
    assert part.gain_logit.grad.isfinite() and part.left.isfinite().all() and part.right.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 3)])
def test_w_starting_at_zero_trains_away_from_it(shape):
    kernel_size = None if len(shape) == 2 else 3
    model = Equilibrium(3, nn.Identity(), kernel_size=kernel_size)
    with torch.no_grad():
        model.recurrence.parametrizations.weight.original.zero_()
    z = model(torch.rand(4, 3) if kernel_size is None else torch.rand(4, 3, 4, 4))
    z.square().sum().backward()
    gradient = model.recurrence.parametrizations.weight.original.grad
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("shape", [(4, 4), (3, 3, 3, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_the_scale_against_finite_differences(seed, shape):
    """W = M (1 - m) / rho(|M|) with rho from numpy, differenced; the Perron vectors have converged."""
    torch.manual_seed(seed)
    part, kernel = perron_weight(shape, margin=0.3, scale=3.0, dtype=torch.float64)
    for _ in range(300):
        part(kernel)
    part.eval()
    cotangent = torch.randn(shape, dtype=torch.float64)
    kernel.requires_grad_()
    found = torch.autograd.grad((part(kernel) * cotangent).sum(), kernel)[0]

    def value(m):
        return float((m * cotangent).sum()) * 0.7 / spectral_radius(channels(m))

    step = 1e-6
    for index in itertools.product(*[range(0, size, 2) for size in shape]):
        up, down = kernel.detach().clone(), kernel.detach().clone()
        up[index] += step
        down[index] -= step
        expected = (value(up) - value(down)) / (2 * step)
        assert found[index].item() == pytest.approx(expected, rel=5e-3, abs=5e-4)


@pytest.mark.parametrize("options", [{"margin": 0.0}, {"margin": 1.0}, {"margin": -1}, {"gain": 0.0}, {"gain": 1.0}])
def test_margin_and_gain_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=r"margin|gain"):
        Equilibrium(3, nn.Identity(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"parametrisation": "peron"},
        {"kernel_size": 2},
        {"kernel_size": 0},
        {"iterations": 0},
        {"backward_iterations": 0},
    ],
)
def test_other_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"parametrisation|kernel_size|iterations"):
        Equilibrium(3, nn.Identity(), **options)


# ---------------------------------------------------------------------------------------------------------------------
# Verified boxes contain the equilibria


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.1, 10.0])
@pytest.mark.parametrize("rho", RHOS)
def test_dense_boxes_contain_sampled_equilibria(rho, eps, signed):
    weight, h = random_weight(6, rho=rho, signed=signed), random_h((3, 6), eps)
    check_box(weight, h, verified_box(weight, h))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("eps", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("rho", RHOS)
def test_convolutional_boxes_contain_sampled_equilibria(rho, eps, signed):
    weight, h = random_weight(2, 3, rho=rho, signed=signed), random_h((2, 2, 4, 3), eps)
    check_box(weight, h, verified_box(weight, h))


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e3, 1e20])
def test_boxes_at_any_scale(scale):
    weight, h = random_weight(5, rho=0.9), random_h((3, 5), 0.2)
    box = verified_box(weight, Box(scale * h.center, scale * h.radius))
    check_box(weight, h, Box(box.center / scale, box.radius / scale))


def test_examples_of_different_scales_in_one_batch():
    weight, h = random_weight(5, rho=0.9), random_h((4, 5), 0.2)
    scales = torch.tensor([1e-8, 1.0, 1e8, 0.0], dtype=torch.float64)[:, None]
    h = Box(scales * h.center, scales * h.radius)
    box = verified_box(weight, h)
    for example in range(4):
        one = slice(example, example + 1)
        alone = verified_box(weight, Box(h.center[one], h.radius[one]))
        torch.testing.assert_close(box.center[one], alone.center, rtol=1e-4, atol=1e-30)
        check_box(weight, Box(h.center[one], h.radius[one]), Box(box.center[one], box.radius[one]))


SPECIAL = {
    "dead": lambda shape: Box(torch.full(shape, -5.0).double(), torch.full(shape, 0.1).double()),
    "nearly dead": lambda shape: Box(torch.full(shape, -0.1).double(), torch.full(shape, 0.1).double()),
    "all equal": lambda shape: Box(torch.full(shape, 0.7).double(), torch.full(shape, 0.05).double()),
    "zero": lambda shape: Box(torch.zeros(shape).double(), torch.zeros(shape).double()),
    "around zero": lambda shape: Box(torch.zeros(shape).double(), torch.full(shape, 0.1).double()),
    "one pixel": lambda shape: Box(
        torch.zeros(shape).double().index_fill_(1, torch.tensor([0]), 3.0), torch.zeros(shape).double()
    ),
    "half dead": lambda shape: Box(torch.randn(shape).double().sign() * 3, torch.full(shape, 0.5).double()),
}


@pytest.mark.parametrize("rho", [0.3, 0.97])
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("kernel", [None, 3])
def test_special_boxes(kernel, kind, rho):
    weight = random_weight(3, kernel, rho=rho)
    h = SPECIAL[kind]((2, 3) if kernel is None else (2, 3, 3, 3))
    box = verified_box(weight, h)
    check_box(weight, h, box)
    if kind == "dead":
        assert box.upper.abs().max() <= 1e-12


@pytest.mark.parametrize("name", ["zero", "nilpotent", "diagonal", "dead row", "block"])
def test_boxes_of_degenerate_w(name):
    weight = hard_matrices()[name].double()
    h = random_h((3, len(weight)), 0.3)
    check_box(weight, h, verified_box(weight, h))


@pytest.mark.parametrize("eps", [1e-6, 0.01, 1.0])
@pytest.mark.parametrize("rho", RHOS)
def test_boxes_are_as_tight_as_intervals_can_be(rho, eps):
    weight, h = random_weight(6, rho=rho), random_h((3, 6), eps)
    low, high = wide_interval_equilibrium(weight, h)
    box = verified_box(weight, h)
    slack = 1e-13 * (1 + high.max())
    assert (box.lower <= low + slack).all() and (high - slack <= box.upper).all()
    assert (box.radius - (high - low) / 2).max() <= 1e-3 * eps + 1e-4 * (1 + high.max())


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


@pytest.mark.parametrize("rho", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_points_contain_the_exact_rational_equilibrium(seed, rho):
    torch.manual_seed(seed)
    weight = random_weight(4, rho=rho)
    h = Box(torch.randn(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64))
    z = exact_equilibrium(weight, fractions(h.center[0]))
    assert encloses(verified_box(weight, h), Exact(z, z))


@pytest.mark.parametrize("rho", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_non_negative_w_contains_the_exact_rational_ends(seed, rho):
    torch.manual_seed(seed)
    weight, h = random_weight(4, rho=rho, signed=False), random_h((1, 4), 0.3)
    ends = Exact.of(h)
    exact = Exact(exact_equilibrium(weight, ends.low), exact_equilibrium(weight, ends.high))
    assert encloses(verified_box(weight, h), exact)


def exact_range(weight, h, unit):
    """Minimum and maximum of one unit of the equilibrium over the box h, by a mixed-integer program in (z, h, on)."""
    n, w = len(weight), weight.numpy()
    low, high = h.lower[0].numpy(), h.upper[0].numpy()
    reach = np.linalg.solve(np.eye(n) - np.abs(w), np.maximum(np.maximum(high, -low), 0)) + 1  # z <= reach
    drop = np.abs(w) @ reach + np.maximum(-low, 0) + 1  # -(W z + h) <= drop
    eye, zero = np.eye(n), np.zeros((n, n))
    above = LinearConstraint(np.hstack([eye - w, -eye, zero]), lb=0)  # z >= W z + h
    tight = LinearConstraint(np.hstack([eye - w, -eye, np.diag(drop)]), ub=drop)  # z <= W z + h + drop (1 - on)
    off = LinearConstraint(np.hstack([eye, zero, -np.diag(reach)]), ub=0)  # z <= reach on
    limits = Bounds(np.concatenate([np.zeros(n), low, np.zeros(n)]), np.concatenate([reach, high, np.ones(n)]))
    integrality = np.concatenate([np.zeros(2 * n), np.ones(n)])
    found = []
    for sign in (1, -1):
        cost = np.zeros(3 * n)
        cost[unit] = sign
        result = milp(cost, constraints=[above, tight, off], bounds=limits, integrality=integrality)
        assert result.success, result.message
        found.append(sign * result.fun)
    return found


@pytest.mark.parametrize("rho", [0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_contain_the_exact_range(seed, rho):
    """The whole range over the box, not samples of it."""
    torch.manual_seed(seed)
    weight, h = random_weight(4, rho=rho), random_h((1, 4), 0.5, shift=0.3)
    box = verified_box(weight, h)
    for unit in range(4):
        low, high = exact_range(weight, h, unit)
        assert box.lower[0, unit] <= low + 1e-6 and high - 1e-6 <= box.upper[0, unit]


# ---------------------------------------------------------------------------------------------------------------------
# The check itself


def good_box(weight, h):
    """A box that the check accepts with room to spare, made by hand: everything that [-t v, t v] maps to, and more."""
    v = contraction(weight).v
    shaped = v.view(1, -1, *[1] * (h.center.dim() - 2))
    slack = shaped - (channel_matrix(weight) @ v).view_as(shaped)
    reach = 2 * ((h.center.abs() + h.radius) / slack).max()
    box = Box(torch.zeros_like(h.center), (reach * shaped).expand_as(h.center).clone())
    assert verify_inclusion(weight, h, box, v).all()
    return box, v


def channel_matrix(weight):
    return torch.from_numpy(channels(weight))


def test_signature():
    assert list(inspect.signature(verify_inclusion).parameters) == ["weight", "h", "z", "v"]
    weight, h = random_weight(3), random_h((4, 3), 0.1)
    box, v = good_box(weight, h)
    found = verify_inclusion(weight, h, box, v)
    assert found.dtype == torch.bool and found.shape == (4,)
    single = [tensor.float() for tensor in (weight, h.center, h.radius, box.center, box.radius, v)]
    assert verify_inclusion(single[0], Box(*single[1:3]), Box(*single[3:5]), single[5]).all()


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


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("kernel", [None, 3])
def test_verified_boxes_are_accepted(kernel, rho):
    """Whoever doubts a box can check it again; it lies on F of a verified box, so a little room is needed."""
    weight = random_weight(3, kernel, rho=rho)
    for shift in (-1.0, 0.0, 1.0):
        h = random_h((4, 3) if kernel is None else (4, 3, 3, 3), 0.3, shift)
        box, v = verified_box(weight, h), contraction(weight).v.view(1, -1, *[1] * (h.center.dim() - 2))
        room = Box(box.center, box.radius + 1e-9 * (1 + box.upper.max()) * v)
        assert verify_inclusion(weight, h, room, v.flatten()).all()


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


def with_one(values, value):
    values = values.clone()
    values[0].view(-1)[1] = value
    return values


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("name", broken_boxes())
def test_broken_boxes_are_refused(name, kernel):
    weight = random_weight(3, kernel, rho=0.9)
    h = random_h((2, 3) if kernel is None else (2, 3, 3, 3), 0.2, shift=1.0)
    box, v = good_box(weight, h)
    found = verify_inclusion(weight, h, broken_boxes()[name](box), v)
    assert not found[0]
    if "number" in name or name in ("an infinite radius", "a negative radius"):
        assert found[1], "one broken example must not break the others"


@pytest.mark.parametrize("rho", RHOS)
def test_an_unfinished_solution_is_refused(rho):
    """The solver stopped after a few steps from zero: its box does not contain the equilibria."""
    weight, h = random_weight(5, rho=rho, signed=False), random_h((3, 5), 0.2, shift=1.0)
    low, high = torch.zeros_like(h.center), torch.zeros_like(h.center)
    for _ in range(3):
        low, high = torch.relu(low @ weight.T + h.lower), torch.relu(high @ weight.T + h.upper)
        assert not verify_inclusion(weight, h, Box((low + high) / 2, (high - low) / 2), contraction(weight).v).any()


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


@pytest.mark.parametrize("seed", range(8))
def test_what_is_accepted_contains_the_equilibria(seed):
    """Random boxes about the true one, many of them wrong: accepted means right."""
    torch.manual_seed(seed)
    weight, h = random_weight(3, rho=0.6), random_h((1, 3), 0.3)
    low, high = wide_interval_equilibrium(weight, h)
    values, v = sampled_equilibria(weight, h, 30), contraction(weight).v
    many = 2000
    center = (low + high) / 2 + 0.3 * torch.randn(many, 3, dtype=torch.float64) * torch.rand(many, 1).double()
    radius = (high - low) / 2 + torch.rand(many, 3, dtype=torch.float64) * torch.rand(many, 1).double()
    wide_h = Box(h.center.expand(many, 3), h.radius.expand(many, 3))
    accepted = verify_inclusion(weight, wide_h, Box(center, radius), v)
    assert 0 < accepted.sum() < many
    assert_contains((center - radius)[accepted], (center + radius)[accepted], values.expand(-1, accepted.sum(), -1))


@pytest.mark.parametrize("seed", range(4))
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


def test_the_comparison_itself_is_rounded_against_the_box():
    """W = 0, so F(z) is relu(h). The box is far larger than its distance to h: only the comparison rounds."""
    h = torch.rand(500, 1, dtype=torch.float64)
    center = 1000 * (1 + torch.rand_like(h))
    accepted = 0
    for ulps in range(-3, 40):
        radius = (center - h) * (1 + ulps * 2.0**-53)
        found = verify_inclusion(torch.zeros(1, 1), Box(h, 0 * h), Box(center, radius), torch.ones(1))
        accepted += int(found.sum())
        for value, c, r in torch.cat([h, center, radius], dim=1)[found].tolist():
            assert Fraction(c) - Fraction(r) <= Fraction(value)
    assert accepted > 500


@pytest.mark.parametrize("seed", range(3))
def test_one_step_of_f_contains_the_exact_one(seed):
    """Points, not boxes: all that the radius holds is rounding, of W z, of the sum with h, and of the ReLU."""
    torch.manual_seed(seed)
    weight = random_weight(30, rho=0.9)
    for z_size, h_size in ((1.0, 0.0), (1.0, 1e-3), (1e-9, 1.0), (1e9, 1.0)):
        z, h = (Box(size * torch.randn(1, 30).double(), torch.zeros(1, 30).double()) for size in (z_size, h_size))
        points = zip(Exact.of(z).affine(fractions(weight)).low, Exact.of(h).low, strict=True)
        values = [a + b for a, b in points]
        exact = Exact(values, values)
        assert encloses(certificate.preactivation_box(weight, h, z), exact)
        assert encloses(certificate.interval_step(weight, h, z), exact.relu())


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e300, 5e-324, 1e-323, 1e-310])
def test_v_must_prove_the_contraction(value):
    """rho(|W|) = 1.2, and the box [-0.1, 1] is mapped into itself: only uniqueness fails (0 and 2.5 are equilibria)."""
    weight = torch.full((3, 3), 0.4, dtype=torch.float64)
    h = Box(torch.full((1, 3), -0.5, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64))
    z = Box(torch.full((1, 3), 0.45, dtype=torch.float64), torch.full((1, 3), 0.55, dtype=torch.float64))
    assert not verify_inclusion(weight, h, z, torch.full((3,), value, dtype=torch.float64)).any()
    for mixed in ([1.0, 1.0, value], [value, -value, 1.0], [-1.0, -1.0, value]):
        assert not verify_inclusion(weight, h, z, torch.tensor(mixed, dtype=torch.float64)).any()


def test_a_v_for_another_w_proves_nothing():
    good, bad = torch.diag(torch.tensor([0.5, 0.5])).double(), torch.tensor([[0.1, 2.0], [0.5, 0.1]]).double()
    h, v = random_h((2, 2), 0.1), torch.ones(2, dtype=torch.float64)
    box, _ = good_box(good, h)
    assert verify_inclusion(good, h, box, v).all() and not verify_inclusion(bad, h, box, v).any()


def test_boxes_without_a_batch_are_not_taken_for_a_batch_of_channels():
    """[C, H, W]: z_1 = 2 and z_0 = 1 + z_1 / 2 = 2, but channel 0 alone is consistent with the wrong box of z_1."""
    weight = torch.zeros(2, 2, 1, 1, dtype=torch.float64)
    weight[0, 1] = 0.5
    h, z, radius = (torch.tensor(v, dtype=torch.float64).view(2, 1, 1) for v in ([1.0, 2.0], [1.5, 1.0], [0.1, 0.1]))
    try:
        found = verify_inclusion(weight, Box(h, 0 * h), Box(z, radius), torch.tensor([1.0, 1.0]))
    except (ValueError, RuntimeError):
        return
    assert not found.any()


def test_h_that_is_not_finite_is_refused():
    weight = random_weight(3, rho=0.5)
    h = random_h((2, 3), 0.2)
    box, v = good_box(weight, h)
    for value in (float("nan"), float("inf")):
        assert not verify_inclusion(weight, Box(with_one(h.center, value), h.radius), box, v)[0]
        assert not verify_inclusion(weight, Box(h.center, with_one(h.radius, value)), box, v)[0]


# ---------------------------------------------------------------------------------------------------------------------
# A broken solver never makes an unsound box


GARBAGE = {
    "zeros": lambda box: Box(0 * box.center, 0 * box.radius),
    "not a number": lambda box: Box(box.center * float("nan"), box.radius * float("nan")),
    "one not a number": lambda box: Box(with_one(box.center, float("nan")), box.radius),
    "infinite": lambda box: Box(box.center, box.radius + float("inf")),
    "negative radius": lambda box: Box(box.center, -box.radius - 1),
    "slightly negative radius": lambda box: Box(box.center, 0 * box.radius - 1e-12),
    "shrunk": lambda box: Box(box.center, box.radius * 0.5),
    "a point": lambda box: Box(box.center, 0 * box.radius),
    "shifted": lambda box: Box(box.center + 3, box.radius),
    "far away": lambda box: Box(box.center + 1e9, box.radius),
    "huge": lambda box: Box(box.center, box.radius + 1e9),
    "negated": lambda box: Box(-box.center, box.radius),
    "noise": lambda box: Box(torch.randn_like(box.center), torch.rand_like(box.radius)),
    "other example": lambda box: Box(box.center.flip(0), box.radius.flip(0)),
}


@pytest.mark.parametrize("rho", [0.3, 0.97])
@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_from_the_solver_never_makes_an_unsound_box(name, kernel, rho, monkeypatch):
    weight = random_weight(3, kernel, rho=rho)
    h = random_h((2, 3) if kernel is None else (2, 3, 3, 3), 0.2)
    solve = certificate._fast_solution
    monkeypatch.setattr(certificate, "_fast_solution", lambda weight, h: GARBAGE[name](solve(weight, h)))
    check_box(weight, h, verified_box(weight, h))


def test_a_solver_stopped_after_one_step(monkeypatch):
    weight, h = random_weight(5, rho=0.97), random_h((3, 5), 0.2)
    monkeypatch.setattr(certificate, "_SOLVER_LIMIT", 1)
    check_box(weight, h, verified_box(weight, h))


def test_without_any_proof_the_radius_is_infinite(monkeypatch):
    weight, h = random_weight(3, rho=0.5), random_h((2, 3), 0.2)
    nothing = torch.tensor([True, False])
    monkeypatch.setattr(certificate, "verify_inclusion", lambda *arguments: nothing)
    radius = verified_box(weight, h).radius
    assert radius[0].isfinite().all() and radius[1].isinf().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_h_out_of_range_bounds_nothing_and_spares_its_neighbours(value):
    weight, h = random_weight(3, rho=0.5), random_h((2, 3), 0.2)
    broken = Box(with_one(h.center, value), h.radius)
    box = verified_box(weight, broken)
    assert value == 1e300 or not (box.lower[0] > -torch.inf).any()
    check_box(weight, Box(h.center[1:], h.radius[1:]), Box(box.center[1:], box.radius[1:]))


# ---------------------------------------------------------------------------------------------------------------------
# Networks with an equilibrium


def small_network(kernel=3, rho=0.9, dtype=torch.float64, gain=None):
    """Stem, equilibrium, head; rho(|W|) is what is asked."""
    if kernel is None:
        inject, head, size = nn.Linear(3, 4), nn.Linear(4, 3), (3,)
    else:
        inject, head, size = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 9, 3), (1, 3, 3)
    block = Equilibrium(4, inject, kernel_size=kernel, margin=1 - rho, gain=gain, iterations=30, backward_iterations=30)
    model = nn.Sequential(block, nn.Flatten(), head).to(dtype)
    with torch.no_grad():
        block.recurrence.parametrizations.weight.original.mul_(100)
        for _ in range(40):
            block.recurrence.weight  # noqa: B018  reading it in training follows the Perron vectors
    return model.eval(), size


@pytest.mark.parametrize("eps", [0.0, 8 / 255, 1.0])
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("kernel", [None, 3])
def test_bounds_of_networks_contain_forward_passes(kernel, rho, eps):
    model, size = small_network(kernel, rho)
    x = torch.rand(2, *size, dtype=torch.float64)
    region = LinfBall(x, eps)
    with torch.no_grad():
        lower, upper = bound(model, region)
        noise = torch.sign(2 * torch.rand(40, *x.shape, dtype=torch.float64) - 1)
        values = torch.stack([model((x + eps * one).clamp(0, 1)) for one in noise])
        spec = margin_spec(torch.tensor([0, 2]), 3).double()
        margins = bound(model, region, spec=spec)
    assert_contains(lower, upper, values, tolerance=1e-8)
    assert_contains(*margins, torch.einsum("bkn,sbn->sbk", spec, values), tolerance=1e-8)


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_float32_bounds_contain_float64_bounds(rho):
    model, size = small_network(3, rho, dtype=torch.float32)
    fold(model)
    region = LinfBall(torch.rand(2, *size), 0.05)
    with torch.no_grad():
        lower, upper = bound(model, region)
        wide = bound(model.double(), Box(region.center.double(), region.radius.double()))
    assert lower.dtype == torch.float32
    assert (lower.double() <= wide[0] + 1e-9).all() and (wide[1] - 1e-9 <= upper.double()).all()
    torch.testing.assert_close(lower.double(), wide[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [2**-149, 1.0, 1e30])
@pytest.mark.parametrize("weight", [0.3, 0.9, -0.5])
def test_float32_boxes_contain_the_exact_equilibrium(weight, size):
    """The proof is in float64; its box is handed on in float32, where it may round or underflow."""
    point = nn.Sequential(FixedPoint(torch.tensor([[weight]]), 1, 1)).eval()
    h = size * (torch.ones(20, 1) if size < 1e-30 else torch.rand(20, 1) + 0.5)
    w = Fraction(point[0].weight.item())
    with torch.no_grad():
        region = Interval(h, torch.zeros_like(h))
        box = propagate(trace(point), region, Context(sound=True)).box
        lower, upper = bound(point, Box(h, torch.zeros_like(h)))
    assert box.center.dtype == lower.dtype == torch.float32
    for example, value in enumerate(h.flatten().tolist()):
        z = [Fraction(value) / (1 - w)]
        assert encloses(box, Exact(z, z), example) and Exact(z, z).inside(lower[example], upper[example])


def test_preactivations_contain_those_of_forward_passes():
    model, size = small_network(3, 0.9)
    x = torch.rand(2, *size, dtype=torch.float64)
    ctx, region = Context(sound=True), LinfBall(x, 0.1)
    propagate(trace(model), Interval(region.center, region.radius), ctx)
    box = ctx.preactivations["0.recurrence"]
    point, seen = model[0].recurrence, []
    with torch.no_grad():
        for _ in range(20):
            sample = (x + 0.1 * torch.sign(torch.randn_like(x))).clamp(0, 1)
            h = model[0].inject(sample)
            seen.append(F.conv2d(point(h), point.weight, padding=1) + h)
    assert_contains(box.lower, box.upper, torch.stack(seen), tolerance=1e-8)


def test_bounds_do_not_remember_the_solver():
    """Memory of a bound must not grow with the solver's iterations, with gradients enabled or not."""
    counts = []
    for rho in (0.1, 0.97):
        model, size = small_network(None, rho)
        region = LinfBall(torch.rand(2, *size, dtype=torch.float64), 0.1)
        counts.append(saved_tensors(lambda model=model, region=region: bound(model, region))[0])
    assert counts[1] <= counts[0] + 20, counts


def test_two_equilibria_in_a_row():
    first = Equilibrium(3, nn.Linear(2, 3), kernel_size=None)
    second = Equilibrium(4, nn.Linear(3, 4), kernel_size=None, gain=None)
    model = nn.Sequential(first, second, nn.Linear(4, 2)).double().eval()
    x = torch.rand(2, 2, dtype=torch.float64)
    with torch.no_grad():
        lower, upper = bound(model, LinfBall(x, 0.1))
        values = torch.stack([model((x + 0.1 * torch.sign(torch.randn_like(x))).clamp(0, 1)) for _ in range(50)])
    assert_contains(lower, upper, values, tolerance=1e-8)


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_the_training_pass_tends_to_the_interval_equilibrium(rho):
    model, size = small_network(3, rho)
    model[0].recurrence.iterations = 1000
    x = torch.rand(2, *size, dtype=torch.float64)
    ball = clipped_ball(x, 0.1)
    with torch.no_grad():
        result = propagate(trace(model[:1]), Interval(ball.center, ball.radius, x), Context(sound=False))
        h = propagate(trace(model[0].inject), Interval(ball.center, ball.radius), Context(sound=False)).box
        low, high = wide_interval_equilibrium(model[0].recurrence.weight, h)
        torch.testing.assert_close(result.box.lower, low, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result.box.upper, high, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result.clean, model[0](x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_training_pass_of_few_iterations_is_a_picard_iteration(count):
    """Unrolled by hand from relu(h): the forward, and clean value and box of the interval pass."""
    model = Equilibrium(4, nn.Identity(), kernel_size=None, iterations=count, backward_iterations=3).double()
    fold(model)
    weight = model.recurrence.weight.detach()
    x, radius = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    z, low, high = torch.relu(x), torch.relu(x - radius), torch.relu(x + radius)
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    for _ in range(count + 1):
        z = torch.relu(z @ weight.T + x)
        low, high = (
            torch.relu(low @ positive.T + high @ negative.T + x - radius),
            torch.relu(high @ positive.T + low @ negative.T + x + radius),
        )
    result = propagate(trace(nn.Sequential(model)), Interval(x, radius, x), Context(sound=False))
    torch.testing.assert_close(model.train()(x).detach(), z)
    torch.testing.assert_close(result.clean.detach(), z)
    torch.testing.assert_close(result.box.lower.detach(), low)
    torch.testing.assert_close(result.box.upper.detach(), high)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def plain_layer(kernel, inputs=2, size=2, rho=0.6, iterations=60):
    """Equilibrium with a plain weight: nothing about it changes when it is read."""
    inject = nn.Linear(inputs, size) if kernel is None else nn.Conv2d(inputs, size, 3, padding=1)
    model = Equilibrium(size, inject, kernel_size=kernel, iterations=iterations, backward_iterations=iterations)
    fold(model.double())
    with torch.no_grad():
        model.recurrence.weight.copy_(random_weight(size, kernel, rho=rho))
    return model.train()


def inputs_for(kernel, batch=2):
    return torch.randn((batch, 2) if kernel is None else (batch, 2, 3, 2), dtype=torch.float64)


def with_weight(model, weight, function):
    """function(model) with the recurrence's weight replaced, differentiably."""
    point = model.recurrence
    original = point._parameters.pop("weight")
    point.weight = weight
    try:
        return function(model)
    finally:
        del point.weight
        point.register_parameter("weight", original)


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_gradcheck_of_the_clean_equilibrium(seed, training, kernel):
    torch.manual_seed(seed)
    model = plain_layer(kernel).train(training)
    x = inputs_for(kernel).requires_grad_()
    weight = model.recurrence.weight.detach().clone().requires_grad_()

    def function(x, weight):
        return with_weight(model, weight, lambda model: model(x))

    assert torch.autograd.gradcheck(function, (x, weight), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("seed", range(2))
def test_gradcheck_of_the_interval_equilibrium(seed, kernel):
    torch.manual_seed(seed)
    model = plain_layer(kernel)
    clean = inputs_for(kernel).requires_grad_()
    center = (clean.detach() + 0.05).requires_grad_()
    radius = (0.3 * torch.rand_like(center) + 0.05).requires_grad_()
    weight = model.recurrence.weight.detach().clone().requires_grad_()
    program = trace(nn.Sequential(model))

    def function(center, radius, clean, weight):
        def run(_):
            result = propagate(program, Interval(center, radius, clean), Context(sound=False))
            return result.center, result.radius, result.clean

        return with_weight(model, weight, run)

    assert torch.autograd.gradcheck(function, (center, radius, clean, weight), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [None, 3])
def test_implicit_and_unrolled_gradients_agree(kernel):
    model = plain_layer(kernel, rho=0.8, iterations=150)
    x = inputs_for(kernel)
    cotangents = torch.randn(3, *model(x).shape, dtype=torch.float64)
    radius = torch.rand_like(x) * 0.2
    result = propagate(trace(nn.Sequential(model)), Interval(x, radius, x), Context(sound=False))
    loss = sum(
        (c * v).sum() for c, v in zip(cotangents, (result.clean, result.box.lower, result.box.upper), strict=True)
    )
    found = torch.autograd.grad(loss, list(model.parameters()))

    weight = model.recurrence.weight
    apply = F.linear if kernel is None else lambda z, w: F.conv2d(z, w, padding=1)
    h, inject = model.inject(x), model.inject
    spread = (
        F.linear(radius, inject.weight.abs()) if kernel is None else F.conv2d(radius, inject.weight.abs(), padding=1)
    )
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    z, low, high = torch.zeros_like(h), torch.zeros_like(h), torch.zeros_like(h)
    for _ in range(300):
        z = torch.relu(apply(z, weight) + h)
        low, high = (
            torch.relu(apply(low, positive) + apply(high, negative) + h - spread),
            torch.relu(apply(high, positive) + apply(low, negative) + h + spread),
        )
    loss = sum((c * v).sum() for c, v in zip(cotangents, (z, low, high), strict=True))
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_gradients_at_radius_zero_are_those_of_the_clean_equilibrium():
    model, x = plain_layer(None), inputs_for(None)
    program = trace(nn.Sequential(model))
    cotangent = torch.randn(2, 2, dtype=torch.float64)
    result = propagate(program, Interval(x, torch.zeros_like(x), x), Context(sound=False))
    of_center = torch.autograd.grad((result.center * cotangent).sum(), list(model.parameters()), retain_graph=True)
    of_clean = torch.autograd.grad((result.clean * cotangent).sum(), list(model.parameters()))
    for a, b in zip(of_center, of_clean, strict=True):
        torch.testing.assert_close(a, b)


def test_a_dead_layer_has_finite_gradients():
    model = plain_layer(None)
    with torch.no_grad():
        model.inject.bias.fill_(-100.0)
    x = inputs_for(None)
    result = propagate(trace(nn.Sequential(model)), Interval(x, torch.full_like(x, 0.1), x), Context(sound=False))
    assert not result.center.any() and not result.radius.any() and not result.clean.any()
    gradients = torch.autograd.grad((result.center + result.radius + result.clean).sum(), list(model.parameters()))
    assert all(not gradient.any() for gradient in gradients)


def saved_tensors(function):
    """How many tensors autograd keeps for the backward pass, and their elements."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return len(sizes), sum(sizes)


@pytest.mark.parametrize("kernel", [None, 3])
def test_memory_does_not_grow_with_the_iterations(kernel):
    kept = []
    for count in (2, 60):
        model, x = plain_layer(kernel, iterations=count), inputs_for(kernel)
        program, interval = trace(nn.Sequential(model)), Interval(x, torch.rand_like(x), x)
        clean = saved_tensors(lambda model=model, x=x: model(x))
        boxes = saved_tensors(lambda p=program, i=interval: propagate(p, i, Context(sound=False)).box.lower)
        kept.append((clean, boxes))
    assert kept[0] == kept[1]


# ---------------------------------------------------------------------------------------------------------------------
# The solver's report, evaluation, folding, saving


def test_the_report_counts_each_example():
    weight = torch.tensor([[0.9]], dtype=torch.float64)
    point = FixedPoint(weight, 5, 5).eval()
    # relu(h): 0 at once; the others shrink their error by 0.9 a step, and the scale of h does not matter.
    report = point.solve(torch.tensor([[-1.0], [1.0], [1e6], [0.0]], dtype=torch.float64))
    assert report.converged.all() and report.converged.shape == (4,)
    assert report.iterations.tolist()[0] == report.iterations.tolist()[3] == 1
    assert 100 < report.iterations[1] == report.iterations[2] < 400
    assert (report.residual <= 1e-10).all()
    torch.testing.assert_close(report.value[1:3, 0], torch.tensor([10.0, 1e7], dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation_finds_the_equilibrium(dtype, rho):
    weight, h = random_weight(6, rho=rho), random_h((4, 6), 0)
    value = FixedPoint(weight.to(dtype), 1, 1).eval()(h.center.to(dtype))
    exact = torch.from_numpy(equilibrium_of(weight.numpy(), h.center.numpy()))
    tolerance = (1e-4 if dtype == torch.float32 else 1e-9) / (1 - rho)
    torch.testing.assert_close(value.double(), exact, rtol=tolerance, atol=tolerance)


def test_evaluation_does_not_depend_on_training_iterations():
    weight, h = random_weight(4, rho=0.8), random_h((3, 4), 0).center
    assert torch.equal(FixedPoint(weight, 1, 1).eval()(h), FixedPoint(weight, 50, 9).eval()(h))


def test_a_limit_that_is_too_small_is_reported_and_raised(monkeypatch):
    monkeypatch.setattr(layer, "_LIMIT", 4)
    weight = torch.tensor([[0.9]], dtype=torch.float64)
    point = FixedPoint(weight, 5, 5).eval()
    h = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    report = point.solve(h)
    assert report.converged.tolist() == [True, False]
    assert report.iterations.tolist() == [1, 4] and report.residual[1] > 1e-3
    with pytest.raises(NotConvergedError, match="1 of 2 equilibria"):
        point(h)


@pytest.mark.parametrize("weight", [[[2.0]], [[1.0]], [[float("nan")]]])
def test_an_expansive_w_raises_in_evaluation(weight):
    point = FixedPoint(torch.tensor(weight), 3, 3).eval()
    with pytest.raises(NotConvergedError):
        point(torch.tensor([[1.0], [-1.0]]))
    assert point.train()(torch.ones(2, 1)).shape == (2, 1)


def test_a_contraction_near_one_still_converges():
    """rho(|W|) <= 0.99 is what a margin of 0.01 promises; evaluation must be able to keep that promise."""
    weight, h = random_weight(4, rho=0.99, signed=False), random_h((2, 4), 0, shift=2.0).center
    value = FixedPoint(weight, 1, 1).eval()(h)
    torch.testing.assert_close(value, torch.from_numpy(equilibrium_of(weight.numpy(), h.numpy())), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("gain", [None, 0.4])
def test_fold_keeps_the_function_and_leaves_plain_weights(gain, kernel):
    model, size = small_network(kernel, 0.8, gain=gain)
    x = torch.rand(3, *size, dtype=torch.float64)
    with torch.no_grad():
        value, limits = model(x), bound(model, LinfBall(x, 0.1))
        fold(model)
        assert torch.equal(model(x), value)
        torch.testing.assert_close(bound(model, LinfBall(x, 0.1)), limits, rtol=0, atol=0)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert isinstance(model[0].recurrence.weight, nn.Parameter) and type(model[0].recurrence) is FixedPoint
    assert set(model.state_dict()) == {
        *("0.inject.weight", "0.inject.bias", "0.recurrence.weight", "2.weight", "2.bias"),
    }
    fold(model)
    assert torch.equal(model(x), value)


def test_fold_keeps_the_function_of_a_model_in_training_mode():
    """Reading W in training moves the Perron vectors; folding must not."""
    model, size = small_network(3, 0.8)
    x = torch.rand(3, *size, dtype=torch.float64)
    with torch.no_grad():
        model[0].recurrence.parametrizations.weight.original.normal_()  # the vectors are those of another kernel
        value = model(x)
        model.train()
        fold(model)
        assert torch.equal(model.eval()(x), value)


@pytest.mark.parametrize("folded", [False, True])
def test_saved_and_loaded_it_is_the_same_function(folded):
    model, size = small_network(3, 0.8, gain=0.4)
    other, _ = small_network(3, 0.8, gain=0.4)
    x = torch.rand(3, *size, dtype=torch.float64)
    if folded:
        fold(model)
        fold(other)
    with torch.no_grad():
        assert not torch.equal(model(x), other(x))
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(x), other(x))
        torch.testing.assert_close(bound(model, LinfBall(x, 0.1)), bound(other, LinfBall(x, 0.1)), rtol=0, atol=0)


def test_reading_w_in_evaluation_changes_nothing():
    model, _ = small_network(3, 0.8)
    before = copy.deepcopy(model.state_dict())
    first = model[0].recurrence.weight
    assert torch.equal(first, model[0].recurrence.weight)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------------------------------------------------------
# The compiled training step


@pytest.mark.parametrize("name", ["cnn7", "resnet9", "cerdeq"])
def test_compiled_losses_and_gradients_are_the_eager_ones(name):
    from baselines import build

    torch.manual_seed(0)
    options = {"iterations": 3, "backward_iterations": 2} if name == "cerdeq" else {}
    model = build(name, dataset="digits", width=0.03, **options).double().train()
    x, labels = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 9, 1])
    results = []
    for compiled in (False, True):
        network = copy.deepcopy(model)
        program = trace(network)

        def loss(x, eps, program=program):
            ball = clipped_ball(x, eps)
            spec = margin_spec(labels, 10)
            margins = propagate(program, Interval(ball.center, ball.radius, x), Context(sound=False), spec)
            return F.softplus(-margins.box.lower).mean() + F.softplus(-margins.clean).mean()

        step = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
        for eps in (0.01, 0.02):
            value = step(x, torch.tensor(eps, dtype=torch.float64))
        value.backward()
        gradients = {n: p.grad for n, p in network.named_parameters()}
        results.append((value.detach(), gradients, dict(network.named_buffers())))
    torch.compiler.reset()
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-9)
