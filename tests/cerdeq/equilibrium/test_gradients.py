"""Gradients: of equilibria by differences and by unrolling, and written backward passes against autograd."""

import pytest
import torch
from equilibria import random_weight, saved_tensors
from torch import nn

from cerdeq import Box
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.equilibrium import Equilibrium, fold
from cerdeq.operators.backward import Backward
from cerdeq.operators.relu import pull_through_lines, relaxation_of, relu_box


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


@pytest.mark.parametrize(("kernel", "training"), [(None, True), (3, False)])
def test_gradients_of_the_clean_equilibrium_pass_gradcheck(training, kernel):
    model = plain_layer(kernel).train(training)
    x = inputs_for(kernel).requires_grad_()
    weight = model.recurrence.weight.detach().clone().requires_grad_()

    def function(x, weight):
        return with_weight(model, weight, lambda model: model(x))

    assert torch.autograd.gradcheck(function, (x, weight), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kernel", "shrinkage"), [(None, 0.7), pytest.param(3, 1.0, marks=pytest.mark.slow)])
def test_gradients_of_the_interval_equilibrium_pass_gradcheck(shrinkage, kernel):
    model = plain_layer(kernel)
    clean = inputs_for(kernel).requires_grad_()
    center = (clean.detach() + 0.05).requires_grad_()
    radius = (0.3 * torch.rand_like(center) + 0.05).requires_grad_()
    weight = model.recurrence.weight.detach().clone().requires_grad_()
    program = trace(nn.Sequential(model))

    def function(center, radius, clean, weight):
        def run(_):
            ctx = Context(sound=False, relu_shrinkage=shrinkage)
            result = propagate(program, Interval(center, radius, clean), ctx)
            return result.center, result.radius, result.clean

        return with_weight(model, weight, run)

    assert torch.autograd.gradcheck(function, (center, radius, clean, weight), eps=1e-6, atol=1e-5, rtol=1e-4)


def test_a_dead_layer_has_finite_gradients():
    model = plain_layer(None)
    with torch.no_grad():
        model.inject.bias.fill_(-100.0)
    x = inputs_for(None)
    result = propagate(trace(nn.Sequential(model)), Interval(x, torch.full_like(x, 0.1), x), Context(sound=False))
    assert not result.center.any() and not result.radius.any() and not result.clean.any()
    gradients = torch.autograd.grad((result.center + result.radius + result.clean).sum(), list(model.parameters()))
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kernel", [None, 3])
def test_memory_does_not_grow_with_the_iterations(kernel):
    memory = []
    for count in (2, 60):
        model, x = plain_layer(kernel, iterations=count), inputs_for(kernel)
        program, interval = trace(nn.Sequential(model)), Interval(x, torch.rand_like(x), x)
        clean = saved_tensors(lambda model=model, x=x: model(x))
        boxes = saved_tensors(lambda p=program, i=interval: propagate(p, i, Context(sound=False)).box.lower)
        memory.append((clean, boxes))
    assert memory[0] == memory[1]


def results_and_gradients(function, *inputs):
    leaves = [value.clone().requires_grad_() for value in inputs]
    results = function(*leaves)
    torch.manual_seed(1)
    total = sum((result * torch.randn_like(result)).sum() for result in results)
    return [result.detach() for result in results], torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("shrinkage", [1.0, 0.7])
def test_the_relu_of_a_box(shrinkage):
    center, radius = torch.randn(4, 3, 5, 5).double(), torch.rand(4, 3, 5, 5).double()

    def textbook(c, r):
        half = shrinkage / 2 * torch.relu(c + r)
        return torch.where(c >= r, c, half), torch.where(c >= r, r, half)

    def written(c, r):
        return relu_box(Context(sound=False, relu_shrinkage=shrinkage), c, r)

    expected = results_and_gradients(textbook, center, radius)
    torch.testing.assert_close(results_and_gradients(written, center, radius), expected)


@pytest.mark.parametrize("radius", [0.0, 1e-8])
def test_the_relu_of_a_point_is_that_of_its_centre(radius):
    center, tiny = torch.randn(4, 6), torch.full((4, 6), radius)
    _, (of_center, of_radius) = results_and_gradients(lambda c, r: relu_box(Context(sound=False), c, r), center, tiny)
    dead = center < 0
    assert (of_center[dead] == 0).all() and (of_radius[dead] == 0).all() and (of_center[~dead] != 0).all()


@pytest.mark.parametrize("negative_slope", [0.0, 0.1, 1.7])
def test_linear_functionals_through_lines(negative_slope):
    box = Box(torch.randn(2, 3, 4).double(), torch.rand(2, 3, 4).double())
    coefficients = torch.randn(2, 5, 3, 4).double()

    def written(a, c, r):
        return pull_through_lines(relaxation_of(ctx, Box(c, r), negative_slope), a)

    def textbook(a, c, r):
        low, high = c - r, c + r
        crossing = (low < 0) & (high > 0)
        exact = torch.where(low < 0, negative_slope, torch.ones_like(low))
        slope = torch.where(crossing, (high - negative_slope * low) / torch.where(crossing, high - low, 1), exact)
        offset = torch.where(crossing, (1 - slope) * high, 0)
        steep = torch.where(high > -low, 1.0, negative_slope)
        free = torch.where(crossing, steep, exact)
        positive, negative = a.clamp(min=0), a.clamp(max=0)
        below, above = (positive, negative) if negative_slope <= 1 else (negative, positive)
        return below * free[:, None] + above * slope[:, None], (above * offset[:, None]).flatten(2).sum(2)

    ctx, inputs = Backward(sound=False), (coefficients, box.center, box.radius)
    expected = results_and_gradients(textbook, *inputs)
    torch.testing.assert_close(results_and_gradients(written, *inputs), expected)
