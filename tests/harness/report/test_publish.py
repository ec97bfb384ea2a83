"""`python -m harness.publish`: the files that it copies, and the old study that stays where it fails."""

import dataclasses
import json

import pandas as pd
import pytest
from made_studies import add, right

from harness import publish
from harness.command_line import INTERRUPTED, main
from harness.report.figures import catalogue
from harness.storage import folder
from harness.storage.parquet import read_table


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two finished trials with all files that a trial leaves, and one without a result."""
    monkeypatch.setattr(catalogue, "FIGURES", ())
    sweep = tmp_path / "results/study"
    trial_dirs = [add(sweep, right(100, seed), seed=seed) for seed in range(3)]
    for path in trial_dirs:
        for name in (folder.CHECKPOINT, folder.WEIGHTS, folder.COUNTEREXAMPLES):
            (path / name).write_bytes(bytes(1000))
        folder.write_chosen(path, {"text": "a search", "search": "tpe-0"})
    (trial_dirs[2] / folder.RESULT).unlink()
    return sweep, trial_dirs, tmp_path / "published"


@pytest.fixture
def published(study):
    """A study published before."""
    _, _, target = study
    (target / "study").mkdir(parents=True)
    (target / "study/report.html").write_text("")
    (target / "study/old").write_text("")
    return lambda: [str(path.relative_to(target)) for path in target.rglob("*")]


def run(sweep, target, *options):
    return main("publish", [str(sweep), "--to", str(target), *options])


def test_results_are_copied_with_the_proofs_of_selected_trials(study, published, capsys):
    sweep, trial_dirs, target = study
    result = folder.read_result(trial_dirs[0])
    data = {"name": "cifar10", "directory": "/home/me/data"}
    folder.write_result(trial_dirs[0], dataclasses.replace(result, data=data))
    assert run(sweep, target, "--weights", "* seed 1") == 0
    assert "2 trials, 1 unfinished ones skipped, 1 with their weights" in capsys.readouterr().out
    files = {folder.TRIAL, folder.EPOCHS, folder.CHOSEN, folder.VERDICTS}
    proofs = {folder.WEIGHTS, folder.COUNTEREXAMPLES}
    for path, names in ((trial_dirs[0], files), (trial_dirs[1], files | proofs)):
        copy = target / "study/trials" / path.name
        assert {file.name for file in copy.iterdir()} == names | {folder.RESULT}
        assert all((copy / name).read_bytes() == (path / name).read_bytes() for name in names - {folder.VERDICTS})
        copied, verdicts = read_table(copy / folder.VERDICTS), read_table(path / folder.VERDICTS)
        assert copied["width"].dtype == "float32"
        pd.testing.assert_frame_equal(copied.astype(verdicts.dtypes), verdicts, rtol=1e-7, atol=0)
    assert folder.read_result(target / "study/trials" / trial_dirs[0].name).data == data | {"directory": None}
    assert not (target / "study/trials" / trial_dirs[2].name).exists()
    assert json.loads((target / "study/leaderboard.json").read_text())[0]["seeds"] == 2
    page = (target / "study/report.html").read_text()
    assert f"<code>uv run python -m harness.recheck published/study --only {trial_dirs[1].name}</code>" in page
    assert "study/old" not in published() and [path.name for path in target.iterdir()] == ["study"]


def test_a_study_too_large_for_git_replaces_nothing(study, published, monkeypatch, capsys):
    sweep, _, target = study
    monkeypatch.setattr(publish, "LIMIT_MIB", 0.001)
    assert run(sweep, target) == 2
    assert "the limit is 0.001 MiB" in capsys.readouterr().err
    assert set(published()) == {"study", "study/old", "study/report.html"}


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(28, "no space left on device"), 1), (KeyboardInterrupt(), INTERRUPTED)]
)
def test_the_old_study_stays_where_the_command_ends_early(study, published, monkeypatch, error, status):
    sweep, _, target = study

    def fail(*_):
        raise error

    monkeypatch.setattr("harness.report.sweep_page.write_sweep", fail)
    assert run(sweep, target) == status
    assert set(published()) == {"study", "study/old", "study/report.html"}


def test_a_study_that_a_killed_command_has_put_aside_is_left_and_named(study, published, capsys):
    sweep, _, target = study
    (target / ".study.before").mkdir()
    assert run(sweep, target) == 2
    assert f"{target / '.study.before'} was put aside" in capsys.readouterr().err
    assert set(published()) == {"study", "study/old", "study/report.html", ".study.before"}


def test_a_link_is_published_to_where_it_leads_and_a_study_never_onto_itself(study, capsys):
    sweep, _, target = study
    (target / "elsewhere").mkdir(parents=True)
    (target / "study").symlink_to("elsewhere")
    assert run(sweep, target) == 0
    assert (target / "study").is_symlink() and (target / "elsewhere/report.html").is_file()
    assert run(target / "study", target) == 2
    assert "another directory" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["trials/a/log.txt", "notes.md"])
def test_what_is_not_a_published_study_is_never_replaced(study, published, file, capsys):
    sweep, _, target = study
    path = target / "study" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    if file == "notes.md":
        (target / "study/report.html").unlink()
    assert run(sweep, target) == 2
    assert "whose study is empty, absent or a published study" in capsys.readouterr().err and path.exists()


@pytest.mark.parametrize(
    ("missing", "options", "message"),
    [
        (None, ["--weights", "vgg*"], "cnn5 ibp seed 0"),
        (folder.WEIGHTS, ["--weights", "cnn5*"], "these trials have no stored weights: cnn5 ibp seed"),
        (folder.RESULT, [], "holds no finished"),
    ],
)
def test_missing_trials_and_weights_are_bad_input(study, missing, options, message, capsys):
    sweep, trial_dirs, target = study
    for path in trial_dirs[:2] if missing else ():
        (path / missing).unlink()
    assert run(sweep, target, *options) == 2
    assert message in capsys.readouterr().err and not target.exists()
