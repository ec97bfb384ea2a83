"""Backward rules against autograd, and their own rounding."""

import itertools

import pytest
import torch
from cases import AFFINE, build_model
from oracles import dense_affine, random_box

from cerdeq.bounds import Backward, Context, Interval, trace
from cerdeq.bounds.ibp import values_of


def last_step(model, x):
    """Return the last step of a model, and its arguments and options in a sound pass over the boxes x."""
    program = trace(model, linear=True)
    with torch.no_grad():
        values = values_of(program, x, Context(sound=True))
    step = program.steps[program.output - 1]
    return step, *step.call(values)


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # with even kernels


@pytest.mark.parametrize("name", AFFINE)
def test_pulled_coefficients_are_those_of_autograd(name):
    for case, sound in itertools.product(AFFINE[name], (False, True)):
        model = build_model(case)
        x = torch.randn(2, *case.shape, dtype=torch.float64, requires_grad=True)
        step, arguments, options = last_step(model, Interval(x.detach(), torch.rand_like(x)))
        if set(step.sources) != {0}:
            continue  # a composition
        output = model(x * 1.0)
        coefficients = torch.randn(2, 3, *output.shape[1:], dtype=torch.float64)
        with torch.no_grad():
            pulled = step.record.backward(Backward(sound=sound), coefficients, *arguments, **options)
            offset = (coefficients * model(torch.zeros_like(x)).unsqueeze(1)).flatten(2).sum(2)
        pulled_back = sum(pulled.coefficients)
        for row in range(3):
            (expected,) = torch.autograd.grad((coefficients[:, row] * output).sum(), x, retain_graph=True)
            torch.testing.assert_close(pulled_back[:, row], expected, rtol=1e-12, atol=1e-12, msg=case.name)
        torch.testing.assert_close(pulled.constant, offset, rtol=1e-12, atol=1e-9, msg=case.name)


@pytest.mark.parametrize("scale", [1.0, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (1e-3, 1e3))])
@pytest.mark.parametrize("name", AFFINE)
def test_each_backward_rule_counts_its_own_rounding(name, scale):
    """In float32, compared with float64 where the difference of the coefficients from the true ones costs most."""
    for case in AFFINE[name]:
        model = build_model(case, torch.float32)
        box = random_box(6, *case.shape, scale=scale, dtype=torch.float32)
        step, arguments, options = last_step(model, Interval(box.center, box.radius))
        if set(step.sources) != {0}:
            continue
        with torch.no_grad():
            coefficients = torch.randn(6, 4, *model(box.center.clone()).shape[1:])
            pulled = step.record.backward(Backward(sound=True), coefficients, *arguments, **options)
            pulled_back = sum(part.double() for part in pulled.coefficients)
            float64, exact_box = model.double(), box.double()
            matrix, _ = dense_affine(float64, case.shape)
            exact = (coefficients.double().flatten(2) @ matrix).view_as(pulled_back)
            corner = exact_box.center.unsqueeze(1) + exact_box.radius.unsqueeze(1) * (pulled_back - exact).sign()
            for row in range(4):
                products = (coefficients[:, row].double() * float64(corner[:, row])).flatten(1)
                right = (pulled_back[:, row] * corner[:, row]).flatten(1).sum(1) + pulled.constant[:, row]
                assert (right <= products.sum(1) + 1e-15 * products.abs().sum(1)).all(), case.name
