"""What results/published keeps: its verdicts, a sample of them, are proved again; its tables and RESULTS.md follow."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.analysis.leaderboard import build_leaderboard
from harness.analysis.table_files import leaderboard_files, write_leaderboard
from harness.checker.verdicts import recheck
from harness.data import load
from harness.errors import InputError
from harness.storage import certification, folder, names

KEPT = ("longer-cifar10/trials/2a1ddcef30d45f24", "reduced-mnist/trials/108064df97a35809")
"""The trials whose verdicts can be proved again, each also as it was certified further."""
RESULTS = Path(__file__).resolve().parents[2] / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("published/[!.]*/trials"))
TRIALS = [RESULTS / "published" / place for place in KEPT]
PROVED = [place for trial in TRIALS for place in (trial, *certification.folders(trial))]
IMAGES = 25


def name(path):
    return path.name


def test_weights_and_certificates_are_there():
    assert {path.parent for path in RESULTS.glob(f"published/*/trials/*/{folder.WEIGHTS}")} == set(TRIALS)
    for place in PROVED:
        assert (place / folder.COUNTEREXAMPLES).is_file()
        assert (place / folder.CERTIFICATES).is_file() == (place not in TRIALS)
    assert len(PROVED) == 2 * len(TRIALS)


@pytest.mark.parametrize("place", PROVED, ids=name)
def test_verdicts_that_have_their_weights_are_confirmed(place):
    trial = place if place in TRIALS else certification.trial_of(place)
    try:
        load(folder.read_trial(trial / folder.TRIAL).config.dataset)
    except InputError as error:
        pytest.skip(str(error))
    found = recheck(place, limit=IMAGES)
    assert found.images == IMAGES and found.is_confirmed, found.problems


@pytest.mark.parametrize("study", STUDIES, ids=name)
def test_tables_are_those_of_the_verdicts(study, tmp_path):
    copied = tmp_path / study.name
    shutil.copytree(study, copied)
    write_leaderboard(copied)
    for path in leaderboard_files(copied):
        assert path.read_text() == (study / path.name).read_text()
    for place in folder.trial_folders(study):
        verdicts = folder.read_verdicts(place, [names.VERDICT])[names.VERDICT]
        certified = folder.read_result(place).metrics[names.CERTIFIED_ERROR]
        assert certified == pytest.approx(100 * (verdicts != names.CERTIFIED).mean())


@pytest.mark.parametrize("study", STUDIES, ids=name)
def test_results_tell_every_row_as_the_leaderboard_does(study):
    told = (RESULTS / "RESULTS.md").read_text()
    rows = build_leaderboard(study).sections[0].own
    for mean, std in rows[[names.CERTIFIED_ERROR, f"{names.CERTIFIED_ERROR}_std"]].to_numpy():
        several = "" if pd.isna(std) else f" ± {std:.2f}"
        assert f"| {mean:.2f}{several} |" in told
