"""`python -m harness.solvers`: the table, and what it measures."""

import sys

import pytest
import torch

from harness import solvers

TINY = ["--rhos", "0.5", "0.9", "--channels", "3", "--image", "4", "--units", "6", "--batch-size", "4", "--rounds", "1"]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("weight_shape", "shape"), [((6, 6), (5, 6)), ((3, 3, 3, 3), (5, 3, 4, 4))])
def test_what_is_measured(weight_shape, shape, signed):
    problem = solvers.random_problem(weight_shape, shape, 0.9, signed, torch.device("cpu"))
    matrix = problem.weight.double().abs().flatten(2).sum(-1) if len(shape) == 4 else problem.weight.double().abs()
    assert float(torch.linalg.eigvals(matrix).abs().max()) == pytest.approx(0.9, rel=1e-6)
    found = solvers.compare(problem, solvers.our_solvers(), 1e-5, 1)
    assert list(found) == ["picard", "anderson"]
    for measured in found.values():
        assert 1 < measured.iterations <= measured.calls < 200 and measured.missed == 0
        assert 0 < measured.error < 1e-3 and measured.milliseconds > 0


def test_an_answer_that_is_wrong_shows():
    problem = solvers.random_problem((6, 6), (5, 6), 0.9, False, torch.device("cpu"))
    met = torch.tensor([True, False, True, True, False])
    found = solvers.compare(problem, {"zero": lambda step, h, tolerance: (0 * step(h, h), met)}, 1e-5, 1)["zero"]
    assert found.error == 1 and found.missed == 2 and found.calls == found.iterations == 1


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr(solvers, "torchdeq_solvers", dict)
    assert solvers.main(TINY) == 0
    device, heading, *rows = capsys.readouterr().out.splitlines()
    assert "batch 4" in device and "W >= 0" in device and heading.split()[:3] == ["equilibrium", "rho", "solver"]
    expected = [(kind, rho, method) for kind in ("convolution", "dense") for rho in ("0.5", "0.9")
                for method in ("picard", "anderson")]  # fmt: skip
    assert [tuple(row.split()[:3]) for row in rows] == expected
    assert all(len(row) == len(heading) and len(row.split()) == 8 for row in rows)


@pytest.mark.filterwarnings("ignore")  # torchdeq's own
def test_torchdeq_has_its_rows(capsys):
    pytest.importorskip("torchdeq", reason="uv sync --group compare")
    assert solvers.main(TINY) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 20 and sum("torchdeq" in row for row in rows) == 12
    assert all(float(row.split()[-2]) < 1e-3 for row in rows)


def test_without_torchdeq_it_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdeq.solver", None)
    assert solvers.main(TINY) == 2
    assert "uv run --group compare python -m harness.solvers" in capsys.readouterr().err
