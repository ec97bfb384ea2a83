"""What a run does is chosen and seen before: --dry-run, --only, --set, --fail-fast, --retry-failed, Ctrl-C."""

import json
import os
import shutil
import signal
import sys

import pytest
from study import TINY, Study, snapshot

from harness.launch import ray_tune
from harness.storage import folder, names
from harness.tracking.mlflow_sync import MlflowSync

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


@pytest.fixture
def unfinished(copied):
    """The finished study, its results taken away: all its trials wait."""
    for place in copied.places.values():
        (place / folder.RESULT).unlink()
    return copied


@pytest.fixture
def run(monkeypatch):
    """A function that puts another in the place of Ray: it is given the folders and what is told of them."""

    def put(act):
        def run_folders(folders, data_dir, cpu, gpu, storage, on_report, on_end, *_, **_also):
            act(folders, on_report, on_end)

        monkeypatch.setattr(ray_tune, "run_folders", run_folders)

    return put


def statuses(study):
    return {run.data.tags["model"]: run.info.status for run in study.runs.values()}


def trained(study):
    """The models that are called for."""
    models = {place.name: model for (model, _), place in study.places.items()}
    called = []

    def act(folders, on_report, on_end):
        called.extend(models[place.name] for place in folders)
        for place in folders:
            on_end(place, "it died")

    return called, act


# --dry-run


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(copied, no_ray, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "harness.tracking.store", None)
    (copied.places["cerdeq", 0] / folder.RESULT).unlink()
    before = snapshot(copied.root)
    assert copied.main("--dry-run") == 0
    printed = capsys.readouterr().out
    assert snapshot(copied.root) == before
    lines = {label: next(line for line in printed.splitlines() if line.startswith(label)) for label in ("cnn5", "cerd")}
    for part in (copied.trials["cnn5", 0].key, "finished", "certified error", " no "):
        assert part in lines["cnn5"]
    for part in (copied.trials["cerdeq", 0].key, "unfinished", "epoch 2 of 2", " yes ", "unknown"):
        assert part in lines["cerd"]
    for part in ("1 CPUs and 0 GPUs a trial", "side by side", "time: unknown", "nothing was started"):
        assert part in printed


def test_a_dry_run_exports_nothing(copied, no_ray, capsys):
    assert copied.main("--dry-run", "--export", str(copied.root / "there")) == 2
    assert "--export" in capsys.readouterr().err
    assert not (copied.root / "there").exists()


def test_a_dry_run_estimates_by_trials_of_the_same_row(copied, no_ray, capsys):
    study = Study(copied.root, {**TINY, "seeds": [0, 1]}, copied.store)
    for model in ("cnn5", "cerdeq"):  # 2 epochs of a minute, 4 minutes of judging
        place = study.places[model, 0]
        rows = [row | {names.TRAIN_EPOCH_SECONDS: 60.0} for row in folder.read_epochs(place)[1:]]
        (place / folder.EPOCHS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = json.loads((place / folder.RESULT).read_text())
        result["metrics"][names.EVALUATION_SECONDS] = 240.0
        (place / folder.RESULT).write_text(json.dumps(result))
    assert study.main("--dry-run") == 0
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if " yes " in line and line.rstrip().endswith(" 6.0 min")]) == 2
    assert "time: 12.0 min of work for 2 of 2 trials" in printed


def test_the_longest_trials_begin_first_and_failed_ones_last(unfinished, run):
    """As seed 1 of each row took: `cerdeq` longer than `cnn5`, which stands first in the file."""
    for trial_dir in unfinished.places.values():
        (trial_dir / folder.EPOCHS).unlink()
    study = Study(unfinished.root, {**TINY, "seeds": [0, 1]}, unfinished.store)
    for model, seconds in (("cnn5", 1.0), ("cerdeq", 100.0)):
        finish(study, model, seconds)
    called, act = trained(unfinished)
    run(act)
    assert unfinished.main() == 1
    (unfinished.places["cnn5", 0] / folder.FAILURE).unlink()
    assert unfinished.main() == 1
    assert called == ["cerdeq", "cnn5", "cnn5", "cerdeq"]


def finish(study, model, seconds):
    """Let seed 1 of a model have finished after epochs of so many seconds."""
    trial_dir, trial = study.places[model, 1], study.trials[model, 1]
    folder.claim(trial_dir, trial)
    folder.write_epoch(trial_dir, {names.EPOCH: 1, names.TRAIN_EPOCH_SECONDS: seconds})
    folder.write_result(trial_dir, folder.TrialResult(trial.key, {}, {}, {}, []))


@pytest.mark.parametrize("number", ["0", "-1"])
def test_less_than_one_at_a_time_is_bad_input(copied, no_ray, capsys, number):
    assert copied.main("--max-concurrent", number) == 2
    assert "--max-concurrent" in capsys.readouterr().err


def test_a_dry_run_of_what_never_ran_makes_no_directory(tmp_path, no_ray, capsys):
    study = Study(tmp_path, TINY, "sqlite:///nowhere.db")
    assert study.main("--dry-run") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.yaml"}
    assert capsys.readouterr().out.count("not begun") == 2


def test_keys_are_made_as_often_as_there_are_trials_and_no_oftener(tmp_path, no_ray, monkeypatch):
    """A key is a hash of a whole config: made for each pair of trials, a thousand of them would take half an hour."""
    study = Study(tmp_path, {**TINY, "seeds": list(range(20))}, "sqlite:///nowhere.db")
    made, make_trial = [], folder.make_trial
    monkeypatch.setattr(folder, "make_trial", lambda *given: made.append(given) or make_trial(*given))
    assert study.main("--dry-run") == 0
    assert len(made) <= 2 * 40


# --only, --set


@pytest.mark.parametrize("pattern", ["cnn5*", "* seed 0", "cnn5 ibp seed 0", "key"])
def test_only_takes_labels_and_keys(unfinished, run, pattern, capsys):
    called, act = trained(unfinished)
    run(act)
    assert unfinished.main("--only", unfinished.trials["cnn5", 0].key if pattern == "key" else pattern) == 1
    assert sorted(called) == (["cerdeq", "cnn5"] if pattern == "* seed 0" else ["cnn5"])


def test_only_counts_what_it_asks_for(copied, no_ray, capsys):
    (copied.places["cerdeq", 0] / folder.RESULT).unlink()
    assert copied.main("--only", "cnn5*") == 0
    assert "1 of 2 trials, 1 finished already" in capsys.readouterr().out


def test_only_of_nothing_is_refused_with_what_there_is(copied, no_ray, capsys):
    assert copied.main("--only", "resnet*") == 2
    error = capsys.readouterr().err
    for part in ("--only", "resnet*", "cnn5 ibp seed 0", "cerdeq ibp seed 0"):
        assert part in error


def test_what_set_changes_stands_apart_and_is_not_registered(copied, run, capsys):
    """As if it had been trained: its errors are better, and still the file's own network stays the best."""
    settings = ("--set", "train.kappa=0.5", "--only", "cnn5*")

    def act(folders, on_report, on_end):
        (place,) = folders
        key = folder.read_trial(place / folder.TRIAL).key
        done = copied.places["cnn5", 0]
        shutil.copytree(done, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(folder.TRIAL))
        result = json.loads((place / folder.RESULT).read_text()) | {"key": key}
        result["metrics"] |= dict.fromkeys((names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR), 1.0)
        (place / folder.RESULT).write_text(json.dumps(result))
        on_end(place, None)

    run(act)
    assert copied.main(*settings) == 0
    printed = capsys.readouterr().out
    assert "1 trials are not the file's: their profile, in tables too, is 'full --set train.kappa=0.5'" in printed
    table = (copied.directory / "leaderboard.md").read_text()
    assert "profile full --set train.kappa=0.5" in table
    assert "not comparable with published" in table
    import mlflow

    best = mlflow.MlflowClient(copied.store).get_model_version_by_alias("tiny", "best")
    assert best.run_id in {copied.runs[trial.key].info.run_id for trial in copied.trials.values()}


# failures


def test_what_would_fail_so_again_is_left_unless_asked_for(unfinished, run, capsys):
    called, act = trained(unfinished)
    run(act)
    folder.write_failure(unfinished.places["cnn5", 0], "NonFiniteLossError: of last week", repeats=True)
    assert unfinished.main() == 1
    assert called == ["cerdeq"]
    printed = capsys.readouterr().out
    assert "failed cnn5 ibp seed 0: NonFiniteLossError: of last week; it would again: --retry-failed" in printed
    called.clear()
    assert unfinished.main("--retry-failed") == 1
    assert sorted(called) == ["cerdeq", "cnn5"]


def test_what_failed_otherwise_is_tried_again_last(unfinished, run):
    called, act = trained(unfinished)
    run(act)
    folder.write_failure(unfinished.places["cnn5", 0], "OSError: disk full")
    assert unfinished.main() == 1
    assert called == ["cerdeq", "cnn5"]


def test_with_fail_fast_a_failure_stops_the_others(unfinished, run, capsys):
    def act(folders, on_report, on_end):
        first, second = folders
        assert not folder.stop_file(first).exists()
        on_end(first, "it died")
        assert folder.stop_file(second).exists()
        on_end(second, None)  # as it was asked to

    run(act)
    assert unfinished.main("--fail-fast") == 1
    assert statuses(unfinished) == {"cnn5": "FAILED", "cerdeq": "KILLED"}
    assert not folder.stop_file(unfinished.places["cnn5", 0]).exists()
    assert "a trial failed: running trials end" in capsys.readouterr().out
    assert "unfinished" in (unfinished.directory / "leaderboard.md").read_text()


def test_without_it_they_go_on(unfinished, run):
    def act(folders, on_report, on_end):
        on_end(folders[0], "it died")
        assert not folder.stop_file(folders[0]).exists()
        on_end(folders[1], "it died")

    run(act)
    assert unfinished.main() == 1


# Ctrl-C


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_once_ends_with_tables_and_runs_that_say_so(unfinished, run, capsys):
    def act(folders, on_report, on_end):
        interrupt()
        assert folder.stop_file(folders[0]).exists()
        for place in folders:
            on_end(place, None)

    run(act)
    assert unfinished.main() == 3
    captured = capsys.readouterr()
    assert "the same command goes on" in captured.err
    assert "Ctrl-C: running trials end with their epoch" in captured.out
    assert statuses(unfinished) == {"cnn5": "KILLED", "cerdeq": "KILLED"}
    assert all(folder.read_failure(place) is None for place in unfinished.places.values())
    assert "2 of 2 epochs" in (unfinished.directory / "leaderboard.md").read_text()


def test_ctrl_c_twice_stops_and_the_runs_say_so_and_go_on_when_the_trials_do(unfinished, run, capsys):
    def act(folders, on_report, on_end):
        for place in folders:
            on_report(place, folder.read_epochs(place)[-1])
        assert statuses(unfinished) == {"cnn5": "RUNNING", "cerdeq": "RUNNING"}
        interrupt()
        interrupt()

    run(act)
    for _ in range(2):
        assert unfinished.main() == 130
        assert statuses(unfinished) == {"cnn5": "KILLED", "cerdeq": "KILLED"}


@pytest.mark.parametrize(("told", "ended"), [("of an epoch", "KILLED"), ("of a failure", "FAILED")])
def test_ctrl_c_twice_breaks_off_nothing_that_is_written_to_mlflow(unfinished, run, monkeypatch, told, ended):
    sync, written = MlflowSync.sync, []

    def interrupted_sync(mirror, place, running=True):
        if not written:
            interrupt()
            interrupt()
        sync(mirror, place, running)
        written.append(place)

    def act(folders, on_report, on_end):
        if told == "of a failure":
            on_end(folders[0], "it died")
        on_report(folders[0], folder.read_epochs(folders[0])[-1])
        pytest.fail("went on")

    monkeypatch.setattr(MlflowSync, "sync", interrupted_sync)
    run(act)
    assert unfinished.main() == 130
    first, *last = written
    assert first in last and len(last) == len(unfinished.places)
    assert sorted(statuses(unfinished).values()) == sorted([ended, "KILLED"])


def test_a_trial_that_is_only_judged_runs_for_mlflow_too(unfinished, run):
    def act(folders, on_report, on_end):
        on_report(folders[0], {names.JUDGED: 0, names.IMAGES: 50})
        assert sorted(statuses(unfinished).values()) == ["FINISHED", "RUNNING"]
        for place in folders:
            on_end(place, "it died")

    run(act)
    assert unfinished.main() == 1
