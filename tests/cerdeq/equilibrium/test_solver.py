"""The solvers and refinement against numpy, each example by itself; how evaluation and searches use them."""

import copy

import pytest
import torch
from equilibria import (
    RHOS,
    dense_operator,
    equilibrium_of,
    exact_outputs,
    folded_network,
    random_h,
    random_weight,
    solutions,
    with_one,
)
from oracles import DTYPES
from pairs import every_pair

from cerdeq.equilibrium import FixedPoint, NotConvergedError, layer, solver, use_attack_solvers
from cerdeq.equilibrium.recurrence import apply_weight
from cerdeq.equilibrium.solver import AndersonSteps, PicardSteps, near_equilibrium, refine, solve_to_tolerance
from cerdeq.gpu_readings import is_host_reading

SOLVER_RHOS = [*RHOS, 0.99]
LIMIT = 5000
SOLVERS = [PicardSteps, AndersonSteps]
both = pytest.mark.parametrize("solver", SOLVERS)


def step_of(weight):
    return lambda z, h: torch.relu(apply_weight(weight, z) + h)


def solve_weight(weight, h, tolerance=1e-12, solver=PicardSteps, start=None, limit=LIMIT):
    return solve_to_tolerance(step_of(weight), torch.relu(h) if start is None else start, h, tolerance, limit, solver)


def solve_by_numpy(weight, h):
    exact = equilibrium_of(dense_operator(weight.double(), h.shape[1:]), h.double().flatten(1).numpy())
    return torch.from_numpy(exact).view(h.shape)


def same_in_any_batch(z, h):
    """A contraction, rho 0.9, whose rounding does not depend on the size of the batch."""
    return torch.relu(0.4 * z.roll(1, 1) + 0.5 * z + h)


@pytest.mark.parametrize(
    ("solver", "rho", "kernel", "signed", "dtype"), every_pair(SOLVERS, SOLVER_RHOS, [None, 3], [False, True], DTYPES)
)
def test_the_solution_is_that_of_numpy(solver, rho, kernel, signed, dtype):
    weight = random_weight(6, kernel, rho, signed).to(dtype)
    h = random_h((5, 6) if kernel is None else (5, 6, 4, 4), 0, shift=0.5).center.to(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    report = solve_weight(weight, h, tolerance, solver)
    assert report.converged.all() and (report.residual <= tolerance).all()
    assert report.value.dtype == dtype and report.iterations.shape == (5,)
    exact = solve_by_numpy(weight, h)
    assert exact.max() > 0.1
    error = (report.value.double() - exact).flatten(1).abs().amax(1)
    assert (error <= 10 * tolerance / (1 - rho) * exact.flatten(1).amax(1)).all()


@both
def test_an_answer_does_not_depend_on_the_batch(solver):
    h = random_h((9, 5), 0, shift=0.5).center * torch.logspace(-6, 6, 9, dtype=torch.float64)[:, None]
    together = solve_to_tolerance(same_in_any_batch, torch.relu(h), h, 1e-12, LIMIT, solver)
    assert together.converged.all() and len(together.iterations.unique()) > 1
    for i in range(9):
        alone = solve_to_tolerance(same_in_any_batch, torch.relu(h[i : i + 1]), h[i : i + 1], 1e-12, LIMIT, solver)
        if solver is PicardSteps:
            assert torch.equal(together.value[i], alone.value[0]) and together.iterations[i] == alone.iterations[0]
        torch.testing.assert_close(together.value[i], alone.value[0], rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("solver", "kernel", "value"), every_pair(SOLVERS, [None, 3], [float("nan"), float("inf"), -float("inf")])
)
def test_what_is_not_finite_spares_its_neighbours(solver, kernel, value):
    weight = random_weight(6, kernel, 0.9, signed=False)
    h = random_h((4, 6) if kernel is None else (4, 6, 4, 4), 0, shift=0.5).center
    broken, start = with_one(h, value), torch.relu(h)
    from_h = solve_weight(weight, broken, solver=solver, start=start)
    from_start = solve_weight(weight, h, solver=solver, start=with_one(start, value))
    for report in (from_h, from_start):
        assert report.converged[1:].all()
        torch.testing.assert_close(report.value[1:], solve_by_numpy(weight, h[1:]), rtol=1e-9, atol=1e-10)
    assert value == -torch.inf or (not from_h.converged[0] and from_h.iterations[0] < 10)


@pytest.mark.parametrize("outside", [float("nan"), float("inf"), -1e9])
def test_anderson_takes_back_a_step_that_went_wrong(outside):
    """The first two steps look as if z were 50; beyond 11 there is nothing good, and z is 10. Then two plain steps."""
    iterates = []

    def bent(z, h):
        iterates.append(z[0])
        return torch.where(z > 11, outside, torch.minimum(0.99 * z + 0.5, h))

    h = torch.full((2, 3), 10.0, dtype=torch.float64)
    h[1] = 0.3
    report = solve_to_tolerance(bent, torch.zeros_like(h), h, 1e-12, LIMIT, AndersonSteps)
    assert report.converged.all() and torch.equal(report.value, h)
    assert report.iterations[1] < 5 < report.iterations[0] < 100
    wrong = [k for k, z in enumerate(iterates) if (z > 11).any()]
    assert wrong
    for k in wrong:
        assert torch.equal(iterates[k + 1], bent(iterates[k - 1][None], h[:1])[0])
        assert torch.equal(iterates[k + 2], bent(iterates[k + 1][None], h[:1])[0])


@pytest.mark.parametrize("weight", [[[2.0]], [[1.0]], [[0.0, 9.0], [9.0, 0.0]], [[float("nan")]]])
@both
def test_what_is_no_contraction_is_not_converged(solver, weight):
    weight = torch.tensor(weight)
    report = solve_weight(weight, torch.ones(3, len(weight)), 1e-6, solver, limit=300)
    assert not report.converged.any() and (report.iterations <= 300).all()


def test_a_limit_that_is_too_small_is_reported_and_raised(monkeypatch):
    monkeypatch.setattr(layer, "_EVALUATION_LIMIT", 2)
    weight = torch.tensor([[0.9]], dtype=torch.float64)
    point = FixedPoint(weight).float().eval()
    h = torch.tensor([[-1.0], [1.0]])
    report = point.solve(h)
    assert report.converged.tolist() == [True, False]
    assert report.iterations.tolist() == [2, 4] and report.residual[1] > 1e-3, "two of Picard's, two of Anderson's"
    with pytest.raises(NotConvergedError, match="1 of 2 equilibria"):
        point(h)


@pytest.mark.parametrize("rate", [0.9999, pytest.param(-0.99999, marks=pytest.mark.slow)])
def test_equilibria_that_picard_iteration_does_not_reach_are_found(rate):
    """rho(|W|) next to 1, as small margins allow: exactly h / (1 - w) for a positive h."""
    layer = FixedPoint(torch.tensor([[rate]], dtype=torch.float64)).eval()
    h = torch.tensor([[1.0], [3.0], [-2.0]], dtype=torch.float64)
    assert not solve_weight(layer.weight.detach(), h, 1e-10).converged.all()
    solution = layer.solve(h)
    assert solution.converged.all() and (solution.iterations < 200).all()
    for z in (solution.value, layer(h).detach()):
        torch.testing.assert_close(z, torch.relu(h) / (1 - rate), rtol=1e-6, atol=0)


def test_evaluation_in_bfloat16_solves_in_float32():
    exact = FixedPoint(0.1 * torch.randn(4, 4)).eval()
    h = torch.randn(3, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = exact(h)
    for rounded in (under_autocast, copy.deepcopy(exact).bfloat16()(h)):
        torch.testing.assert_close(rounded.float(), exact(h.float()), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("kernel", [None, 3])
def test_refinement_reaches_float64(kernel, rho):
    weight = random_weight(5, kernel, rho)
    h = random_h((4, 5) if kernel is None else (4, 5, 4, 4), 0, shift=0.3).center
    exact = solutions(weight, h)
    torch.testing.assert_close(near_equilibrium(weight, h)[0], exact, rtol=0, atol=1e-11)
    rough = exact + 1e-6 * torch.randn_like(exact)
    assert (refine(weight, h, rough)[0] - exact).abs().max() < 1e-11


@pytest.mark.parametrize("kernel, count", [(None, 2), (3, 1)])
def test_a_follower_is_near_the_network_and_its_gradient(kernel, count):
    model = folded_network(kernel, count)
    follower = copy.deepcopy(model)
    use_attack_solvers(follower)
    assert not any(isinstance(module, FixedPoint) for module in follower.modules())
    x = torch.randn(3, 3) if kernel is None else torch.randn(3, 1, 3, 3)
    for moved in (x.double(), x.double() + 0.1):
        exact = exact_outputs(model, moved[None])[0]
        assert (follower(moved) - exact).abs().max() <= 2e-2 * exact.abs().max()
        gradients = []
        for network in (model, follower):
            point = moved.clone().requires_grad_()
            gradients.append(torch.autograd.grad(network(point).sum(), point)[0])
        torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05 * gradients[0].abs().max().item())


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def read_as_on_a_gpu(monkeypatch, module):
    monkeypatch.setattr(module, "is_host_reading", lambda step, device: is_host_reading(step, CUDA))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("limit", [1000, 37])  # the latter is no step that is read
def test_solutions_are_the_same_bit_by_bit(monkeypatch, name, limit):
    h = torch.randn(20, 6, dtype=torch.float64) * torch.logspace(-3, 3, 20, dtype=torch.float64)[:, None]
    h[3] = torch.nan
    tolerance = torch.logspace(-1, -12, 20, dtype=torch.float64)
    expected = solver.solve_to_tolerance(same_in_any_batch, torch.relu(h), h, tolerance, limit, name)
    read_as_on_a_gpu(monkeypatch, solver)
    result = solver.solve_to_tolerance(same_in_any_batch, torch.relu(h), h, tolerance, limit, name)
    assert len(expected.iterations.unique()) > 3
    for field, value in vars(expected).items():
        assert torch.equal(value.nan_to_num(7), getattr(result, field).nan_to_num(7)), field
