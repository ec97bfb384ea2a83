"""A killed search goes on: no candidate is lost or trained twice, and the winners become the networks of the sweep."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from processes import wait_for
from rich.console import Console
from small_sweep import load_sweep, write
from study import TINY, Study

from harness.common import names
from harness.data import load
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.storage.lock import lock_directory
from harness.storage.records import Result, make_record
from harness.tracking.tracker import Tracker
from harness.work import on_ray
from harness.work.machines import RayOptions
from harness.work.queue import end_job
from harness.work.run_study import RunOptions
from harness.work.search import JOURNAL, Search, describe_time, load_studies, run_search

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


def read(tmp_path, main=None, **search):
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({**SEARCHED, "evaluation": main or TINY["evaluation"], "search": SEARCH | search})
    )
    return load_sweep(tmp_path / "sweep.yaml", None, True)


def search_of(sweep, tmp_path):
    return Search(sweep, load("digits"), tmp_path / "study", "cpu")


def candidates(sweep, tmp_path):
    """The candidates of the only entry: without proposals that were rejected."""
    (study,) = load_studies(search_of(sweep, tmp_path).directory)
    return [trial for trial in study.trials if trial.state.name != "FAIL"]


def chosen(tmp_path, winner):
    record = make_record(winner, load("digits").fingerprint)
    return folder.read_choices(folder.network_dir(tmp_path / "study", record.key))[-1]


def run(search):
    return run_search(search, OPTIONS, Console(quiet=True))


def training_in(network_dir):
    return folder.read_training(network_dir / folder.TRAINING).config


def write_metrics(network_dir, metrics):
    """Results without training."""
    (evaluation_dir,) = folder.evaluation_folders(network_dir)
    folder.write_trained(network_dir, Result(network_dir.name, {}, {}, {}, []))
    key = f"{network_dir.name}/{evaluation_dir.name}"
    folder.write_result(evaluation_dir, Result(key, metrics, {}, {}, []))


def train(network_dir):
    """Certified error by the rate, standard error by the batch."""
    train = training_in(network_dir).train
    metrics = {names.CERTIFIED_ERROR: 1000 * train.learning_rate, names.STANDARD_ERROR: 100 - train.batch_size}
    write_metrics(network_dir, metrics | {names.EVALUATION_SECONDS: 1.0})


@pytest.fixture
def begun():
    """The keys of all networks that a worker has begun, in order."""
    return []


@pytest.fixture
def workers(monkeypatch, begun):
    """A function that replaces Ray by one worker. do: called with a folder, returns the error of its worker."""

    def replace_ray(do=train, killed_at=None):
        def run_on_ray(queue, work, listener, options, directory):
            for job in iter(queue.take, None):
                begun.append(job.network_dir.name)
                if len(begun) == killed_at:
                    raise Killed
                end_job(queue, listener, job, do(job.network_dir))
            assert queue.is_finished

        monkeypatch.setattr(on_ray, "run_on_ray", run_on_ray)

    replace_ray()
    return replace_ray


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_killed_search_ends_as_one_without_kills(tmp_path, workers, begun, sampler):
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    sweep = read(tmp_path, sampler=sampler, trials=14)
    run(search_of(sweep, quiet))
    expected = begun.copy()
    begun.clear()
    for killed_at in (3, 6, 14):
        workers(killed_at=killed_at)
        with pytest.raises(Killed):
            run(search_of(sweep, killed))
        journal = search_of(sweep, killed).directory / JOURNAL
        with open(journal, "a") as file:
            file.write('{"op_code": 4, "work')  # killed while writing
        journal.with_name(f"{JOURNAL}.lock").symlink_to("nowhere")
    workers()
    search = search_of(sweep, killed)
    winners = run(search)
    assert len(expected) == len(set(expected)) == 14
    assert list(dict.fromkeys(begun)) == expected and len(begun) == len(expected) + 3, "those killed once more"
    assert [one.params for one in candidates(sweep, killed)] == [one.params for one in candidates(sweep, quiet)]
    assert winners == run(search_of(sweep, killed)) and not search.has_unfinished
    assert len(begun) == len(expected) + 3, "nothing is left to run"


@pytest.mark.parametrize("known", [{}, {"train.learning_rate": 5e-4, "train.batch_size": 32}])
def test_a_search_that_is_killed_while_it_proposes_continues(tmp_path, workers, begun, known):
    """With none of the settings, or those of another candidate: the proposal is no candidate."""
    sweep = read(tmp_path)
    search = search_of(sweep, tmp_path)
    run(search)
    study = search.studies[0]
    trial = study.ask()
    for key, value in known.items():
        study._storage.set_trial_param(trial._trial_id, key, value, study.trials[1].distributions[key])
    run(search_of(read(tmp_path, trials=6), tmp_path))
    assert len(begun) == len(set(begun)) == 6


def test_candidates_lie_in_their_spaces_and_the_first_is_the_entry_as_it_is_written(tmp_path, workers, begun):
    spaces = SEARCH["spaces"] | {
        "train.learning_rate": {"log_uniform": [1e-4, 1e-3]},
        "train.initialisation": {"choice": ["ibp", "default"]},
    }
    sweep = read(tmp_path, spaces=spaces, trials=8)
    run(search_of(sweep, tmp_path))
    search_dir = search_of(sweep, tmp_path).directory
    trained = [training_in(folder.network_dir(search_dir, name)) for name in begun]
    assert trained[0] == sweep.searched[0].base.replace(validation_images=50)
    for config in trained:
        assert 1e-4 <= config.train.learning_rate <= 1e-3 and 16 <= config.train.batch_size <= 64
        assert config.train.learning_rate == float(f"{config.train.learning_rate:.4g}")
    assert {config.train.initialisation for config in trained} == {"ibp", "default"}


def test_a_space_of_few_choices_ends(tmp_path, workers, begun):
    sweep = read(tmp_path, spaces={"train.initialisation": {"choice": ["ibp", "default"]}})
    for _ in range(2):
        run(search_of(sweep, tmp_path))
        assert len(begun) == 2


def test_winners_have_all_images_every_seed_and_a_mark(tmp_path, workers):
    sweep = read(tmp_path, objectives=["certified_error"])
    winners = run(search_of(sweep, tmp_path))
    search_dir = search_of(sweep, tmp_path).directory
    candidates = list(map(training_in, folder.network_folders(search_dir)))
    assert [winner.seed for winner in winners] == [0, 1]
    for winner in winners:
        assert winner.validation_images == 0 and winner.train_images == TINY["train_images"]
        assert winner.train.learning_rate == min(each.train.learning_rate for each in candidates)
        assert chosen(tmp_path, winner).text == "tpe, 4 candidates, evaluated on 50 images held out of training"
    assert {each.validation_images for each in candidates} == {50}
    (evaluation,) = {folder.main_evaluation(path) for path in folder.network_folders(search_dir)}
    assert evaluation == sweep.evaluations[0].replace(split="validation", test_images=None)
    assert folder.network_folders(tmp_path / "study") == [], "winners are claimed by the sweep"


def test_candidates_are_trained_and_evaluated_by_their_own_settings_and_winners_by_those_of_the_file(tmp_path, workers):
    sweep = read(tmp_path, train={"epochs": 1, "ramp_epochs": 0, "decay_epochs": []}, evaluation={"stages": ["ibp"]})
    search = search_of(sweep, tmp_path)
    assert search.directory != search_of(read(tmp_path), tmp_path).directory
    winner = run(search)[0]
    networks = folder.network_folders(search.directory)
    assert len(networks) == 4 and {training_in(each).train.epochs for each in networks} == {1}
    assert winner.train.epochs == TINY["train"]["epochs"] > 1
    assert search.evaluation.stages == ("ibp",) != sweep.evaluations[0].stages
    assert "(candidates: decay_epochs [], epochs 1, ramp_epochs 0; ibp)" in chosen(tmp_path, winner).text


def test_a_front_has_the_first_candidate_of_each_pair_that_no_other_beats(tmp_path, workers, begun):
    """Made of pairs with ties; a candidate whose training diverged wins nothing."""
    pairs = [(5, 9), (4, 9), (4, 9), (9, 1), (9, 2), (0, 0)]

    def work(network_dir):
        if len(begun) == 6:
            folder.write_failure(network_dir, "NonFiniteLossError", repeats=True)
            return
        write_metrics(network_dir, dict(zip(SEARCH["objectives"], pairs[len(begun) - 1], strict=True)))

    workers(work)
    sweep = read(tmp_path, trials=6)
    winners = run(search_of(sweep, tmp_path))
    marks = [chosen(tmp_path, winner) for winner in winners[::2]]
    assert [mark.candidate for mark in marks] == [1, 3]
    (row,), search_dir = sweep.searched, search_of(sweep, tmp_path).directory
    assert {mark.front for mark in marks} == {f"{row.base.row} by {search_dir.name}"}, "of each sampler its own front"
    assert [tuple(mark.validation.values()) for mark in marks] == [(4, 9), (9, 1)]


def test_a_larger_budget_continues_and_another_sampler_begins_anew(tmp_path, workers, begun):
    run(search_of(read(tmp_path), tmp_path))
    run(search_of(read(tmp_path, trials=6), tmp_path))
    assert len(begun) == 6
    run(search_of(read(tmp_path, sampler="random"), tmp_path))
    run(search_of(read(tmp_path, seed=1), tmp_path))
    assert len(begun) == 14


def test_one_network_of_two_widths_is_two_networks_of_fronts(tmp_path):
    trials = [{"model": "cnn5", "method": "ibp", "width": width} for width in (TINY["width"], 0.1)]
    study = load_sweep(write(tmp_path, SEARCHED | {"trials": trials}), None, True)
    assert [row.base.network for row in study.searched] == ["cnn5", "cnn5 width=0.1"]


def test_a_network_that_two_searches_choose_keeps_both_choices(tmp_path, workers, begun):
    workers(lambda network_dir: write_metrics(network_dir, dict.fromkeys(SEARCH["objectives"], 50 + len(begun))))
    spaces = {"train.kappa": {"uniform": [0, 0.9]}}
    searches = [search_of(read(tmp_path, trials=1, seed=seed, spaces=spaces), tmp_path) for seed in (0, 1, 0)]
    winners = [run(search)[0] for search in searches]
    assert winners[0] == winners[1], "the settings as written are each search's first candidate"
    key = make_record(winners[0], load("digits").fingerprint).key
    choices = folder.read_choices(folder.network_dir(tmp_path / "study", key))
    assert [each.search for each in choices] == [search.directory.name for search in searches[:2]]


def test_a_candidate_that_diverges_counts_as_wrong_and_one_whose_worker_died_is_tried_again(tmp_path, workers, begun):
    def work(network_dir):
        if len(begun) == 1:
            folder.write_failure(network_dir, "NonFiniteLossError", repeats=True)
        elif len(begun) > 2:
            train(network_dir)
        return "its worker failed" if len(begun) == 2 else None

    workers(work)
    sweep = read(tmp_path)
    search = search_of(sweep, tmp_path)
    winners = run(search)
    assert search.has_unfinished
    assert chosen(tmp_path, winners[0]).text.startswith("tpe, 4 candidates (2 failed), ")
    search = search_of(sweep, tmp_path)
    run(search)
    assert not search.has_unfinished
    assert len(begun) == 5 and begun[4] == begun[1]
    assert [one.values == [100, 100] for one in candidates(sweep, tmp_path)] == [True, False, False, False]
    assert {one.state.name for one in candidates(sweep, tmp_path)} == {"COMPLETE"}


def test_a_changed_main_evaluation_starts_another_search_that_trains_no_candidate_again(tmp_path, workers, begun):
    """Those that are trained are copied, and only evaluated."""
    run(search_of(read(tmp_path), tmp_path))
    trained = set(begun)
    changed = read(tmp_path, {**TINY["evaluation"], "stages": ["ibp"]})

    def evaluate(network_dir):
        was_trained = folder.read_trained(network_dir) is not None
        assert was_trained == (network_dir.name in trained) and len(folder.evaluation_folders(network_dir)) == 1
        train(network_dir)

    for path in (tmp_path / "study/search").glob("*/networks/*"):
        (path / folder.WEIGHTS).touch()
    workers(evaluate)
    search = search_of(changed, tmp_path)
    run(search)
    assert search.directory != search_of(read(tmp_path), tmp_path).directory
    assert len(begun) == 8 and trained & set(begun[4:]), "the entry as it is written is a candidate of each search"


def test_a_damaged_file_is_named(tmp_path, workers):
    sweep = read(tmp_path)
    run(search_of(sweep, tmp_path))
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


def test_a_dry_run_estimates_the_time_from_finished_candidates(tmp_path, workers):
    search = search_of(read(tmp_path, trials=10), tmp_path)
    assert describe_time(search, at_once=1) == "time: unknown, since none of the 10 candidates has finished"
    workers(lambda directory: write_metrics(directory, {names.TRAIN_SECONDS: 50.0, names.EVALUATION_SECONDS: 10.0}))
    run(search_of(read(tmp_path, trials=4), tmp_path))
    assert describe_time(search, at_once=2) == "time: 6.0 min of work for 6 candidates; 3.0 min side by side"


@pytest.mark.parametrize("has_unfinished", [False, True])
def test_the_exit_status_says_whether_candidates_are_unfinished(tmp_path, no_ray, monkeypatch, has_unfinished):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Tracker, "open", lambda *_: None)
    monkeypatch.setattr("harness.work.search.run_search", lambda search, *_: search.study.trainings)
    monkeypatch.setattr(Search, "has_unfinished", has_unfinished)
    monkeypatch.setattr("harness.run_sweep.run_study", lambda *_: SimpleNamespace(is_complete=True))
    monkeypatch.setattr("harness.run_sweep.SweepRun._write_page", lambda *_: None)
    assert Study(tmp_path, SEARCHED, "sqlite:///unused.db").main() == int(has_unfinished)


def test_a_search_here_ends_with_winners_of_every_seed_and_a_changed_evaluation_trains_no_candidate_again(
    tmp_path, capsys
):
    content = {**SEARCHED, "name": "searched", "search": {**SEARCH, "trials": 2}}
    study = Study(tmp_path, content, "unused")
    with lock_directory(study.directory):  # so that it only trains
        assert study.main("--here") == 0
    trained = {path: path.stat().st_mtime_ns for path in study.directory.glob("search/*/networks/*/trained.json")}
    assert len(trained) == 2
    winners = list(map(training_in, folder.network_folders(study.directory)))
    assert {winner.seed for winner in winners} == {0, 1} and {winner.validation_images for winner in winners} == {0}
    assert "all held-out images" not in (study.directory / "leaderboard.md").read_text()
    capsys.readouterr()
    changed = Study(tmp_path, content | {"evaluation": {**TINY["evaluation"], "stages": ["ibp"]}}, "unused")
    with lock_directory(study.directory):
        assert changed.main("--here") == 0
    both = {path: path.stat().st_mtime_ns for path in study.directory.glob("search/*/networks/*/trained.json")}
    assert len(both) == 4 and trained.items() < both.items()
    (search_dir,) = {path.parents[2] for path in both.keys() - trained.keys()}
    copied = [
        path for path in search_dir.glob("networks/*/trained.json") if not (path.parent / "checkpoint.pt").exists()
    ]
    assert copied, "the entry as it is written, at least"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_under_ray_that_is_killed_ends_with_a_marked_leaderboard(tmp_path, store):
    content = {**SEARCHED, "name": "searched", "seeds": [0]}
    content["search"] = {**SEARCH, "objectives": ["certified_error"], "trials": 4}
    study = Study(tmp_path, content, store)
    driver = study.start(cwd=tmp_path)
    wait_for(lambda: len(list(study.directory.glob("search/*/networks/*/evaluations/*/result.json"))) >= 2, 300)
    driver.kill()
    driver.communicate()
    finished = {
        path: path.stat().st_mtime_ns for path in study.directory.glob("search/*/networks/*/evaluations/*/result.json")
    }
    again = study.start(cwd=tmp_path)
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "none is trained twice"
    search = Search(load_sweep(study.file, None, True), load("digits"), study.directory, "cpu")
    assert [one.state.name for one in search.studies[0].trials] == ["COMPLETE"] * 4
    assert "chosen by" in (study.directory / "leaderboard.md").read_text()
    assert "What was searched" in (study.directory / "report.html").read_text()
    (winner,) = map(training_in, folder.network_folders(study.directory))
    assert winner.validation_images == 0
