"""A killed search goes on: no candidate is lost or trained twice, and the winners become the trials of the sweep."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState
from processes import wait_for
from rich.console import Console
from study import TINY, Study

from harness.common import names
from harness.data import load
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.sweep.sweep_file import load_sweep
from harness.tune import ray_tune
from harness.tune.search.run import Search
from harness.tune.search.rungs import CANDIDATE
from harness.tune.search.studies import JOURNAL, candidates_of
from harness.tune.work import RayOptions

SEARCH = {
    "spaces": {"train.learning_rate": {"log_uniform": [1e-3, 3e-2]}, "train.batch_size": {"integer": [16, 64]}},
    "validation_images": 50,
    "objectives": ["certified_error", "standard_error"],
    "trials": 4,
}
SEARCHED = {**TINY, "seeds": [0, 1], "trials": [{"model": "cnn5", "method": "ibp"}], "search": SEARCH}
OPTIONS = RayOptions(cpu=1, gpu=0, data_dir="")


class Killed(BaseException):
    pass


def read(tmp_path, **search):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**SEARCHED, "search": SEARCH | search}))
    return load_sweep(tmp_path / "sweep.yaml", None, True)


def search_of(sweep, tmp_path):
    return Search(sweep, load("digits"), tmp_path / "study", Console(quiet=True))


def candidates(sweep, tmp_path):
    return candidates_of(search_of(sweep, tmp_path).studies[0])


def chosen_text(tmp_path, winner):
    trial = folder.make_trial(winner, load("digits").fingerprint)
    return folder.read_chosen(folder.trial_dir(tmp_path / "study", trial.key))["text"]


def train(trial_dir):
    """A result without training: certified error by the rate, standard error by the batch."""
    train = folder.read_trial(trial_dir / folder.TRIAL).config.train
    metrics = {names.CERTIFIED_ERROR: 1000 * train.learning_rate, names.STANDARD_ERROR: 100 - train.batch_size}
    metrics[names.EVALUATION_SECONDS] = 1.0
    folder.write_result(trial_dir, folder.TrialResult(trial_dir.name, metrics, {}, {}, []))


@pytest.fixture
def begun():
    """The keys of all trials that a worker has begun, in order."""
    return []


@pytest.fixture
def workers(monkeypatch, begun):
    """A function that replaces Ray by one worker.

    do: called with a folder, returns the error of its worker. rung: of a folder, the error that it reports, or None.
    """

    def replace_ray(do=train, killed_at=None, rung=lambda trial_dir: None):
        def run_on_ray(supply, work, on_report, on_end, options, directory):
            while (trial_dir := supply()) is not None:
                begun.append(trial_dir.name)
                if len(begun) == killed_at:
                    raise Killed
                if (error := rung(trial_dir)) is not None:
                    on_report(trial_dir, {names.RUNG: 1, names.CERTIFIED_ERROR: error})
                    on_report(trial_dir, {names.RUNG: 1, names.CERTIFIED_ERROR: error})  # by a worker after a kill
                on_end(trial_dir, do(trial_dir))

        monkeypatch.setattr(ray_tune, "run_on_ray", run_on_ray)

    replace_ray()
    return replace_ray


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("nsga2", marks=pytest.mark.slow)])
def test_a_killed_search_ends_as_one_without_kills(tmp_path, workers, begun, sampler):
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    sweep = read(tmp_path, sampler=sampler, seeds=2)
    search_of(sweep, quiet).run(OPTIONS)
    expected = begun.copy()
    begun.clear()
    for killed_at in (3, 6):
        workers(killed_at=killed_at)
        with pytest.raises(Killed):
            search_of(sweep, killed).run(OPTIONS)
    workers()
    winners, lacks_some = search_of(sweep, killed).run(OPTIONS)
    assert len(expected) == len(set(expected)) == 4 * 2, "candidates times seeds"
    assert list(dict.fromkeys(begun)) == expected and len(begun) == len(expected) + 2, "the two killed once more"
    settings = [[one.user_attrs["settings"] for one in candidates(sweep, path)] for path in (killed, quiet)]
    assert settings[0] == settings[1]
    assert winners.trials == search_of(sweep, killed).run(OPTIONS)[0].trials and not lacks_some
    assert len(begun) == len(expected) + 2, "nothing is left to run"


def test_winners_have_all_images_every_seed_and_a_mark(tmp_path, workers):
    sweep = read(tmp_path, objectives=["certified_error"])
    winners, _ = search_of(sweep, tmp_path).run(OPTIONS)
    best = min(candidates(sweep, tmp_path), key=lambda one: one.values)
    assert [trial.seed for trial in winners.trials] == [0, 1]
    for trial in winners.trials:
        assert trial.validation_images == 0 and trial.train_images == TINY["train_images"]
        assert trial.train.learning_rate == best.user_attrs["settings"]["train.learning_rate"]
        assert chosen_text(tmp_path, trial) == "tpe, 4 candidates, evaluated on 50 images held out of training"
    trial_dirs = folder.trial_folders(search_of(sweep, tmp_path).directory)
    assert {folder.read_trial(trial_dir / folder.TRIAL).config.validation_images for trial_dir in trial_dirs} == {50}
    assert folder.trial_folders(tmp_path / "study") == [], "winners are claimed by the sweep"


def test_a_larger_budget_goes_on_another_sampler_begins_anew_and_hours_are_a_budget(tmp_path, workers, begun):
    search_of(read(tmp_path), tmp_path).run(OPTIONS)
    search_of(read(tmp_path, trials=6), tmp_path).run(OPTIONS)
    assert len(begun) == 6
    search_of(read(tmp_path, sampler="random"), tmp_path).run(OPTIONS)
    assert len(begun) == 10
    search_of(read(tmp_path, seed=1, trials=None, hours=2.5 / 3600), tmp_path).run(OPTIONS)
    assert len(begun) == 13, "of a second each; none is begun after 2.5"


def test_a_candidate_that_diverges_counts_as_wrong_and_one_whose_worker_died_is_tried_again(tmp_path, workers, begun):
    def work(trial_dir):
        if len(begun) == 1:
            folder.write_failure(trial_dir, "NonFiniteLossError", repeats=True)
        elif len(begun) > 2:
            train(trial_dir)
        return "its worker failed" if len(begun) == 2 else None

    workers(work)
    sweep = read(tmp_path)
    winners, lacks_some = search_of(sweep, tmp_path).run(OPTIONS)
    assert lacks_some
    assert chosen_text(tmp_path, winners.trials[0]).startswith("tpe, 4 candidates (2 failed), ")
    _, lacks_some = search_of(sweep, tmp_path).run(OPTIONS)
    assert not lacks_some
    assert len(begun) == 5 and begun[4] == begun[1]
    first, *others = candidates(sweep, tmp_path)
    assert first.values == [100, 100] and first.user_attrs["failure"]
    assert {one.state for one in others} == {TrialState.COMPLETE} and not any("failure" in o.user_attrs for o in others)


def test_a_candidate_that_falls_behind_is_stopped(tmp_path, workers, begun):
    """The second one of two, after its first epoch."""
    workers(
        do=lambda trial_dir: train(trial_dir) if len(begun) == 1 else None,
        rung=lambda trial_dir: 10.0 * len(begun),
    )
    sweep = read(tmp_path, objectives=["certified_error"], asha={"min_epochs": 1}, trials=2)
    winners, _ = search_of(sweep, tmp_path).run(OPTIONS)
    assert [one.state for one in candidates(sweep, tmp_path)] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert "(1 ended early)" in chosen_text(tmp_path, winners.trials[0])


def test_a_damaged_file_is_named(tmp_path, workers):
    sweep = read(tmp_path)
    search_of(sweep, tmp_path).run(OPTIONS)
    journal = search_of(sweep, tmp_path).directory / JOURNAL
    journal.write_text(journal.read_text().replace('"op_code":4', '"op_code":', 1))
    with pytest.raises(DamagedFileError, match=JOURNAL):
        search_of(sweep, tmp_path)
    workers(lambda trial_dir: (trial_dir / CANDIDATE).write_text("[]") and None)
    with pytest.raises(DamagedFileError, match=r"candidate\.json"):
        search_of(sweep, tmp_path / "another").run(OPTIONS)


def test_only_is_refused_and_a_dry_run_writes_nothing(tmp_path, no_ray, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(tmp_path, SEARCHED, "sqlite:///unused.db")
    assert study.main("--only", "cnn5*") == 2 and "--only" in capsys.readouterr().err
    assert study.main("--dry-run") == 0
    assert "search by tpe, 4 candidates of each, evaluated on 50 images" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in Path().iterdir()} == {"sweep.yaml"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_under_ray_that_is_killed_ends_with_a_marked_leaderboard(tmp_path, store):
    content = {**SEARCHED, "name": "searched", "seeds": [0]}
    content["search"] = {**SEARCH, "objectives": ["certified_error"], "asha": {"min_epochs": 1, "factor": 2}}
    study = Study(tmp_path, content, store)
    driver = study.start(cwd=tmp_path)
    wait_for(lambda: len(list(study.directory.glob("search/*/trials/*/result.json"))) >= 2, 300)
    driver.kill()
    driver.communicate()
    finished = {path: path.stat().st_mtime_ns for path in study.directory.glob("search/*/trials/*/result.json")}
    again = study.start(cwd=tmp_path)
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "none is trained twice"
    search = Search(load_sweep(study.file, None, True), load("digits"), study.directory, Console(quiet=True))
    assert [one.number for one in candidates_of(search.studies[0])] == [0, 1, 2, 3]
    assert "chosen by" in (study.directory / "leaderboard.md").read_text()
    assert "What was searched" in (study.directory / "report.html").read_text()
    (winner,) = [
        folder.read_trial(trial_dir / folder.TRIAL).config for trial_dir in folder.trial_folders(study.directory)
    ]
    assert replace(winner, validation_images=0) == winner
