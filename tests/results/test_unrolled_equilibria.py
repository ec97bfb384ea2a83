"""`unroll_equilibria.py`: after many steps a network is the equilibrium, whose verdicts are stored."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "results" / "example"


def test_many_steps_have_the_errors_of_the_equilibrium_and_none_those_of_other_weights():
    if not os.environ.get("CERDEQ_DATA"):
        pytest.skip("CERDEQ_DATA is not set")
    command = [sys.executable, ROOT / "results/published/recurrence/unroll_equilibria.py", EXAMPLE, "--images", "200"]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    )
    row = run.stdout.splitlines()[-1]
    (path,) = EXAMPLE.glob("networks/*/evaluations/35b59961254b4bb3/verdicts.parquet")
    verdicts = pd.read_parquet(path)[:200]
    standard = 100 * (verdicts["prediction"] != verdicts["label"]).mean()
    certified = 100 * (~(verdicts["margin_ibp"] > 0)).mean()
    none, *_, many = (cell for cell in row.split("  ") if "/" in cell)
    assert many.strip() == f"{standard:.2f} / {certified:.2f}" != none.strip()
