"""`python -m harness.benchmark`: its tables and its JSON, at a size where only their shape means anything."""

import json
import math

import pytest
import torch

from harness.command_line import main
from harness.measure import machine, steps

SMALL = ["cnn5", "--dataset", "digits", "--width", "0.05", "--batch-size", "8", "--rounds", "1"]


@pytest.fixture
def eager_only(monkeypatch):
    monkeypatch.setattr(steps, "compiler_problem", lambda device: "not in this test")


def test_all_kinds_of_steps_are_compared_with_plain_training(eager_only, tmp_path, capsys):
    assert main("benchmark", [*SMALL, "--only", "steps", "--json", str(tmp_path / "figures.json")]) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    rows = {row["step"]: row for row in written["steps"]}
    kinds = {f"{bound}{precision} eager" for bound in steps.METHODS for precision in ("", " bf16")}
    assert set(rows) == {"plain", "plain bf16", *kinds, "sabr eager", "mtl-ibp eager", "pgd eager"}
    assert rows["plain"]["cost over plain"] == 1
    for kind, row in rows.items():
        assert row["examples/s"] == pytest.approx(rows["plain"]["examples/s"] / row["cost over plain"]), kind
        assert (row["% of matrix peak"] is None) == (kind.split()[0] in ("sabr", "mtl-ibp", "pgd")), kind
    assert written["options"]["batch_size"] == 8 and written["machine"]["matrix_peak"]["float32"] > 0
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in rows)


def test_sizes_are_scaled_one_at_a_time_and_stages_are_timed_one_by_one(tmp_path):
    arguments = [*SMALL, "--only", "scaling", "evaluation", "--json", str(tmp_path / "figures.json")]
    assert main("benchmark", arguments) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["scale"], row["size"]) for row in written["scaling"]] == [
        (what, size) for what, sizes in steps._SCALES.items() for size in sizes
    ]
    assert [row["stage"] for row in written["evaluation"]] == ["attack", "ibp", "crown-ibp", "crown", "alpha-crown"]


def test_a_peer_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main("benchmark", [*SMALL, "--against", "auto_LiRPA"]) == 2
    assert "PYTHONPATH" in capsys.readouterr().err


def test_operations_are_those_of_the_products():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert machine.operations(lambda: a @ b) == 2 * 3 * 4 * 5


def test_peak_memory_is_what_an_action_holds_at_most():
    def hold_two() -> None:
        first = torch.ones(2**23)  # 32 MiB
        torch.ones(2**23).add_(first)

    measured = machine.peak_memory(hold_two, torch.device("cpu"))
    assert math.isnan(measured) or 40 < measured < 100
