"""The studies in results/published: some verdicts are proved again; tables and results/*.md match the verdicts."""

from pathlib import Path

import pandas as pd
import pytest

from harness.checker.verdicts import recheck
from harness.common import names
from harness.common.errors import InputError
from harness.data import load
from harness.leaderboard.files import changed_files, leaderboard_files
from harness.leaderboard.table import build_leaderboard
from harness.storage import certification, folder

RESULTS = Path(__file__).resolve().parents[2] / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("published/[!.]*/trials"))
CERTIFIED_FURTHER = ("longer-cifar10/trials/2a1ddcef30d45f24", "reduced-mnist/trials/108064df97a35809")
FULL_LENGTH = sorted(RESULTS.glob("published/mnist-conv/trials/*"))
LONGEST_KEYS = """
    96574009dc62543c 96b288b8d78f2bed c0013f04572ff2a6 f51ef0b435b4e828 13afacd2f3e0fa60 1c204e5b80d69693
    265a31d80a04e79b a17fc5aeb06fa554 a849d20ef138f08d 99e8b35ea21f6a0d 63df53702e012098 844894fffecd543b
    104b4fef48c45194 9b14337cfa459824 258aee3c964363ea d40b48c4a8d8b55d b9cb35896c418a8a 9934f94e6157787a
"""
LONGEST = [f"length-cifar10/trials/{key}" for key in LONGEST_KEYS.split()]
TRIALS = [*(RESULTS / "published" / name for name in (*CERTIFIED_FURTHER, *LONGEST)), *FULL_LENGTH]
CERTIFICATIONS = [directory for trial_dir in TRIALS for directory in certification.folders(trial_dir)]
IMAGES = 10
OFTEN = {*TRIALS[::6], TRIALS[1], *CERTIFICATIONS}


def name(path):
    return path.name


def test_weights_and_certificates_exist():
    assert {path.parent for path in RESULTS.glob(f"published/*/trials/*/{folder.WEIGHTS}")} == set(TRIALS)
    assert len(CERTIFICATIONS) == len(CERTIFIED_FURTHER)
    for directory in (*CERTIFICATIONS, *FULL_LENGTH):
        assert (directory / folder.CERTIFICATES).is_file()
    for directory in (*TRIALS, *CERTIFICATIONS):
        assert (directory / folder.COUNTEREXAMPLES).is_file()


@pytest.mark.parametrize(
    "directory",
    [pytest.param(path, marks=() if path in OFTEN else pytest.mark.slow) for path in [*TRIALS, *CERTIFICATIONS]],
    ids=name,
)
def test_verdicts_with_weights_are_confirmed(directory):
    trial_dir = directory if directory in TRIALS else certification.trial_of(directory)
    try:
        load(folder.read_trial(trial_dir / folder.TRIAL).config.dataset)
    except InputError as error:
        pytest.skip(str(error))
    report = recheck(directory, limit=IMAGES)
    assert report.images == IMAGES and report.is_confirmed, report.problems


@pytest.mark.parametrize("study", STUDIES, ids=name)
def test_tables_and_results_match_the_verdicts(study):
    assert all(path.exists() for path in leaderboard_files(study)) and not changed_files(study)
    for trial_dir in folder.trial_folders(study):
        verdicts = folder.read_verdicts(trial_dir, [names.VERDICT])[names.VERDICT]
        certified = folder.read_result(trial_dir).metrics[names.CERTIFIED_ERROR]
        assert certified == pytest.approx(100 * (verdicts != names.CERTIFIED).mean())
    text = "".join(page for page in (path.read_text() for path in RESULTS.glob("*.md")) if study.name in page)
    rows = build_leaderboard(study).sections[0].own
    for mean, std in rows[[names.CERTIFIED_ERROR, f"{names.CERTIFIED_ERROR}_std"]].to_numpy():
        several = "" if pd.isna(std) else f" ± {std:.2f}"
        assert f"| {mean:.2f}{several} |" in text
