"""A killed search goes on: no candidate is lost or trained twice, and the winners become the trials of the sweep."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from harness.tune.run_sweep import RunOptions
from processes import wait_for
from rich.console import Console
from small_sweep import load_sweep
from study import TINY, Study

from harness.common import names
from harness.data import load
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.tracking.tracker import Tracker
from harness.tune import ray_tune
from harness.tune.machines import RayOptions
from harness.tune.run_search import JOURNAL, Search, load_studies

SEARCH = {
    "spaces": {"train.learning_rate": {"log_uniform": [1e-3, 3e-2]}, "train.batch_size": {"integer": [16, 64]}},
    "validation_images": 50,
    "objectives": ["certified_error", "standard_error"],
    "trials": 4,
}
SEARCHED = {**TINY, "seeds": [0, 1], "trials": [{"model": "cnn5", "method": "ibp"}], "search": SEARCH}
OPTIONS = RunOptions(RayOptions(cpu=1, gpu=0, at_once=1), None)


class Killed(BaseException):
    pass


def read(tmp_path, **search):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**SEARCHED, "search": SEARCH | search}))
    return load_sweep(tmp_path / "sweep.yaml", None, True)


def search_of(sweep, tmp_path):
    return Search(sweep, load("digits"), tmp_path / "study", Console(quiet=True))


def candidates(sweep, tmp_path):
    """The candidates of the only entry: without proposals that were rejected."""
    (study,) = load_studies(search_of(sweep, tmp_path).directory)
    return [trial for trial in study.trials if trial.state.name != "FAIL"]


def chosen_text(tmp_path, winner):
    trial = folder.make_trial(winner, load("digits").fingerprint)
    return folder.read_chosen(folder.trial_dir(tmp_path / "study", trial.key)).text


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
    """A function that replaces Ray by one worker. do: called with a folder, returns the error of its worker."""

    def replace_ray(do=train, killed_at=None):
        def run_on_ray(supply, work, listener, options, directory):
            for item in supply:
                begun.append(item.directory.name)
                if len(begun) == killed_at:
                    raise Killed
                listener.on_end(item, do(item.directory))

        monkeypatch.setattr(ray_tune, "run_on_ray", run_on_ray)

    replace_ray()
    return replace_ray


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_killed_search_ends_as_one_without_kills(tmp_path, workers, begun, sampler):
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    sweep = read(tmp_path, sampler=sampler, trials=14)
    search_of(sweep, quiet).run(OPTIONS)
    expected = begun.copy()
    begun.clear()
    for killed_at in (3, 6, 14):
        workers(killed_at=killed_at)
        with pytest.raises(Killed):
            search_of(sweep, killed).run(OPTIONS)
        journal = search_of(sweep, killed).directory / JOURNAL
        with open(journal, "a") as file:
            file.write('{"op_code": 4, "work')  # killed while writing
        journal.with_name(f"{JOURNAL}.lock").symlink_to("nowhere")
    workers()
    search = search_of(sweep, killed)
    winners = search.run(OPTIONS)
    assert len(expected) == len(set(expected)) == 14
    assert list(dict.fromkeys(begun)) == expected and len(begun) == len(expected) + 3, "those killed once more"
    assert [one.params for one in candidates(sweep, killed)] == [one.params for one in candidates(sweep, quiet)]
    assert winners == search_of(sweep, killed).run(OPTIONS) and not search.has_unfinished
    assert len(begun) == len(expected) + 3, "nothing is left to run"


@pytest.mark.parametrize("known", [{}, {"train.learning_rate": 5e-4, "train.batch_size": 32}])
def test_a_search_that_is_killed_while_it_proposes_continues(tmp_path, workers, begun, known):
    """With none of the settings, or those of another candidate: the proposal is no candidate."""
    sweep = read(tmp_path)
    search = search_of(sweep, tmp_path)
    search.run(OPTIONS)
    study = search.studies[0]
    trial = study.ask()
    for key, value in known.items():
        study._storage.set_trial_param(trial._trial_id, key, value, study.trials[1].distributions[key])
    search_of(read(tmp_path, trials=6), tmp_path).run(OPTIONS)
    assert len(begun) == len(set(begun)) == 6


def test_candidates_lie_in_their_spaces_and_the_first_is_the_entry_as_it_is_written(tmp_path, workers, begun):
    spaces = SEARCH["spaces"] | {
        "train.learning_rate": {"log_uniform": [1e-4, 1e-3]},
        "train.initialisation": {"choice": ["ibp", "default"]},
    }
    sweep = read(tmp_path, spaces=spaces, trials=8)
    search_of(sweep, tmp_path).run(OPTIONS)
    trained = [
        folder.read_trial(search_of(sweep, tmp_path).directory / "trials" / name / folder.TRIAL).config
        for name in begun
    ]
    assert trained[0] == sweep.searched[0].base.replace(validation_images=50)
    for config in trained:
        assert 1e-4 <= config.train.learning_rate <= 1e-3 and 16 <= config.train.batch_size <= 64
        assert config.train.learning_rate == float(f"{config.train.learning_rate:.4g}")
    assert {config.train.initialisation for config in trained} == {"ibp", "default"}


def test_a_space_of_few_choices_ends(tmp_path, workers, begun):
    sweep = read(tmp_path, spaces={"train.initialisation": {"choice": ["ibp", "default"]}})
    for _ in range(2):
        search_of(sweep, tmp_path).run(OPTIONS)
        assert len(begun) == 2


def test_winners_have_all_images_every_seed_and_a_mark(tmp_path, workers):
    sweep = read(tmp_path, objectives=["certified_error"])
    winners = search_of(sweep, tmp_path).run(OPTIONS)
    rates = {
        folder.read_trial(path / folder.TRIAL).config.train.learning_rate
        for path in folder.trial_folders(search_of(sweep, tmp_path).directory)
    }
    assert [trial.seed for trial in winners] == [0, 1]
    for trial in winners:
        assert trial.validation_images == 0 and trial.train_images == TINY["train_images"]
        assert trial.train.learning_rate == min(rates)
        assert chosen_text(tmp_path, trial) == "tpe, 4 candidates, evaluated on 50 images held out of training"
    trial_dirs = folder.trial_folders(search_of(sweep, tmp_path).directory)
    assert {folder.read_trial(trial_dir / folder.TRIAL).config.validation_images for trial_dir in trial_dirs} == {50}
    assert folder.trial_folders(tmp_path / "study") == [], "winners are claimed by the sweep"


def test_a_front_has_the_first_candidate_of_each_pair_that_no_other_beats(tmp_path, workers, begun):
    """Made of pairs with ties; a candidate whose training diverged wins nothing."""
    pairs = [(5, 9), (4, 9), (4, 9), (9, 1), (9, 2), (0, 0)]

    def work(trial_dir):
        if len(begun) == 6:
            folder.write_failure(trial_dir, "NonFiniteLossError", repeats=True)
            return
        metrics = dict(zip(SEARCH["objectives"], pairs[len(begun) - 1], strict=True))
        folder.write_result(trial_dir, folder.TrialResult(trial_dir.name, metrics, {}, {}, []))

    workers(work)
    sweep = read(tmp_path, trials=6)
    winners = search_of(sweep, tmp_path).run(OPTIONS)
    chosen = [folder.make_trial(trial, load("digits").fingerprint) for trial in winners[::2]]
    marks = [folder.read_chosen(folder.trial_dir(tmp_path / "study", trial.key)) for trial in chosen]
    assert [mark.candidate for mark in marks] == [1, 3]
    assert [tuple(mark.validation.values()) for mark in marks] == [(4, 9), (9, 1)]


def test_a_larger_budget_continues_and_another_sampler_begins_anew(tmp_path, workers, begun):
    search_of(read(tmp_path), tmp_path).run(OPTIONS)
    search_of(read(tmp_path, trials=6), tmp_path).run(OPTIONS)
    assert len(begun) == 6
    search_of(read(tmp_path, sampler="random"), tmp_path).run(OPTIONS)
    search_of(read(tmp_path, seed=1), tmp_path).run(OPTIONS)
    assert len(begun) == 14


def test_a_candidate_that_diverges_counts_as_wrong_and_one_whose_worker_died_is_tried_again(tmp_path, workers, begun):
    def work(trial_dir):
        if len(begun) == 1:
            folder.write_failure(trial_dir, "NonFiniteLossError", repeats=True)
        elif len(begun) > 2:
            train(trial_dir)
        return "its worker failed" if len(begun) == 2 else None

    workers(work)
    sweep = read(tmp_path)
    search = search_of(sweep, tmp_path)
    winners = search.run(OPTIONS)
    assert search.has_unfinished
    assert chosen_text(tmp_path, winners[0]).startswith("tpe, 4 candidates (2 failed), ")
    search = search_of(sweep, tmp_path)
    search.run(OPTIONS)
    assert not search.has_unfinished
    assert len(begun) == 5 and begun[4] == begun[1]
    assert [one.values == [100, 100] for one in candidates(sweep, tmp_path)] == [True, False, False, False]
    assert {one.state.name for one in candidates(sweep, tmp_path)} == {"COMPLETE"}


def test_a_damaged_file_is_named(tmp_path, workers):
    sweep = read(tmp_path)
    search_of(sweep, tmp_path).run(OPTIONS)
    journal = search_of(sweep, tmp_path).directory / JOURNAL
    journal.write_text(journal.read_text().replace('"op_code":4', '"op_code":', 1))
    with pytest.raises(DamagedFileError, match=JOURNAL):
        search_of(sweep, tmp_path)


def test_only_is_refused_and_a_dry_run_writes_nothing(tmp_path, no_ray, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(tmp_path, SEARCHED, "sqlite:///unused.db")
    assert study.main("--only", "cnn5*") == 2 and "--only" in capsys.readouterr().err
    assert study.main("--dry-run") == 0
    assert "search by tpe, 4 candidates of each, evaluated on 50 images" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in Path().iterdir()} == {"sweep.yaml"}


@pytest.mark.parametrize("has_unfinished", [False, True])
def test_the_exit_status_says_whether_candidates_are_unfinished(tmp_path, no_ray, monkeypatch, has_unfinished):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Tracker, "open", lambda *_: None)
    monkeypatch.setattr(Search, "run", lambda search, options: search.sweep.trials)
    monkeypatch.setattr(Search, "has_unfinished", has_unfinished)
    monkeypatch.setattr("harness.tune.run_sweep.run_sweep", lambda *_: SimpleNamespace(is_complete=True))
    monkeypatch.setattr("harness.run._write_page", lambda *_: None)
    assert Study(tmp_path, SEARCHED, "sqlite:///unused.db").main() == int(has_unfinished)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_under_ray_that_is_killed_ends_with_a_marked_leaderboard(tmp_path, store):
    content = {**SEARCHED, "name": "searched", "seeds": [0]}
    content["search"] = {**SEARCH, "objectives": ["certified_error"], "trials": 4}
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
    assert [one.state.name for one in search.studies[0].trials] == ["COMPLETE"] * 4
    assert "chosen by" in (study.directory / "leaderboard.md").read_text()
    assert "What was searched" in (study.directory / "report.html").read_text()
    (winner,) = [
        folder.read_trial(trial_dir / folder.TRIAL).config for trial_dir in folder.trial_folders(study.directory)
    ]
    assert winner.replace(validation_images=0) == winner
