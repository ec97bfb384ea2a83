"""A search, killed and gone on with: none of its candidates is lost or made twice; winners are what is compared."""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from processes import wait_for
from rich.console import Console
from study import TINY, Study

from harness.config.sweep_file import load_sweep
from harness.data import load
from harness.launch import ray_tune, searching
from harness.search.candidates import FAILED, FINISHED, candidates_of, search_of
from harness.search.rungs import CANDIDATE
from harness.storage import folder, names
from harness.storage.files import DamagedFileError

SEARCH = {
    "spaces": {"train.learning_rate": {"log_uniform": [1e-3, 3e-2]}, "train.batch_size": {"integer": [16, 64]}},
    "validation_images": 50,
    "objectives": ["certified_error", "standard_error"],
    "trials": 4,
}
SEARCHED = {**TINY, "seeds": [0, 1], "trials": [{"model": "cnn5", "method": "ibp"}], "search": SEARCH}
OPTIONS = argparse.Namespace(
    data_dir=None, ray_address=None, max_concurrent=None, fail_fast=False, only=[], export=None
)


class Killed(BaseException):
    pass


def read(tmp_path, **search):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**SEARCHED, "search": SEARCH | search}))
    return load_sweep(tmp_path / "sweep.yaml", None, True)


def trained(place):
    """A result without training: certified error by the rate, standard error by the batch."""
    train = folder.read_trial(place / folder.TRIAL).config.train
    metrics = {names.CERTIFIED_ERROR: 1000 * train.learning_rate, names.STANDARD_ERROR: 100 - train.batch_size}
    folder.write_result(place, folder.TrialResult(place.name, metrics | {names.EVALUATION_SECONDS: 1.0}, {}, {}, []))


def workers(begun, killed_after=None):
    """What stands for Ray: one worker; it notes whom it trains, and is killed before it ends the so manieth."""

    def run_folders(supply, data_dir, cpu, gpu, storage, on_report, on_end, address, at_once):
        while (place := supply()) is not None:
            begun.append(place.name)
            if killed_after is not None and len(begun) > killed_after:
                raise Killed
            trained(place)
            on_end(place, None)

    return run_folders


def search(sweep, tmp_path):
    data = load("digits")
    return searching.run(
        sweep, searching.check(sweep, data, OPTIONS), data, tmp_path / "study", OPTIONS, 0, Console(quiet=True)
    )


def found(sweep, tmp_path):
    seeds = [0, 1][: sweep.search.seeds]
    given = sweep.search, sweep.searched, seeds, load("digits").fingerprint
    return candidates_of(search_of(tmp_path / "study", *given)[0])


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_killed_search_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, sampler):
    quiet, broken = tmp_path / "quiet", tmp_path / "broken"
    quiet.mkdir(), broken.mkdir()
    sweep, whole, begun = read(tmp_path, sampler=sampler, seeds=2), [], []
    monkeypatch.setattr(ray_tune, "run_folders", workers(whole))
    search(sweep, quiet)
    for after in (2, 5):
        monkeypatch.setattr(ray_tune, "run_folders", workers(begun, after))
        with pytest.raises(Killed):
            search(sweep, broken)
    monkeypatch.setattr(ray_tune, "run_folders", workers(begun))
    chosen = search(sweep, broken)
    assert len(whole) == len(set(whole)) == 4 * 2, "candidates times seeds"
    assert list(dict.fromkeys(begun)) == whole and len(begun) == len(whole) + 2, "the two that were killed once more"
    assert [one.settings for one in found(sweep, broken)] == [one.settings for one in found(sweep, quiet)]
    assert chosen.trials == search(sweep, broken).trials, "once it is done nothing runs"
    assert len(begun) == len(whole) + 2


def test_winners_have_all_images_every_seed_and_a_mark_and_candidates_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tune, "run_folders", workers([]))
    sweep = read(tmp_path, objectives=["certified_error"])
    chosen, candidates = search(sweep, tmp_path), found(sweep, tmp_path)
    best = min(candidates, key=lambda one: one.values)
    assert [trial.seed for trial in chosen.trials] == [0, 1]
    for trial in chosen.trials:
        assert trial.validation_images == 0 and trial.train_images == TINY["train_images"]
        assert trial.train.learning_rate == best.settings["train.learning_rate"]
        place = folder.place(tmp_path / "study", folder.make_trial(trial, load("digits").fingerprint).key)
        assert folder.read_chosen(place)["text"] == "tpe, 4 candidates, judged on 50 images held out of training"
    configs = [folder.read_trial(one.places[0] / folder.TRIAL).config for one in candidates]
    assert {config.validation_images for config in configs} == {50}
    assert folder.trial_folders(tmp_path / "study") == [], "winners are claimed by the sweep"


def test_a_larger_budget_goes_on_and_another_sampler_begins_anew(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(ray_tune, "run_folders", workers(begun))
    search(read(tmp_path), tmp_path)
    search(read(tmp_path, trials=6), tmp_path)
    assert len(begun) == 6
    search(read(tmp_path, sampler="random"), tmp_path)
    assert len(begun) == 10


def test_hours_are_those_of_candidates(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(ray_tune, "run_folders", workers(begun))
    search(read(tmp_path, trials=None, hours=2.5 / 3600), tmp_path)
    assert len(begun) == 3, "of a second each; none is begun after 2.5"


def test_what_diverges_counts_as_wrong_and_what_died_is_tried_again(tmp_path, monkeypatch):
    begun = []

    def run_folders(supply, data_dir, cpu, gpu, storage, on_report, on_end, address, at_once):
        while (place := supply()) is not None:
            begun.append(place.name)
            if len(begun) == 1:
                folder.write_failure(place, "NonFiniteLossError", repeats=True)
            elif len(begun) > 2:
                trained(place)
            on_end(place, "its worker failed" if len(begun) == 2 else None)

    monkeypatch.setattr(ray_tune, "run_folders", run_folders)
    sweep = read(tmp_path)
    search(sweep, tmp_path)
    search(sweep, tmp_path)
    assert len(begun) == 5 and begun[4] == begun[1]
    first, *others = found(sweep, tmp_path)
    assert (first.state, first.values) == (FAILED, [100, 100])
    assert {one.state for one in others} == {FINISHED}


def test_a_search_that_lacks_a_candidate_says_so(tmp_path, monkeypatch):
    """One dies; the same command tries it again."""

    def run_folders(supply, data_dir, cpu, gpu, storage, on_report, on_end, address, at_once):
        while (place := supply()) is not None:
            if place.name != found(sweep, tmp_path)[0].places[0].name:
                trained(place)
            on_end(place, "its worker failed")

    sweep = read(tmp_path)
    asked = sweep, sweep.search, load("digits"), tmp_path / "study"
    monkeypatch.setattr(ray_tune, "run_folders", run_folders)
    (winner, *_) = search(sweep, tmp_path).trials
    assert searching.lacks(*asked)
    place = folder.place(tmp_path / "study", folder.make_trial(winner, load("digits").fingerprint).key)
    assert folder.read_chosen(place)["text"].startswith("tpe, 4 candidates (1 failed), ")
    monkeypatch.setattr(ray_tune, "run_folders", workers([]))
    search(sweep, tmp_path)
    assert not searching.lacks(*asked)


def test_a_candidate_taken_away_is_made_up_for_and_no_number_is_given_twice(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(ray_tune, "run_folders", workers(begun))
    sweep = read(tmp_path, sampler="nsga2")
    search(sweep, tmp_path)
    shutil.rmtree(found(sweep, tmp_path)[1].places[0])
    search(sweep, tmp_path)
    assert len(begun) == 5
    assert [one.number for one in found(sweep, tmp_path)] == [0, 2, 3, 4]


CHANGED = {
    "no object": lambda record: [],
    "a key missing": lambda record: {key: value for key, value in record.items() if key != "number"},
    "a text for a number": lambda record: record | {"entry": "a"},
    "an entry there is not": lambda record: record | {"entry": 7},
    "another's number": lambda record: record | {"number": 2},
    "a rung after no epoch": lambda record: record | {"rungs": {"a": 1.0}},
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_damaged_candidate_is_named(tmp_path, monkeypatch, case):
    monkeypatch.setattr(ray_tune, "run_folders", workers([]))
    sweep = read(tmp_path)
    search(sweep, tmp_path)
    path = found(sweep, tmp_path)[1].places[0] / CANDIDATE
    path.write_text(json.dumps(CHANGED[case](json.loads(path.read_text()))))
    with pytest.raises(DamagedFileError, match=r"candidate\.json"):
        search(sweep, tmp_path)


def test_only_and_export_are_refused_and_a_dry_run_writes_nothing(tmp_path, no_ray, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = Study(tmp_path, SEARCHED, "sqlite:///unused.db")
    assert study.main("--only", "cnn5*") == 2 and study.main("--export", "there") == 2
    assert "--only" in (told := capsys.readouterr().err) and "--export" in told
    assert study.main("--dry-run") == 0
    assert "search by tpe, 4 candidates of each, judged on 50 images" in " ".join(capsys.readouterr().out.split())
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
    kept = {path: path.stat().st_mtime_ns for path in study.directory.glob("search/*/trials/*/result.json")}
    again = study.start(cwd=tmp_path)
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "none is made twice"
    sweep = load_sweep(study.file, None, True)
    search, _ = search_of(study.directory, sweep.search, sweep.searched, [0], load("digits").fingerprint)
    assert [one.number for one in candidates_of(search)] == [0, 1, 2, 3]
    assert "chosen by" in (study.directory / "leaderboard.md").read_text()
    assert "What was searched" in (study.directory / "report.html").read_text()
    winners = [folder.read_trial(place / folder.TRIAL).config for place in folder.trial_folders(study.directory)]
    assert len(winners) == 1 and replace(winners[0], validation_images=0) == winners[0]
