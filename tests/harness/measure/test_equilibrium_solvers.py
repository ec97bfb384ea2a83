"""`python -m harness.solvers`: the table, and what it measures."""

import sys
from types import SimpleNamespace

import pytest
import torch

from harness.command_line import main
from harness.measure.equilibrium_solvers import compare, our_solvers, random_problem

TINY = ["--rhos", "0.5", "0.9", "--channels", "3", "--image", "4", "--units", "6", "--batch-size", "4", "--rounds", "1"]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("weight_shape", "shape"), [((6, 6), (5, 6)), ((3, 3, 3, 3), (5, 3, 4, 4))])
def test_a_solver_s_iterations_calls_and_error_are_measured(weight_shape, shape, signed):
    problem = random_problem(weight_shape, shape, 0.9, signed, torch.device("cpu"))
    matrix = problem.weight.double().abs().flatten(2).sum(-1) if len(shape) == 4 else problem.weight.double().abs()
    assert float(torch.linalg.eigvals(matrix).abs().max()) == pytest.approx(0.9, rel=1e-6)
    by_solver = compare(problem, our_solvers(), 1e-5, 1)
    assert list(by_solver) == ["picard", "anderson"]
    for measured in by_solver.values():
        assert 1 < measured.iterations <= measured.calls < 200 and measured.missed == 0
        assert 0 < measured.error < 1e-3


def test_an_answer_that_is_wrong_shows():
    problem = random_problem((6, 6), (5, 6), 0.9, False, torch.device("cpu"))
    met = torch.tensor([True, False, True, True, False])
    wrong = compare(problem, {"zero": lambda step, h, tolerance: (0 * step(h, h), met)}, 1e-5, 1)["zero"]
    assert wrong.error == 1 and wrong.missed == 2 and wrong.calls == wrong.iterations == 1


def test_the_time_is_the_median_of_as_many_runs_as_rounds(monkeypatch):
    """A clock that only the solver moves: 1 ms in the run that warms up, then 2, 4 and 30."""
    now, durations = [0.0], iter([1e-3, 2e-3, 4e-3, 30e-3])
    monkeypatch.setattr("harness.measure.timing.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(step, h, tolerance):
        now[0] += next(durations)
        return step(h, h), torch.ones(5, dtype=torch.bool)

    problem = random_problem((6, 6), (5, 6), 0.9, False, torch.device("cpu"))
    assert compare(problem, {"slow": slow}, 1e-5, 3)["slow"].milliseconds == pytest.approx(4)
    assert next(durations, None) is None


def test_the_table_has_a_row_for_each_problem_and_solver(capsys, monkeypatch):
    monkeypatch.setattr("harness.measure.equilibrium_solvers.torchdeq_solvers", dict)
    assert main("solvers", TINY) == 0
    device, heading, *rows = capsys.readouterr().out.splitlines()
    assert "batch 4" in device and "W >= 0" in device and heading.split()[:3] == ["equilibrium", "rho", "solver"]
    expected = [(kind, rho, method) for kind in ("convolution", "dense") for rho in ("0.5", "0.9")
                for method in ("picard", "anderson")]  # fmt: skip
    assert [tuple(row.split()[:3]) for row in rows] == expected
    assert all(len(row) == len(heading) and len(row.split()) == 8 for row in rows)


@pytest.mark.filterwarnings("ignore")  # torchdeq's own
def test_torchdeq_has_its_rows(capsys):
    pytest.importorskip("torchdeq", reason="uv sync --group compare")
    assert main("solvers", TINY) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 20 and sum("torchdeq" in row for row in rows) == 12
    assert all(float(row.split()[-2]) < 1e-3 for row in rows)


def test_without_torchdeq_it_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdeq.solver", None)
    assert main("solvers", TINY) == 2
    assert "uv run --group compare python -m harness.solvers" in capsys.readouterr().err
