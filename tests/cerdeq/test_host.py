"""The host of a GPU reads seldom whether an iteration is done, which changes none of its results."""

import pytest
import torch
from test_solver import same_in_any_batch

from cerdeq.bounds.host import is_read
from cerdeq.equilibrium import adjoint, solver

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def read_as_on_a_gpu(monkeypatch, module):
    monkeypatch.setattr(module, "is_read", lambda step, device: is_read(step, CUDA))


def test_less_than_a_quarter_of_the_steps_are_in_vain():
    reads = [step for step in range(1, 2000) if is_read(step, CUDA)]
    assert all(is_read(step, CPU) for step in range(2000)) and len(reads) < 50
    for done in range(1, 1500):
        first = next(step for step in reads if step >= done)
        assert first - done < done / 4 or first == done


@pytest.mark.parametrize("name", solver.SOLVERS)
@pytest.mark.parametrize("limit", [1000, 37])  # the latter is no step that is read
def test_solutions_are_the_same_bit_by_bit(monkeypatch, name, limit):
    h = torch.randn(20, 6, dtype=torch.float64) * torch.logspace(-3, 3, 20, dtype=torch.float64)[:, None]
    h[3] = torch.nan
    tolerance = torch.logspace(-1, -12, 20, dtype=torch.float64)
    expected = solver.solve(same_in_any_batch, torch.relu(h), h, tolerance, limit, name)
    read_as_on_a_gpu(monkeypatch, solver)
    result = solver.solve(same_in_any_batch, torch.relu(h), h, tolerance, limit, name)
    assert len(expected.iterations.unique()) > 3
    for field, value in vars(expected).items():
        assert torch.equal(value.nan_to_num(7), getattr(result, field).nan_to_num(7)), field


def test_multipliers_are_the_same_bit_by_bit(monkeypatch):
    coefficients, radius = torch.randn(3, 4, 5), torch.rand(3, 5)
    rates = torch.linspace(0.1, 0.95, 12).view(3, 4, 1)

    def settled():
        return adjoint._settled(lambda multiplier: coefficients + rates * multiplier, coefficients, radius, 1e-5)

    expected = settled()
    read_as_on_a_gpu(monkeypatch, adjoint)
    assert torch.equal(settled(), expected)
