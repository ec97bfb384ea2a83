"""`python -m harness.tightness`: the table of methods, on a trained trial."""

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.command_line import main
from harness.measure import tightness
from harness.storage import folder, names
from harness.training import run_trial


@pytest.fixture(scope="module")
def trained(tiny_trial, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    run_trial(tiny_trial(width=0.05), directory=place)
    return place


def test_the_measured_bounds_are_those_of_the_verdicts(trained):
    verdicts = pd.read_parquet(trained / folder.VERDICTS)
    by_ibp, by_crown_ibp = (tightness.measure(trained, method, 60, None) for method in ("ibp", "crown-ibp"))
    proved = 100 * (verdicts[names.margin_column("ibp")] > 0).mean()
    assert by_ibp.certified == pytest.approx(proved)
    assert by_ibp.width == pytest.approx(verdicts[names.WIDTH].mean(), rel=1e-9)
    assert by_crown_ibp.width < by_ibp.width and by_crown_ibp.lower > by_ibp.lower
    assert by_crown_ibp.certified >= by_ibp.certified


def test_seconds_are_of_an_example_and_memory_is_above_that_of_the_network(trained, monkeypatch):
    clock, most = iter([5.0, 17.0]), iter([100.0, 130.0])
    monkeypatch.setattr(tightness, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(tightness, "_memory", lambda device: next(most))
    measured = tightness.measure(trained, "ibp", 3, None)
    assert (measured.seconds, measured.memory) == (4.0, 30.0)


def test_the_table_has_a_row_for_each_method(trained, capsys):
    assert main("tightness", [str(trained), "--images", "3", "--bounds", "ibp"]) == 0
    printed = capsys.readouterr().out
    assert "first 3 test images" in printed and "cnn5 ibp seed 0" in printed


def test_what_is_not_a_trained_trial_is_refused(trained, tmp_path, capsys):
    trained = shutil.copytree(trained, tmp_path / "trial")
    (trained / folder.WEIGHTS).unlink()
    assert main("tightness", [str(trained)]) == 2
    assert "weights.safetensors" in capsys.readouterr().err
    for images in ("0", "100000"):
        assert main("tightness", [str(trained), "--images", images]) == 2
        assert images in capsys.readouterr().err
    assert main("tightness", [str(trained / "nothing")]) == 2
    assert "trial.json" in capsys.readouterr().err
