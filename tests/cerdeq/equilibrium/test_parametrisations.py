"""Parametrisations of W: rho(|W|) within the margin, proved on the stored numbers; structure, gradients, folding."""

import copy
import itertools

import numpy as np
import pytest
import torch
from equilibria import channels, dense_operator, small_network, spectral_radius
from pairs import every_pair
from torch import nn
from torch.nn.utils import parametrize

from cerdeq import LinfBall, bound
from cerdeq.equilibrium import Equilibrium, FixedPoint, contraction, fold, set_progress
from cerdeq.equilibrium.weights import PARAMETRISATIONS, Monotone, Orthogonal

NAMES = list(PARAMETRISATIONS)
SHAPES = [(6, 6), (4, 4, 3, 3)]


def random_kernel(shape, scale=1.0, dtype=torch.float32):
    return scale * torch.randn(shape, dtype=dtype)


def build_part(name, size, margin=0.3, gain=None, dtype=torch.float32):
    return PARAMETRISATIONS[name](size, margin, gain).to(dtype)


def after_training(part, kernel, passes=30):
    """In evaluation, after so many readings in training."""
    part.train()
    for _ in range(passes):
        part(kernel)
    return part.eval()


@pytest.mark.parametrize(
    ("name", "shape", "scale", "margin"), every_pair(NAMES, SHAPES, [1e-3, 1.0, 1e6], [0.01, 0.3, 0.99])
)
def test_the_margin_is_proved_on_the_stored_w(name, shape, scale, margin):
    part, kernel = build_part(name, shape[0], margin), random_kernel(shape, scale)
    for _ in range(4):
        weight = part.eval()(kernel).detach()
        assert weight.dtype == torch.float32 and weight.any()
        assert spectral_radius(channels(weight)) <= 1 - margin
        assert contraction(weight).rate <= 1 - margin
        after_training(part, kernel, 20)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["perron", "nonnegative", "orthogonal"])
def test_a_large_kernel_reaches_its_bound(name, shape):
    part, kernel = build_part(name, shape[0], 0.3), random_kernel(shape, 100.0)
    weight = after_training(part, kernel, 100)(kernel)
    assert spectral_radius(channels(weight)) >= 0.7 * 0.999


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_gains_of_channels_scale_the_rows_of_w_within_its_bound(name, shape):
    kernel, plain = random_kernel(shape, 100.0), build_part(name, shape[0])
    part = PARAMETRISATIONS[name](shape[0], 0.3, 0.5, channel_gain=True)
    with torch.no_grad():
        part.gain_logit.copy_(torch.linspace(-3, 20, shape[0]))  # in float32 the last gain is 1
    part, plain = after_training(part, kernel), after_training(plain, kernel)
    assert part.gain.shape == shape[:1] and part.gain[-1] == 1
    rows = zip(part(kernel), part.gain, plain(kernel), strict=True)
    assert all(torch.equal(row, gain * other) for row, gain, other in rows)
    assert contraction(part(kernel).detach()).rate <= 0.7
    with pytest.raises(ValueError, match="channel_gain: true needs a gain"):
        PARAMETRISATIONS[name](shape[0], 0.3, None, channel_gain=True)


@pytest.mark.parametrize(("size", "groups", "kernel"), [(8, 1, 3), (8, 2, 3), (8, 4, 3), (6, 3, None), (6, 1, None)])
def test_an_orthogonal_w_has_orthonormal_rows_within_its_groups(size, groups, kernel):
    each = size // groups
    shape = (size, each) if kernel is None else (size, each, kernel, kernel)
    part = Orthogonal(size, 0.3, None)
    rows = part.unscaled(torch.randn(shape, dtype=torch.float64))
    matrix = rows.reshape(size, -1).numpy()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=2e-3 if kernel is None else 1e-6)
    blocks = rows.reshape(groups, each, groups, each, -1)
    outside = [blocks[a, :, b] for a in range(groups) for b in range(groups) if a != b]
    assert not any(block.any() for block in outside) and rows.shape[:2] == (size, size)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_monotone_w_has_its_symmetric_part_within_the_margin(shape):
    """By numpy, of |W| and so of W (Wei and Kolter 2022: I - W is strongly monotone)."""
    weight = Monotone(shape[0], 0.25, None)(random_kernel(shape)).detach()
    operator = dense_operator(weight.double(), (shape[0], 4, 4))
    for matrix in (operator, np.abs(operator)):
        assert np.linalg.eigvalsh((matrix + matrix.T) / 2).max() <= 0.75
    rows = channels(weight)
    assert np.linalg.eigvalsh((rows + rows.T) / 2).max() > 0.75 * 0.9, "far from its bound"


@pytest.mark.parametrize("name", NAMES)
def test_rho_stays_within_the_margin_while_training(name):
    torch.manual_seed(1)
    model = Equilibrium(
        4, nn.Conv2d(2, 4, 3, padding=1), parametrisation=name, margin=0.2, margin_start=0.9, iterations=5
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.2)
    rates = []
    for step in range(20):
        set_progress(model, step / 12)
        optimiser.zero_grad()
        (-model(torch.rand(3, 2, 5, 5)).square().mean()).backward()  # outputs, and so W, want to grow
        optimiser.step()
        part = model.recurrence.parametrizations.weight[0]
        limit = 1 - (0.9 + (0.2 - 0.9) * min(step / 12, 1.0))
        assert part.margin.item() == pytest.approx(1 - limit)
        model.eval()
        rates.append(contraction(model.recurrence.weight).rate)
        model.train()
        assert rates[-1] <= limit + 1e-7
        assert 0 <= part.gain <= 1
    assert rates[0] < 0.1 and rates[-1] > 0.5, "this training was meant to drive W to its bound"
    fold(model.eval())
    assert contraction(model.recurrence.weight).rate == rates[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_parametrisation_is_saved_with_its_margin(name):
    first, second = (Equilibrium(4, nn.Identity(), parametrisation=name, margin_start=0.9) for _ in range(2))
    set_progress(first, 0.5)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval().recurrence.weight, second.eval().recurrence.weight)
    assert second.recurrence.parametrizations.weight[0].margin.item() == pytest.approx(0.6)


def test_iterations_grow_with_eps_in_two_leaps():
    model, counts = Equilibrium(4, nn.Identity(), iterations=10, early_iterations=2), []
    for progress in (0.0, 0.3, 0.34, 0.66, 0.67, 1.0):
        set_progress(model, progress)
        counts.append(model.recurrence.iterations)
    assert counts == [2, 2, 6, 6, 10, 10]


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 3, 3)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_zero_kernel_gives_zero_w_and_finite_gradients(name, shape, training):
    part = PARAMETRISATIONS[name](3, 0.3, 0.5).train(training)
    kernel = torch.zeros(shape, requires_grad=True)
    for _ in range(3):
        weight = part(kernel)
        (weight * torch.randn(shape)).sum().backward()
    assert not weight.any() and kernel.grad.isfinite().all()
    assert part.gain_logit.grad.isfinite() and all(buffer.isfinite().all() for buffer in part.buffers())


def weight_by_numpy(name, kernel):
    """W of margin 0.3 by numpy's eigenvalues and singular vectors."""
    if name == "orthogonal":
        left, _, right = np.linalg.svd(kernel.reshape(len(kernel), -1), full_matrices=False)
        kernel = (left @ right).reshape(kernel.shape)
    if name == "nonnegative":
        kernel = kernel**2
    return kernel * 0.7 / spectral_radius(channels(torch.from_numpy(kernel)))


@pytest.mark.parametrize("shape", [(4, 4), (3, 3, 3, 3)])
@pytest.mark.parametrize("name", ["perron", "nonnegative", "orthogonal"])
def test_gradients_of_w_are_those_of_finite_differences(name, shape):
    """Of W as numpy makes it; the Perron vectors have converged."""
    torch.manual_seed(1)
    part, kernel = build_part(name, shape[0], dtype=torch.float64), random_kernel(shape, 3.0, torch.float64)
    after_training(part, kernel, 300)
    cotangent = torch.randn(shape, dtype=torch.float64)
    kernel.requires_grad_()
    gradient = torch.autograd.grad((part(kernel) * cotangent).sum(), kernel)[0]

    def value(m):
        return float((weight_by_numpy(name, m.numpy()) * cotangent.numpy()).sum())

    step = 1e-6
    for index in itertools.product(*[range(0, size, 2) for size in shape]):
        up, down = kernel.detach().clone(), kernel.detach().clone()
        up[index] += step
        down[index] -= step
        expected = (value(up) - value(down)) / (2 * step)
        assert gradient[index].item() == pytest.approx(expected, rel=5e-3, abs=5e-4)


OUT_OF_RANGE = [
    {"margin": 0.0}, {"margin": 1.0}, {"gain": 1.0}, {"margin_start": 1.0}, {"parametrisation": "peron"},
    {"kernel_size": 2}, {"iterations": 0}, {"early_iterations": 0}, {"backward_iterations": 0}, {"gradient": "implict"},
    {"groups": 2}, {"parametrisation": "orthogonal", "groups": 0},
]  # fmt: skip


@pytest.mark.parametrize("options", OUT_OF_RANGE)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"margin|gain|parametrisation|kernel_size|iterations|gradient|groups"):
        Equilibrium(3, nn.Identity(), **options)


@pytest.mark.parametrize(("kernel", "gain"), [(None, None), (3, 0.4)])
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
        *("0.inject.weight", "0.inject.bias", "0.recurrence.weight", "2.weight", "2.bias")
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


def test_fold_finds_a_fixed_point_whoever_holds_it_and_leaves_other_parametrisations_alone():
    layer = small_network(3, 0.8)[0][0].recurrence
    model = nn.Sequential(layer, nn.utils.parametrizations.weight_norm(nn.Conv2d(layer.weight.shape[0], 2, 1)))
    fold(model)
    assert [parametrize.is_parametrized(module) for module in model] == [False, True]


def test_folding_a_copy_leaves_the_original_alone():
    """Copies share the class that torch makes for a parametrised module."""
    model, size = small_network(3, 0.8)
    x = torch.rand(2, *size, dtype=torch.float64)
    value = model(x)
    fold(copy.deepcopy(model))
    assert torch.equal(model(x), value) and parametrize.is_parametrized(model[0].recurrence)
