"""`python -m harness.tightness`: the table of methods, on a trained trial."""

import pandas as pd
import pytest

from harness import folder, names, tightness
from harness.training import run_trial


@pytest.fixture
def trained(tiny_trial, tmp_path):
    run_trial(tiny_trial(width=0.05), directory=tmp_path)
    return tmp_path


def test_the_measured_bounds_are_those_of_the_verdicts(trained):
    verdicts = pd.read_parquet(trained / folder.VERDICTS)
    by_ibp, by_crown_ibp = (tightness.measure(trained, method, 60, None) for method in ("ibp", "crown-ibp"))
    proved = 100 * (verdicts[names.margin_column("ibp")] > 0).mean()
    assert by_ibp.certified == pytest.approx(proved)
    assert by_ibp.width == pytest.approx(verdicts[names.WIDTH].mean(), rel=1e-9)
    assert by_crown_ibp.width < by_ibp.width and by_crown_ibp.lower > by_ibp.lower
    assert by_crown_ibp.certified >= by_ibp.certified
    assert by_ibp.seconds > 0 and by_ibp.memory >= 0


def test_the_table_has_a_row_for_each_method(trained, capsys):
    assert tightness.main([str(trained), "--images", "3", "--methods", "ibp"]) == 0
    printed = capsys.readouterr().out
    assert "first 3 test images" in printed and "cnn5 ibp seed 0" in printed


def test_what_is_not_a_trained_trial_is_refused(trained, capsys):
    (trained / folder.WEIGHTS).unlink()
    assert tightness.main([str(trained)]) == 2
    assert "weights.safetensors" in capsys.readouterr().err
    for images in ("0", "100000"):
        assert tightness.main([str(trained), "--images", images]) == 2
        assert images in capsys.readouterr().err
    assert tightness.main([str(trained / "nothing")]) == 2
    assert "trial.json" in capsys.readouterr().err
