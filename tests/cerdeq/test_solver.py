"""The solver of evaluation: its report for each example, its tolerance, its limit."""

import pytest
import torch
from equilibria import RHOS, equilibrium_of, random_h, random_weight

from cerdeq.equilibrium import FixedPoint, NotConvergedError, layer


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
