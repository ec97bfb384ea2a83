"""What a run does is chosen and seen before: --dry-run, --only, --set, --fail-fast, --retry-failed, Ctrl-C."""

import json
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from study import TINY, Study, snapshot

from baselines import build
from harness.launch import estimate, gpu_memory, ray_tune
from harness.measure.machine import operations
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
    for part in (copied.trials["cerdeq", 0].key, "unfinished", "epoch 2 of 2", " yes ", "about 0.0 min"):
        assert part in lines["cerd"]
    for part in ("1 CPUs and 0 GPUs a trial", "side by side", "for 1 of them as other rows did", "nothing was started"):
        assert part in printed


def test_what_cannot_be_estimated_is_not_known(copied, no_ray, monkeypatch, capsys):
    """A finished trial without its seconds; networks and methods of users, which do what they like."""
    place = copied.places["cnn5", 0]
    result = json.loads((place / folder.RESULT).read_text())
    (place / folder.RESULT).write_text(json.dumps(result | {"metrics": {}}))
    (copied.places["cerdeq", 0] / folder.RESULT).unlink()
    assert copied.main("--dry-run") == 0
    assert "about" in capsys.readouterr().out

    def fails(*_given, **_named):
        raise RuntimeError("Tensor.item() cannot be called")

    monkeypatch.setattr(estimate, "make_method", fails)
    monkeypatch.setattr(gpu_memory, "training_memory", fails)
    asking = Study(copied.root, {**TINY, "resources": {"cpu": 1, "gpu": 0.5}}, copied.store)
    assert asking.main("--dry-run") == 0
    assert "time: nothing is known" in capsys.readouterr().out


def test_a_dry_run_exports_nothing(copied, no_ray, capsys):
    assert copied.main("--dry-run", "--export", str(copied.root / "there")) == 2
    assert "--export" in capsys.readouterr().err
    assert not (copied.root / "there").exists()


@pytest.fixture
def gpu(monkeypatch):
    """A function that lets torch see one GPU with so many bytes of memory."""

    def see(size):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=size))

    return see


def test_a_dry_run_sets_memory_beside_the_share_of_a_gpu(copied, no_ray, gpu, capsys):
    """`cnn5` and `cerdeq` as small as here take some 3 MB; without GPUs asked for, nothing is said of them."""
    assert copied.main("--dry-run") == 0
    assert "memory" not in capsys.readouterr().out
    asking = Study(copied.root, {**TINY, "resources": {"cpu": 1, "gpu": 0.5}}, copied.store)
    for size, told in ((None, "none here"), (2**40, "gpu: 0.5 is 511.0 GiB here\n"), (2**22, "which is too little")):
        if size:
            gpu(size)
        assert asking.main("--dry-run") == 0
        printed = capsys.readouterr().out
        assert "GPU memory" in printed
        assert told in printed


@pytest.mark.parametrize(("size", "warned"), [(2**22, True), (2**40, False)])
def test_a_share_too_small_for_training_is_warned_of(unfinished, run, gpu, capsys, size, warned):
    run(lambda *_: None)
    gpu(size)
    asking = Study(unfinished.root, {**TINY, "resources": {"cpu": 1, "gpu": 0.5}}, unfinished.store)
    asking.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: training cerdeq")]
    assert len(lines) == warned
    assert all("1 MiB here" in line for line in lines)


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
    assert "time: 12.0 min of work for 2 trials" in printed


def test_a_row_that_never_ran_is_estimated_by_operations(copied, no_ray, capsys):
    """`cnn5` took 10 minutes; `tied9`, of which nothing is known, has 2.3 times its operations."""
    trials = [*TINY["trials"], {"model": "tied9", "method": "ibp"}]
    study = Study(copied.root, {**TINY, "trials": trials}, copied.store)
    (copied.places["cerdeq", 0] / folder.TRIAL).unlink()
    place = study.places["cnn5", 0]
    rows = [row | {names.TRAIN_EPOCH_SECONDS: 300.0} for row in folder.read_epochs(place)[1:]]
    (place / folder.EPOCHS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((place / folder.RESULT).read_text())
    result["metrics"][names.EVALUATION_SECONDS] = 0.0
    (place / folder.RESULT).write_text(json.dumps(result))
    assert study.main("--only", "tied9*", "--dry-run") == 0
    least, most = (build(name, "digits", 0.05).train() for name in ("cnn5", "tied9"))
    ratio = operations(lambda: most(torch.zeros(2, 1, 8, 8))) / operations(lambda: least(torch.zeros(2, 1, 8, 8)))
    assert f"about {10 * ratio:.1f} min" in capsys.readouterr().out


def test_the_longest_trials_begin_first_and_failed_ones_last(unfinished, run):
    """Nothing has finished: `cerdeq`, with twice the operations of `cnn5`, stands second in the file."""
    for place in unfinished.places.values():
        (place / folder.EPOCHS).unlink()
    called, act = trained(unfinished)
    run(act)
    assert unfinished.main() == 1
    (unfinished.places["cnn5", 0] / folder.FAILURE).unlink()
    assert unfinished.main() == 1
    assert called == ["cerdeq", "cnn5", "cnn5", "cerdeq"]


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
    assert unfinished.main() == 130
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
