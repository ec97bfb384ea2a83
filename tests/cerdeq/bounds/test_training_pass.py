"""The training pass: batch norm by the clean batch's statistics, equilibria by fixed counts from either start."""

import copy

import pytest
import torch
from equilibria import random_weight
from oracles import Lambda, random_box
from torch import nn

from baselines import build
from cerdeq.bounds import Context, Interval, points_of, propagate, trace
from cerdeq.boxes import clipped_ball
from cerdeq.equilibrium import Equilibrium, fold
from cerdeq.equilibrium.certificate import verified_box


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.BatchNorm1d(4), (8, 4)),
        (lambda: nn.BatchNorm1d(4, momentum=0.3, eps=1e-2), (8, 4, 3)),
        (lambda: nn.BatchNorm2d(4), (3, 4, 5, 2)),
        (lambda: nn.BatchNorm2d(4, affine=False), (3, 4, 5, 2)),
        (lambda: nn.BatchNorm2d(4, track_running_stats=False), (3, 4, 5, 2)),
    ],
    ids=["vectors", "sequences", "images", "not affine", "no statistics"],
)
def test_batch_norm_in_training_is_torch_own(make, shape):
    ours, theirs = nn.Sequential(make()).double().train(), nn.Sequential(make()).double().train()
    program = trace(ours)
    for step in range(3):
        x = (step + 1) * torch.randn(shape, dtype=torch.float64) + step
        box = random_box(*shape)
        result = propagate(program, Interval(box.center, box.radius, x), Context(sound=False))
        torch.testing.assert_close(result.clean, theirs(x))
    for name, value in theirs.state_dict().items():
        if name != "0.num_batches_tracked":
            torch.testing.assert_close(ours.state_dict()[name], value)


def test_gradients_flow_through_batch_statistics():
    """Against autograd on the formula written out: mean and variance depend on the clean input."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().train()
    x, radius = torch.randn(6, 3, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
    center = x + 0.1
    result = propagate(trace(model), Interval(center, radius, x), Context(sound=False))
    weights = torch.randn(3, 6, 2, dtype=torch.float64)
    loss = (weights[0] * result.box.lower + weights[1] * result.box.upper + weights[2] * result.clean).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))

    first, norm, last = model[0], model[1], model[3]
    hidden = x @ first.weight.T + first.bias
    mean, variance = hidden.mean(0), ((hidden - hidden.mean(0)) ** 2).mean(0)
    scale = norm.weight / (variance + norm.eps) ** 0.5
    middle = center @ first.weight.T + first.bias
    half = (radius @ first.weight.abs().T) * scale.abs()
    middle = (middle - mean) * scale + norm.bias
    low, high = (middle - half).clamp(min=0), (middle + half).clamp(min=0)
    positive, negative = last.weight.clamp(min=0), last.weight.clamp(max=0)
    lower = low @ positive.T + high @ negative.T + last.bias
    upper = high @ positive.T + low @ negative.T + last.bias
    clean = ((hidden - mean) * scale + norm.bias).clamp(min=0) @ last.weight.T + last.bias
    loss = (weights[0] * lower + weights[1] * upper + weights[2] * clean).sum()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for name, a, b in zip(dict(model.named_parameters()), gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("parametrisation", ["perron", "orthogonal"])
def test_points_are_computed_with_what_the_context_saved(parametrisation):
    """Its statistics and its W, at whatever points follow; running statistics and W move on once."""
    inject = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
    model = nn.Sequential(Equilibrium(4, inject, parametrisation=parametrisation), nn.Flatten(), nn.Linear(64, 3))
    model = model.double().train()
    reference, frozen = copy.deepcopy(model), copy.deepcopy(model)
    program, ctx = trace(model), Context(sound=False)
    x, other = torch.rand(2, 5, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(points_of(program, x, ctx), reference(x))
    after = {name: value.clone() for name, value in model.state_dict().items()}
    values = points_of(program, other, ctx)
    torch.testing.assert_close(values[:2], points_of(program, other[:2], ctx))
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[name]), name
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, reference.state_dict()[name])
    weight = frozen[0].recurrence.weight
    hidden = frozen[0].inject[0](x)
    norm = frozen[0].inject[1]
    norm.eval().running_mean, norm.running_var = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), correction=0)
    with torch.no_grad():
        expected = frozen[2](frozen[1](frozen[0].recurrence.at(weight, frozen[0].inject(other))))
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_points_in_the_box_lie_in_its_image(name):
    """By one context: what an attack sees is what the box was made of."""
    model = build(name, dataset="digits", width=0.1).double().train()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    ball, ctx, program = clipped_ball(x, 0.05), Context(sound=False), trace(model)
    with torch.no_grad():
        result = propagate(program, Interval(ball.center, ball.radius, x), ctx)
        torch.testing.assert_close(points_of(program, x, ctx), result.clean)
        for _ in range(20):
            point = ball.center + ball.radius * torch.sign(torch.randn_like(x))
            values = points_of(program, point, ctx)
            assert (values >= result.box.lower - 1e-6).all() and (values <= result.box.upper + 1e-6).all()


def test_a_context_that_does_not_follow_leaves_running_statistics_alone():
    model = nn.Sequential(nn.BatchNorm1d(3)).train()
    points_of(trace(model), torch.randn(4, 3) + 2, Context(sound=False, follow=False))
    assert not model[0].running_mean.any()


@pytest.mark.parametrize("count", [1, 7])
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


def layer(kernel, rho=0.7, **options):
    """An Equilibrium around the identity with a plain weight, float64, in training."""
    model = Equilibrium(3, nn.Identity(), kernel_size=kernel, **options)
    fold(model.double())
    with torch.no_grad():
        model.recurrence.weight.copy_(random_weight(3, kernel, rho=rho))
    return model.train()


def region(kernel, batch=4):
    shape = (batch, 3) if kernel is None else (batch, 3, 4, 4)
    center = torch.randn(shape, dtype=torch.float64)
    return Interval(center, 0.2 * torch.rand_like(center), center)


@pytest.mark.parametrize("kernel", [None, 3])
@pytest.mark.parametrize("warm", [False, True])
def test_both_starts_end_at_the_same_boxes(warm, kernel):
    x = region(kernel)
    model = layer(kernel, rho=0.9, iterations=300, warm_start=warm)
    result = propagate(trace(nn.Sequential(model)), x, Context(sound=False))
    exact = verified_box(model.recurrence.weight, x.box)
    torch.testing.assert_close(result.center, exact.center, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.radius, exact.radius, rtol=1e-5, atol=1e-5)


def test_parts_of_a_value_are_points_too():
    model, x = Lambda(lambda module, x: x.chunk(2, 1)[0] - torch.split(x, 2, dim=1)[1]).eval(), torch.rand(3, 4)
    assert torch.equal(points_of(trace(model), x, Context(sound=False)), model(x))
