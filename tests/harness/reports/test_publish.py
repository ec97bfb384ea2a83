"""`python -m harness.publish`: what is copied of a study, and what stays where it fails."""

import dataclasses
import json
import signal
from functools import partial

import pandas as pd
import pytest
from made_studies import add, right

from harness import publish
from harness.command_line import INTERRUPTED, main
from harness.figures import catalogue
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
    (trial_dirs[2] / folder.RESULT).unlink()
    return sweep, trial_dirs, tmp_path / "kept"


@pytest.fixture
def published(study):
    """A study published before."""
    _, _, kept = study
    (kept / "study").mkdir(parents=True)
    (kept / "study/old").write_text("")
    return lambda: [str(path.relative_to(kept)) for path in kept.rglob("*")]


def run(sweep, kept, *options):
    return main("publish", [str(sweep), "--to", str(kept), *options])


def test_results_are_copied_and_what_proves_them_where_asked_for(study, published, capsys):
    sweep, trial_dirs, kept = study
    result = folder.read_result(trial_dirs[0])
    data = {"name": "cifar10", "directory": "/home/me/data"}
    folder.write_result(trial_dirs[0], dataclasses.replace(result, data=data))
    assert run(sweep, kept, "--weights", "* seed 1") == 0
    assert "2 trials, 1 without a result left out, 1 with their weights" in capsys.readouterr().out
    files, proofs = {folder.TRIAL, folder.EPOCHS, folder.VERDICTS}, {folder.WEIGHTS, folder.COUNTEREXAMPLES}
    for path, names in ((trial_dirs[0], files), (trial_dirs[1], files | proofs)):
        copy = kept / "study/trials" / path.name
        assert {file.name for file in copy.iterdir()} == names | {folder.RESULT}
        assert all((copy / name).read_bytes() == (path / name).read_bytes() for name in names - {folder.VERDICTS})
        copied, verdicts = read_table(copy / folder.VERDICTS), read_table(path / folder.VERDICTS)
        assert copied["width"].dtype == "float32"
        pd.testing.assert_frame_equal(copied.astype(verdicts.dtypes), verdicts, rtol=1e-7, atol=0)
    assert folder.read_result(kept / "study/trials" / trial_dirs[0].name).data == data | {"directory": None}
    assert not (kept / "study/trials" / trial_dirs[2].name).exists()
    assert json.loads((kept / "study/leaderboard.json").read_text())[0]["seeds"] == 2
    page = (kept / "study/report.html").read_text()
    assert f"<code>uv run python -m harness.recheck kept/study --only {trial_dirs[1].name}</code>" in page
    assert "study/old" not in published() and [path.name for path in kept.iterdir()] == ["study"]


def test_what_is_too_large_for_git_replaces_nothing(study, published, monkeypatch, capsys):
    sweep, _, kept = study
    monkeypatch.setattr(publish, "LIMIT", 1000)
    assert run(sweep, kept) == 2
    assert "at most 25 MiB" in capsys.readouterr().err
    assert published() == ["study", "study/old"]


def full_disk():
    raise OSError(28, "no space left on device")


def ctrl_c():
    raise KeyboardInterrupt  # not by a signal, which processes in the background ignore


@pytest.mark.parametrize(
    ("end", "status"),
    [(full_disk, 1), (partial(signal.raise_signal, signal.SIGTERM), INTERRUPTED), (ctrl_c, INTERRUPTED)],
    ids=["full disk", "SIGTERM", "Ctrl-C"],
)
def test_the_old_study_stays_where_the_command_ends_early(study, published, monkeypatch, end, status):
    sweep, _, kept = study
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(publish.sweep_page, "write_sweep", lambda *_: end())
    assert run(sweep, kept) == status
    assert published() == ["study", "study/old"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_killed_command_has_put_aside_is_left_and_named(study, published, capsys):
    sweep, _, kept = study
    (kept / ".study.before").mkdir()
    assert run(sweep, kept) == 2
    assert f"{kept / '.study.before'} was put aside" in capsys.readouterr().err
    assert set(published()) == {"study", "study/old", ".study.before"}


def test_a_link_is_published_to_where_it_leads_and_a_study_never_onto_itself(study, capsys):
    sweep, _, kept = study
    (kept / "elsewhere").mkdir(parents=True)
    (kept / "study").symlink_to("elsewhere")
    assert run(sweep, kept) == 0
    assert (kept / "study").is_symlink() and (kept / "elsewhere/report.html").is_file()
    assert run(kept / "study", kept) == 2
    assert "another directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "options", "message"),
    [
        (None, ["--weights", "vgg*"], "cnn5 ibp seed 0"),
        (folder.WEIGHTS, ["--weights", "cnn5*"], "as these have not: cnn5 ibp seed"),
        (folder.RESULT, [], "holds no finished"),
    ],
)
def test_what_is_not_there_is_bad_input(study, missing, options, message, capsys):
    sweep, trial_dirs, kept = study
    for path in trial_dirs[:2] if missing else ():
        (path / missing).unlink()
    assert run(sweep, kept, *options) == 2
    assert message in capsys.readouterr().err and not kept.exists()
