"""The studies in results/published: tables, ARTEFACTS.md and the pages match; some verdicts are proved again.

Weights and proofs are brought back from git's history, if it is there. Today's code checks those in networks/; the code
of their commit checks those of an older version, in trials/, as ARTEFACTS.md says.
"""

import hashlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path, PurePath

import pandas as pd
import pytest
from project_sweeps import SWEEPS

from harness.checker.evaluation import recheck
from harness.common import names
from harness.common.errors import InputError
from harness.data import load
from harness.leaderboard import changed
from harness.leaderboard.table import build_leaderboard
from harness.storage import artefacts, folder, study_tables
from harness.storage.parquet import read_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob(f"published/[!.]*/{study_tables.EVALUATIONS}"))
ARTEFACTS = {
    study: (commit, digest)
    for study, commit, digest in re.findall(
        r"^\| (\S+) \| [\d.]+ \| `(\w{40})` \| `(\w{64})` \|$", (RESULTS / artefacts.PAGE).read_text(), re.MULTILINE
    )
}
WITH_ALL_CERTIFICATES = {
    "mnist-conv": 45,
    "recurrence": 15,
    "recurrence-conv": 15,
    "recurrence-steps": 5,
    "small-equilibria": 45,
    "small-equilibria-0.1": 45,
    "small-equilibria-cifar10": 12,
    "small-equilibria-units": 18,
}
WITH_WEIGHTS = {"longer-cifar10": 1, "reduced-mnist": 1, "length-cifar10": 18, **WITH_ALL_CERTIFICATES}
"""How many networks of a study have stored weights."""
ONE_OF_EACH_KIND = {"recurrence": [0, 1, 7], "recurrence-conv": [0, 1, 2, 3], "recurrence-steps": [0]}
"""Networks in networks/, by their number."""
NETWORKS = [(study, number) for study in ONE_OF_EACH_KIND for number in range(WITH_WEIGHTS[study])]
OLDER_COMMITS = ("2bfde4a8", "031f4d21", "ccd15eb9", "efecd75f", "406c8ce4")
IN_TRIALS = [study for study, (commit, _) in ARTEFACTS.items() if commit.startswith(OLDER_COMMITS)]
"""Studies of an older version."""
IMAGES = 5
EXAMPLES = sorted(RESULTS.glob("example/networks/*/evaluations/*"))


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


@cache
def folders_with_weights(study):
    """The folders of a study's networks with weights at its commit."""
    return sorted(str(PurePath(path).parent) for path in files_of(study) if path.endswith(f"/{folder.WEIGHTS}"))


def require_data(dataset):
    try:
        load(dataset)
    except InputError as error:
        pytest.skip(str(error))


def check_verdicts(evaluation_dir):
    require_data(folder.read_training(folder.network_of(evaluation_dir) / folder.TRAINING).config.dataset)
    report = recheck(evaluation_dir, stop=IMAGES)
    assert report.images == IMAGES and report.is_confirmed, report.problems


def test_every_study_is_listed_and_the_tables_are_small():
    assert [path.name for path in STUDIES] == sorted(ARTEFACTS)
    assert sum(path.stat().st_size for path in RESULTS.glob("published/*/*.parquet")) < 8e6
    assert sum(path.stat().st_size for path in RESULTS.rglob("example/**/*.safetensors")) < 3e6
    for study in STUDIES:
        assert any(path.stem == study.name for path in SWEEPS)
        assert f"](published/{study.name}/README.md)" in (RESULTS / "README.md").read_text()


def folders_with(file, files):
    """The folders of networks or trials that have it, in older layouts directly, and those of their evaluations."""
    found = [PurePath(path) for path in files if path.endswith(f"/{file}")]
    return {str(path.parent) for path in found} | {str(path.parents[2]) for path in found}


@pytest.mark.parametrize("study", ARTEFACTS)
def test_weights_and_certificates_exist(study):
    files, network_dirs = set(files_of(study)), folders_with_weights(study)
    assert len(network_dirs) == WITH_WEIGHTS.get(study, 0)
    further = [PurePath(path).parent for path in files if path.endswith("/certification.json")]
    further = [str(path) for path in further if str(path.parents[1]) in network_dirs]
    assert len(further) == (study in ("longer-cifar10", "reduced-mnist"))
    proved = [*further, *(network_dirs if study in WITH_ALL_CERTIFICATES else [])]
    assert not set(proved) - folders_with(folder.CERTIFICATES, files)
    assert not {*further, *network_dirs} - folders_with(folder.COUNTEREXAMPLES, files)


@pytest.mark.parametrize("evaluation_dir", EXAMPLES, ids=name)
def test_the_example_is_confirmed(evaluation_dir):
    check_verdicts(evaluation_dir)


@pytest.mark.parametrize(
    "study, number",
    [
        pytest.param(study, number, marks=() if number in ONE_OF_EACH_KIND[study] else pytest.mark.slow)
        for study, number in NETWORKS
    ],
)
def test_verdicts_with_weights_are_confirmed(study, number, tmp_path):
    back = bring_back(study, tmp_path, folders_with_weights(study)[number].removeprefix(study))
    (network_dir,) = folder.network_folders(back)
    listed = set(read_table(RESULTS / f"published/{study}" / study_tables.EVALUATIONS)[study_tables.FOLDER])
    for evaluation_dir in folder.evaluation_folders(network_dir):
        assert evaluation_dir.relative_to(back).as_posix() in listed
        check_verdicts(evaluation_dir)


@pytest.mark.parametrize(
    "study",
    [
        pytest.param(study, marks=() if study == "reduced-mnist" else pytest.mark.slow)
        for study in IN_TRIALS
        if study in WITH_WEIGHTS
    ],
)
def test_the_code_of_an_older_study_confirms_its_verdicts(study, tmp_path):
    require_data("cifar10" if "cifar10" in study else "mnist")
    back = bring_back(study, tmp_path, folders_with_weights(study)[0].removeprefix(study))
    code = artefacts.archive_of(ROOT, ARTEFACTS[study][0], "harness", "baselines", "cerdeq", "pyproject.toml")
    subprocess.run(["tar", "x", "-C", tmp_path], input=code, check=True)
    command = [sys.executable, "-m", "harness.recheck", back, "--images", str(IMAGES)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0 and "every verdict of the checked images is confirmed" in shown.stdout, shown


@pytest.mark.slow
@pytest.mark.parametrize("study", ARTEFACTS)
def test_the_digest_in_a_line_is_that_of_the_archive(study):
    assert hashlib.sha256(archive(study)).hexdigest() == ARTEFACTS[study][1]


@pytest.mark.slow
@pytest.mark.parametrize("study", [path for path in STUDIES if path.name not in IN_TRIALS], ids=name)
def test_a_study_comes_back_as_its_tables_say(study, tmp_path):
    back = bring_back(study.name, tmp_path)
    study_tables.write_study_tables(back, tmp_path)
    for file in (study_tables.EVALUATIONS, study_tables.VERDICTS):
        pd.testing.assert_frame_equal(read_table(tmp_path / file), read_table(study / file))
    for kind in ("md", "csv", "json"):
        assert (back / f"leaderboard.{kind}").read_text() == (study / f"leaderboard.{kind}").read_text()


@pytest.mark.parametrize(
    "study", [pytest.param(path, marks=pytest.mark.slow if number % 3 else ()) for number, path in enumerate(STUDIES)],
    ids=name,
)  # fmt: skip
def test_tables_and_results_match_the_verdicts(study, monkeypatch):
    leaderboard = build_leaderboard(study)
    monkeypatch.setattr(changed, "build_leaderboard", lambda _: leaderboard)
    assert all((study / f"leaderboard.{kind}").exists() for kind in ("md", "csv", "json"))
    assert not changed.changed_files(study)
    for evaluation_dir, certified in leaderboard.table[["evaluation_dir", names.CERTIFIED_ERROR]].to_numpy():
        verdicts = study_tables.read_stored_verdicts(evaluation_dir, [names.VERDICT])[names.VERDICT]
        assert certified == pytest.approx(100 * (verdicts != names.CERTIFIED).mean())
    pages = [study / "README.md", *RESULTS.glob("*.md"), *RESULTS.glob("published/*/README.md")]
    text = "".join(page for page in (path.read_text() for path in pages) if study.name in page)
    rows = leaderboard.sections[0].own
    for mean, std in rows[[names.CERTIFIED_ERROR, f"{names.CERTIFIED_ERROR}_std"]].to_numpy():
        several = "" if pd.isna(std) else f" ± {std:.2f}"
        assert f"| {mean:.2f}{several} |" in text
