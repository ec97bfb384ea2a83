"""`python -m harness.publish`: the files that it copies, and the old study that stays where it fails."""

import dataclasses
import hashlib
import json
import subprocess

import pandas as pd
import pytest
from made_studies import add, right

from harness import publish
from harness.command_line import INTERRUPTED, main
from harness.leaderboard.changed import changed_files
from harness.leaderboard.evaluations import read_evaluations
from harness.storage import folder, parquet, study_tables
from harness.storage.parquet import read_table


@pytest.fixture
def study(tmp_path):
    """Two finished evaluations with all files that they and their networks leave, and one without a result."""
    sweep = tmp_path / "results/study"
    evaluation_dirs = [add(sweep, right(100, seed), seed=seed) for seed in range(3)]
    for path in evaluation_dirs:
        network_dir = folder.network_of(path)
        for file in (network_dir / folder.CHECKPOINT, network_dir / folder.WEIGHTS, path / folder.COUNTEREXAMPLES):
            file.write_bytes(bytes(1000))
        folder.write_choice(network_dir, {"text": "a search", "search": "tpe-0"})
    (evaluation_dirs[2] / folder.RESULT).unlink()
    return sweep, evaluation_dirs, tmp_path / "published"


@pytest.fixture
def published(study):
    """A study published before."""
    _, _, target = study
    (target / "study").mkdir(parents=True)
    (target / "study/evaluations.parquet").write_text("")
    (target / "study/old").write_text("")
    return lambda: [str(path.relative_to(target)) for path in target.rglob("*")]


def run(sweep, target, *options):
    return main("publish", [str(sweep), "--to", str(target), *options])


def test_results_are_copied_with_the_proofs_of_selected_networks(study, published, capsys):
    sweep, evaluation_dirs, target = study
    result = folder.read_result(evaluation_dirs[0])
    data = {"name": "cifar10", "directory": "/home/me/data"}
    folder.write_result(evaluation_dirs[0], dataclasses.replace(result, data=data))
    assert run(sweep, target, "--weights", "* seed 1") == 0
    assert "2 networks, 1 unfinished ones skipped, 1 with their weights" in capsys.readouterr().out
    changed, of_network = {folder.RESULT, folder.VERDICTS, folder.TRAINED}, {folder.EVALUATIONS}
    of_network |= {folder.TRAINING, folder.STUDY, folder.TRAINED, folder.EPOCHS, folder.CHOSEN}
    of_evaluation = {folder.EVALUATION, folder.RESULT, folder.VERDICTS}
    for path, weights, counterexamples in (
        (evaluation_dirs[0], set(), set()),
        (evaluation_dirs[1], {folder.WEIGHTS}, {folder.COUNTEREXAMPLES}),
    ):
        copy = target / "study" / path.relative_to(sweep)
        assert {file.name for file in folder.network_of(copy).iterdir()} == of_network | weights
        assert {file.name for file in copy.iterdir()} == of_evaluation | counterexamples
        copies = [file for file in folder.network_of(copy).rglob("*") if file.is_file() and file.name not in changed]
        assert all(file.read_bytes() == (sweep / file.relative_to(target / "study")).read_bytes() for file in copies)
        copied, verdicts = read_table(copy / folder.VERDICTS), read_table(path / folder.VERDICTS)
        assert copied["width"].dtype == "float32"
        pd.testing.assert_frame_equal(copied.astype(verdicts.dtypes), verdicts, rtol=1e-7, atol=0)
    first = target / "study" / evaluation_dirs[0].relative_to(sweep)
    assert folder.read_result(first).data == data | {"directory": None}
    assert not folder.network_of(target / "study" / evaluation_dirs[2].relative_to(sweep)).exists()
    assert json.loads((target / "study/leaderboard.json").read_text())[0]["seeds"] == 2
    paths = read_evaluations(target / "study")["evaluation_dir"].map(lambda path: path.relative_to(target / "study"))
    assert set(paths) == {path.relative_to(sweep) for path in evaluation_dirs[:2]}
    assert "study/old" not in published() and [path.name for path in target.iterdir()] == ["study"]


def test_the_page_and_the_sweep_file_of_a_study_stay_when_it_is_published_again(study, published):
    sweep, _, target = study
    for name in ("README.md", "study.yaml"):
        (target / "study" / name).write_text("mine")
    assert run(sweep, target) == 0
    assert {"study/README.md", "study/study.yaml", "study/verdicts.parquet"} <= {*published()}
    assert (target / "study/study.yaml").read_text() == "mine"


def test_a_study_too_large_for_git_replaces_nothing(study, published, monkeypatch, capsys):
    sweep, _, target = study
    monkeypatch.setattr(publish, "LIMIT_MIB", 0.001)
    assert run(sweep, target) == 2
    assert "the limit is 0.001 MiB" in capsys.readouterr().err
    assert set(published()) == {"study", "study/old", "study/evaluations.parquet"}


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(28, "no space left on device"), 1), (KeyboardInterrupt(), INTERRUPTED)]
)
def test_the_old_study_stays_where_the_command_ends_early(study, published, monkeypatch, error, status):
    sweep, _, target = study

    def fail(*_):
        raise error

    monkeypatch.setattr("harness.publish.write_leaderboard", fail)
    assert run(sweep, target) == status
    assert set(published()) == {"study", "study/old", "study/evaluations.parquet"}


def test_a_study_that_a_killed_command_has_put_aside_is_left_and_named(study, published, capsys):
    sweep, _, target = study
    (target / ".study.before").mkdir()
    assert run(sweep, target) == 2
    assert f"{target / '.study.before'} was put aside" in capsys.readouterr().err
    assert set(published()) == {"study", "study/old", "study/evaluations.parquet", ".study.before"}


def test_a_link_is_published_to_where_it_leads_and_a_study_never_onto_itself(study, capsys):
    sweep, _, target = study
    (target / "elsewhere").mkdir(parents=True)
    (target / "study").symlink_to("elsewhere")
    assert run(sweep, target) == 0
    assert (target / "study").is_symlink() and (target / "elsewhere/evaluations.parquet").is_file()
    assert run(target / "study", target) == 2
    assert "another directory" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["networks/a/log.txt", "notes.md"])
def test_what_is_not_a_published_study_is_never_replaced(study, published, file, capsys):
    sweep, _, target = study
    path = target / "study" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    if file == "notes.md":
        (target / "study/evaluations.parquet").unlink()
    assert run(sweep, target) == 2
    assert "whose study is empty, absent or a published study" in capsys.readouterr().err and path.exists()


@pytest.mark.parametrize(
    ("missing", "options", "message"),
    [
        (None, ["--weights", "vgg*"], "cnn5 ibp seed 0"),
        (folder.WEIGHTS, ["--weights", "cnn5*"], "these networks have no stored weights: cnn5 ibp seed"),
        (folder.RESULT, [], "holds no finished"),
    ],
)
def test_missing_results_and_weights_are_bad_input(study, missing, options, message, capsys):
    sweep, evaluation_dirs, target = study
    for path in evaluation_dirs[:2] if missing else ():
        ((path if missing == folder.RESULT else folder.network_of(path)) / missing).unlink()
    assert run(sweep, target, *options) == 2
    assert message in capsys.readouterr().err and not target.exists()


@pytest.fixture
def repository(study, capsys):
    """A repository whose last commit holds a published study, and a function that runs git there."""
    sweep, _, target = study
    root = target.parent

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True).stdout

    assert run(sweep, root / "results/published", "--weights", "* seed 0") == 0
    page = root / "results/ARTEFACTS.md"
    page.write_text("| study | MB | commit | SHA-256 |\n| --- | --- | --- | --- |\n| z | 1.0 | `0` | `0` |\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "Results")
    capsys.readouterr()
    return root / "results/published/study", page, git


def test_only_tables_are_left_and_the_commit_brings_the_rest_back(repository):
    published, page, git = repository
    (published / "README.md").write_text("# Does it help?\n")  # in no commit
    before = {path.relative_to(published): path.read_bytes() for path in published.rglob("*") if path.is_file()}
    rows = read_evaluations(published)
    verdicts = {path: parquet.read_verdicts(path)["verdict"] for path in rows["evaluation_dir"]}
    assert main("publish", [str(published), "--tables-of", "HEAD"]) == 0
    left = {
        "README.md",
        "leaderboard.md",
        "leaderboard.csv",
        "leaderboard.json",
        "evaluations.parquet",
        "verdicts.parquet",
    }
    assert main("tables", [str(published)]) == 0
    assert {path.name for path in published.iterdir()} == left and not changed_files(published)
    stored = read_evaluations(published)
    pd.testing.assert_frame_equal(stored, rows)
    for path in stored["evaluation_dir"]:
        table = study_tables.read_stored_verdicts(path, ["index", "verdict"])
        assert table["verdict"].tolist() == verdicts[path].tolist() and table["index"].tolist() == [*range(200)]
    commit, archive = git("rev-parse", "HEAD").decode().strip(), git("archive", "HEAD", "results/published/study")
    digest = hashlib.sha256(archive).hexdigest()
    assert page.read_text().splitlines()[2:] == [
        f"| study | {len(archive) / 1e6:.1f} | `{commit}` | `{digest}` |",
        "| z | 1.0 | `0` | `0` |",
    ]
    subprocess.run(["tar", "x", "-C", page.parents[1]], input=archive, check=True)
    assert {path.relative_to(published): path.read_bytes() for path in published.rglob("*") if path.is_file()} == before


def test_what_the_commit_lacks_is_not_removed(repository, capsys):
    published, page, _ = repository
    (weights,) = published.glob("networks/*/weights.safetensors")
    text = page.read_text()
    weights.write_bytes(b"others")
    assert main("publish", [str(published), "--tables-of", "HEAD"]) == 2
    assert "weights.safetensors" in capsys.readouterr().err and weights.exists() and page.read_text() == text
    for words in (["--tables-of", "nowhere"], ["--tables-of", "HEAD", "--weights", "*"]):
        assert main("publish", [str(published), *words]) == 2
    assert weights.exists() and page.read_text() == text


def test_tables_of_a_study_that_lack_an_evaluation_or_have_another_s_are_named(repository):
    published, _, _ = repository
    assert main("publish", [str(published), "--tables-of", "HEAD"]) == 0
    with pytest.raises(ValueError, match=r"verdicts\.parquet has no verdicts of networks/none"):
        study_tables.read_stored_verdicts(published / "networks/none", ["index"])
    rows = parquet.read_table(published / study_tables.EVALUATIONS)
    parquet.write_table(published / study_tables.EVALUATIONS, rows.assign(result=rows["result"].to_numpy()[::-1]))
    with pytest.raises(ValueError, match="belongs to another network"):
        study_tables.read_stored_states(published)
    (published / "evaluations.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"evaluations\.parquet cannot be read"):
        read_evaluations(published)
