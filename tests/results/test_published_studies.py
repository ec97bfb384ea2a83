"""The studies in results/published: tables, ARTEFACTS.md and results/*.md match; some verdicts are proved again.

Weights and proofs are brought back from git's history, if it is there.
"""

import hashlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from harness.checker.verdicts import recheck
from harness.common import names
from harness.common.errors import InputError
from harness.data import load
from harness.leaderboard import changed
from harness.leaderboard.table import build_leaderboard
from harness.storage import artefacts, certification, folder, study_tables
from harness.storage.parquet import read_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("published/[!.]*/trials.parquet"))
ARTEFACTS = {
    study: (commit, digest)
    for study, commit, digest in re.findall(
        r"^\| (\S+) \| [\d.]+ \| `(\w{40})` \| `(\w{64})` \|$", (RESULTS / artefacts.PAGE).read_text(), re.MULTILINE
    )
}
_STAGES = "ibp+crown-ibp+alpha-crown+bab-2000branches"
CERTIFIED_FURTHER = (
    f"longer-cifar10/trials/2a1ddcef30d45f24/certified/{_STAGES}-4000-images-certificates",
    f"reduced-mnist/trials/108064df97a35809/certified/{_STAGES}-1000-images-certificates",
)
LONGEST_KEYS = """
    96574009dc62543c 96b288b8d78f2bed c0013f04572ff2a6 f51ef0b435b4e828 13afacd2f3e0fa60 1c204e5b80d69693
    265a31d80a04e79b a17fc5aeb06fa554 a849d20ef138f08d 99e8b35ea21f6a0d 63df53702e012098 844894fffecd543b
    104b4fef48c45194 9b14337cfa459824 258aee3c964363ea d40b48c4a8d8b55d b9cb35896c418a8a 9934f94e6157787a
"""
LONGEST = [f"length-cifar10/trials/{key}" for key in LONGEST_KEYS.split()]
WITH_ALL_CERTIFICATES = [
    f"{study}/{name}"
    for study in (
        "mnist-conv",
        "small-equilibria",
        "small-equilibria-0.1",
        "small-equilibria-cifar10",
        "small-equilibria-units",
    )
    for name in read_table(RESULTS / f"published/{study}/trials.parquet")["folder"]
]
TRIALS = [*(name.partition("/certified")[0] for name in CERTIFIED_FURTHER), *LONGEST, *sorted(WITH_ALL_CERTIFICATES)]
IMAGES = 5
ONE_OF_EACH_KIND = (0, 1, 11, 12, 24, 28, 42, 48, 54, 110, 164)
OFTEN = {*(TRIALS[number] for number in ONE_OF_EACH_KIND), *CERTIFIED_FURTHER}
EXAMPLES = sorted(RESULTS.glob("example/trials/*"))


def name(path):
    return path.name


@cache
def archive(study, below=""):
    """The tar archive of a study, or of a folder in it, at its commit in ARTEFACTS.md; skips without the history."""
    try:
        return artefacts.archive_of(ROOT, ARTEFACTS[study][0], f"results/published/{study}{below}")
    except (InputError, FileNotFoundError) as error:
        pytest.skip(f"git's history is not here, and has the artefacts: {error}")


def bring_back(study, directory, below=""):
    subprocess.run(["tar", "x", "-C", directory], input=archive(study, below), check=True)
    return directory / "results/published" / study


@cache
def files_of(study):
    """The paths below a study's folder at its commit."""
    command = ["git", "-C", ROOT, "ls-tree", "-r", "--name-only", ARTEFACTS[study][0], f"results/published/{study}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"git's history is not here: {listed.stderr}")
    return [path.removeprefix("results/published/") for path in listed.stdout.splitlines()]


def check_verdicts(directory, trial_dir):
    try:
        load(folder.read_trial(trial_dir / folder.TRIAL).config.dataset)
    except InputError as error:
        pytest.skip(str(error))
    report = recheck(directory, limit=IMAGES)
    assert report.images == IMAGES and report.is_confirmed, report.problems


def test_every_study_is_listed_and_the_tables_are_small():
    assert [path.name for path in STUDIES] == sorted(ARTEFACTS)
    assert sum(path.stat().st_size for path in RESULTS.glob("published/*/*.parquet")) < 8e6
    assert sum(path.stat().st_size for path in RESULTS.rglob("example/**/*.safetensors")) < 3e6
    for study in STUDIES:
        assert (ROOT / f"sweeps/{study.name}.yaml").is_file()


def test_weights_and_certificates_exist():
    files = [path for study in ARTEFACTS for path in files_of(study)]
    assert {path.removesuffix(f"/{folder.WEIGHTS}") for path in files if path.endswith(folder.WEIGHTS)} == set(TRIALS)
    further = [path for path in files if path.endswith(certification.CERTIFICATION)]
    further = [path for path in further if path.split("/certified/")[0] in TRIALS]
    assert sorted(str(Path(path).parent) for path in further) == sorted(CERTIFIED_FURTHER)
    assert not {f"{path}/{folder.CERTIFICATES}" for path in (*CERTIFIED_FURTHER, *WITH_ALL_CERTIFICATES)} - set(files)
    assert not {f"{path}/{folder.COUNTEREXAMPLES}" for path in (*CERTIFIED_FURTHER, *TRIALS)} - set(files)


@pytest.mark.parametrize("trial_dir", EXAMPLES, ids=name)
def test_the_example_is_confirmed(trial_dir):
    for directory in (trial_dir, *certification.folders(trial_dir)):
        check_verdicts(directory, trial_dir)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path in OFTEN else pytest.mark.slow) for path in [*TRIALS, *CERTIFIED_FURTHER]],
    ids=lambda path: path.rpartition("/")[2],
)
def test_verdicts_with_weights_are_confirmed(path, tmp_path):
    study, _, below = path.partition("/")
    directory = bring_back(study, tmp_path, f"/{below.partition('/certified')[0]}") / below
    check_verdicts(directory, certification.trial_of(directory) if "/certified/" in path else directory)


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=name)
def test_a_study_comes_back_as_its_line_and_its_tables_say(study, tmp_path):
    assert hashlib.sha256(archive(study.name)).hexdigest() == ARTEFACTS[study.name][1]
    back = bring_back(study.name, tmp_path)
    study_tables.write_study_tables(back, tmp_path)
    for file in (study_tables.TRIALS, study_tables.VERDICTS):
        pd.testing.assert_frame_equal(read_table(tmp_path / file), read_table(study / file))


@pytest.mark.parametrize(
    "study", [pytest.param(path, marks=pytest.mark.slow if number % 3 else ()) for number, path in enumerate(STUDIES)],
    ids=name,
)  # fmt: skip
def test_tables_and_results_match_the_verdicts(study, monkeypatch):
    leaderboard = build_leaderboard(study)
    monkeypatch.setattr(changed, "build_leaderboard", lambda _: leaderboard)
    assert all((study / f"leaderboard.{kind}").exists() for kind in ("md", "csv", "json"))
    assert not changed.changed_files(study)
    for trial_dir, certified in leaderboard.trials[["trial_dir", names.CERTIFIED_ERROR]].to_numpy():
        verdicts = study_tables.read_stored_verdicts(trial_dir, [names.VERDICT])[names.VERDICT]
        assert certified == pytest.approx(100 * (verdicts != names.CERTIFIED).mean())
    text = "".join(page for page in (path.read_text() for path in RESULTS.glob("*.md")) if study.name in page)
    rows = leaderboard.sections[0].own
    for mean, std in rows[[names.CERTIFIED_ERROR, f"{names.CERTIFIED_ERROR}_std"]].to_numpy():
        several = "" if pd.isna(std) else f" ± {std:.2f}"
        assert f"| {mean:.2f}{several} |" in text
