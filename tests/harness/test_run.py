"""`python -m harness.run` from a sweep file to the leaderboard, and again after all that can go wrong in between."""

import csv
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from rich.console import Console

from harness import folder, names, run, sweep, trial
from harness.config import load_sweep
from harness.data import load
from harness.progress import Progress
from harness.settings import RECIPE_VERSION
from harness.training import run_trial

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy
ray = sweep.ray  # Ray reads the environment that harness.sweep prepares
TINY = {
    "name": "tiny",
    "dataset": "digits",
    "eps": "1/16",
    "seeds": [0],
    "width": 0.05,
    "train_images": 256,
    "train": {"epochs": 2, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 1, "decay_epochs": []},
    "evaluation": {"test_images": 50, "attack_steps": 2, "attack_restarts": 1},
    "trials": [{"model": "cnn5", "method": "ibp"}, {"model": "cerdeq", "method": "ibp"}],
}
LONG = {  # some seconds of training, so that there is a middle to be killed in
    **TINY,
    "name": "long",
    "width": 0.25,
    "train_images": 1280,
    "train": {**TINY["train"], "epochs": 24},
    "trials": [{"model": "cnn7", "method": "ibp"}],
}


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "CERDEQ_DATA"):
            patch.delenv(variable, raising=False)
        yield


@pytest.fixture(scope="module")
def cluster(finished):
    """One Ray for all calls of `main` in this process. The command's own start and stop is seen in `finished`."""
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One MLflow store for the module, since making one takes seconds; experiments are told apart by sweep names."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


class Study:
    """A sweep file in a directory of its own, and what came of it."""

    def __init__(self, directory, content, store):
        self.root, self.store, self.name = directory, store, content["name"]
        self.file = directory / "sweep.yaml"
        self.file.write_text(yaml.safe_dump(content))
        self.directory = directory / "results" / self.name
        self.options = [str(self.file), "--results-dir", str(directory / "results"), "--tracking-uri", store]

    def main(self, *options):
        return run.main([*self.options, *options])

    def start(self, **options):
        """The command in a process of its own."""
        command = [sys.executable, "-m", "harness.run", *self.options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    @property
    def trials(self):
        """Every trial of the file by model and seed."""
        fingerprint = load("digits").fingerprint
        return {
            (config.model, config.seed): folder.make_trial(config, fingerprint)
            for config in load_sweep(self.file, None, False).trials
        }

    @property
    def places(self):
        return {name: folder.place(self.directory, made.key) for name, made in self.trials.items()}

    @property
    def runs(self):
        """MLflow's runs by their tag `trial`; a trial with two fails here."""
        client = MlflowClient(self.store)
        experiment = client.get_experiment_by_name(self.name)
        runs = client.search_runs([experiment.experiment_id])
        found = {run.data.tags["trial"]: run for run in runs}
        assert len(found) == len(runs)
        return found

    def history(self, key, metric):
        client = MlflowClient(self.store)
        points = client.get_metric_history(self.runs[key].info.run_id, metric)
        return sorted((point.step, point.value) for point in points)

    def assert_complete(self):
        """Every trial has its result, one finished run with each epoch once, and a place in all four tables."""
        epochs = list(range(next(iter(self.trials.values())).config.train.epochs + 1))
        assert set(self.runs) == {made.key for made in self.trials.values()}
        for made in self.trials.values():
            place = folder.place(self.directory, made.key)
            result, logged = folder.read_result(place), self.runs[made.key]
            assert result.key == made.key
            assert folder.read_failure(place) is None
            assert [row[names.EPOCH] for row in folder.read_epochs(place)] == epochs
            assert logged.info.status == "FINISHED"
            for name in (names.CERTIFIED_ERROR, names.ATTACK_ERROR, names.STANDARD_ERROR, names.BOUND_WIDTH):
                assert self.history(made.key, name) == [(epochs[-1], result.metrics[name])]
            for name, first in (
                (names.TRAIN_LOSS, 1),
                (names.TRAIN_EPS, 0),
                (names.in_training(names.BOUND_WIDTH), 0),
                (names.TRAIN_EXAMPLES_PER_SECOND, 1),
            ):
                written = [(row[names.EPOCH], row[name]) for row in folder.read_epochs(place)[first:]]
                assert self.history(made.key, name) == written
        assert self.files() == {".lock", "leaderboard.md", "leaderboard.csv", "leaderboard.json", "leaderboard.html"}

    def files(self):
        """What lies in the sweep's directory besides the trials."""
        return {path.name for path in self.directory.iterdir()} - {"trials"}


def snapshot(directory):
    """Every file below, with content and time of change."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}


def descendants(pid):
    """All processes below `pid`, from /proc."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return found


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def workers(pid):
    """Ray's processes below `pid` that run a trial."""
    found = []
    for child in descendants(pid):
        try:
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::ImplicitFunc"):
                found.append(child)
        except OSError:
            continue
    return found


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


# The whole way.


@pytest.fixture(scope="module")
def finished(tmp_path_factory, store):
    """The command in a process of its own, on a terminal nobody watches, and what is left of it."""
    study = Study(tmp_path_factory.mktemp("tiny"), TINY, store)
    driver = study.start(cwd=study.root)
    started = set()

    def watch():
        while driver.poll() is None:
            started.update(descendants(driver.pid))
            time.sleep(0.3)

    watching = threading.Thread(target=watch)
    watching.start()
    study.out, study.err = driver.communicate(timeout=280)
    watching.join()
    study.status, study.processes = driver.returncode, started
    return study


def test_the_whole_way(finished):
    assert finished.status == 0, finished.err
    finished.assert_complete()
    assert {path.name for path in finished.root.iterdir()} == {"sweep.yaml", "results"}, "nothing lies about"
    for place in finished.places.values():
        assert {path.name for path in place.iterdir()} == {
            folder.TRIAL,
            folder.EPOCHS,
            folder.CHECKPOINT,
            folder.WEIGHTS,
            folder.VERDICTS,
            folder.RESULT,
        }


def test_what_mlflow_has_of_a_trial(finished):
    for (model, seed), made in finished.trials.items():
        logged = finished.runs[made.key]
        tags = {"sweep": "tiny", "trial": made.key, "model": model, "method": "ibp", "seed": str(seed)}
        assert tags.items() <= logged.data.tags.items()
        assert logged.info.run_name == made.config.label
        assert {
            names.CERTIFIED_ERROR,
            names.STANDARD_ERROR,
            names.ATTACK_ERROR,
            names.BOUND_WIDTH,
            names.BOUND_WIDTH_RELATIVE,
            names.TRAIN_LOSS,
            names.TRAIN_EPS,
            names.TRAIN_EXAMPLES_PER_SECOND,
        } <= logged.data.metrics.keys()
        layers = [name for name in logged.data.metrics if name.startswith(f"{names.BOUND_WIDTH}/")]
        assert len(layers) >= 3, "a width for each pre-activation"
        metrics = logged.data.metrics
        order = [metrics[name] for name in (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)]
        assert order == sorted(order)
        assert (names.GAIN in metrics) == (model == "cerdeq")


def test_the_four_tables(finished):
    markdown, html = (finished.directory / f"leaderboard.{kind}" for kind in ("md", "html"))
    for text in (markdown.read_text(), html.read_text()):
        assert "cnn5" in text
        assert "cerdeq" in text
    rows = json.loads((finished.directory / "leaderboard.json").read_text())
    with open(finished.directory / "leaderboard.csv") as file:
        lines = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {row["model"] for row in lines} == {"cnn5", "cerdeq"}
    for row in rows:
        place = finished.places[row["model"], 0]
        assert row[names.CERTIFIED_ERROR] == folder.read_result(place).metrics[names.CERTIFIED_ERROR]


def test_what_is_printed(finished):
    assert finished.err == "", "neither Ray nor MLflow speaks"
    assert "2 trials, 0 finished already" in finished.out
    for model in ("cnn5", "cerdeq"):
        assert f"done {model} ibp seed 0: standard error" in finished.out
    for part in ("leaderboard.md", f"mlflow ui --backend-store-uri {finished.store}", "compare-runs"):
        assert part in finished.out
    assert "\x1b" not in finished.out, "no colours in a file"
    assert "ray" not in finished.out.lower()


def test_no_process_is_left(finished):
    assert len(finished.processes) > 3, "Ray was seen"
    wait_for(lambda: not any(map(alive, finished.processes)), 30)


def test_a_second_call_does_nothing(finished, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "harness.sweep", None)  # Ray cannot be imported, let alone started
    before, runs = snapshot(finished.directory / "trials"), finished.runs
    tables = {kind: (finished.directory / f"leaderboard.{kind}").read_bytes() for kind in ("md", "csv", "json", "html")}
    assert finished.main() == 0
    assert "2 trials, 2 finished already" in capsys.readouterr().out
    assert snapshot(finished.directory / "trials") == before
    assert finished.runs.keys() == runs.keys()
    for key, logged in finished.runs.items():
        assert logged.data.metrics == runs[key].data.metrics
        assert logged.info.end_time == runs[key].info.end_time
    for kind, content in tables.items():
        assert (finished.directory / f"leaderboard.{kind}").read_bytes() == content
    finished.assert_complete()


def test_what_mlflow_lost_is_logged_again(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "harness.sweep", None)
    key = finished.trials["cnn5", 0].key
    MlflowClient(finished.store).delete_run(finished.runs[key].info.run_id)
    assert set(finished.runs) == {finished.trials["cerdeq", 0].key}
    assert finished.main() == 0
    finished.assert_complete()


@pytest.fixture
def copied(finished, tmp_path):
    """The finished study in a directory that a test may spoil; MLflow's is shared."""
    shutil.copytree(finished.root / "results", tmp_path / "results")
    return Study(tmp_path, TINY, finished.store)


def test_a_missing_result_alone_is_made_again(copied, cluster):
    lost, kept = copied.places["cerdeq", 0], copied.places["cnn5", 0]
    result = folder.read_result(lost)
    (lost / folder.RESULT).unlink()
    others, before, run_ids = snapshot(kept), snapshot(lost), {key: r.info.run_id for key, r in copied.runs.items()}
    assert copied.main() == 0
    copied.assert_complete()
    assert snapshot(kept) == others
    after = snapshot(lost)
    for name in (folder.CHECKPOINT, folder.EPOCHS, folder.TRIAL):
        assert after[lost / name] == before[lost / name], f"{name} was written again: training went on past its end"
    again = folder.read_result(lost)
    assert {k: v for k, v in again.metrics.items() if k != names.EVALUATION_SECONDS} == {
        k: v for k, v in result.metrics.items() if k != names.EVALUATION_SECONDS
    }
    assert {key: r.info.run_id for key, r in copied.runs.items()} == run_ids


@pytest.mark.slow
def test_more_seeds_train_only_the_new_ones(copied, cluster):
    """The sweep file grows: what is there stays."""
    before = snapshot(copied.directory / "trials")
    grown = {**TINY, "seeds": [0, 1], "trials": [{"model": "cnn5", "method": "ibp"}]}
    study = Study(copied.root, grown, copied.store)
    assert study.main() == 0
    after = snapshot(copied.directory / "trials")
    assert {path: after[path] for path in before} == before
    assert folder.read_result(study.places["cnn5", 1]) is not None
    rows = json.loads((study.directory / "leaderboard.json").read_text())
    assert {row["model"]: row["seeds"] for row in rows} == {"cnn5": 2, "cerdeq": 1}


def test_a_trial_made_elsewhere_is_imported(tmp_path, store, monkeypatch, capsys):
    """Exported, trained without Ray under another directory, copied, and found finished."""
    study = Study(tmp_path, {**TINY, "name": "imported", "trials": TINY["trials"][:1]}, store)
    assert study.main("--export", str(tmp_path / "exported")) == 0
    (made,) = study.trials.values()
    (exported,) = (tmp_path / "exported").iterdir()
    assert capsys.readouterr().out.split() == [str(exported)]
    assert folder.read_trial(exported) == made
    assert not study.directory.exists()
    assert trial.main([str(exported), "--results-dir", str(tmp_path / "elsewhere")]) == 0
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "results")
    before = snapshot(study.directory / "trials")
    monkeypatch.setitem(sys.modules, "harness.sweep", None)
    assert study.main() == 0
    assert snapshot(study.directory / "trials") == before
    study.assert_complete()
    (row,) = json.loads((study.directory / "leaderboard.json").read_text())
    assert row["model"] == "cnn5"


@pytest.mark.slow
def test_a_trial_that_diverges_is_told_and_harms_no_other(tmp_path, store, cluster, capfd):
    trials = [{"model": "cnn5", "method": "ibp"}, {"model": "cnn25", "method": "ibp", "width": 0.5}]
    train = {**TINY["train"], "learning_rate": 0.9, "clip_norm": 1e30}
    content = {**TINY, "name": "diverging", "eps": 1, "train": train, "trials": trials}
    study = Study(tmp_path, content, store)
    assert study.main() == 1
    printed = capfd.readouterr()
    well, bad = study.places["cnn5", 0], study.places["cnn25", 0]
    assert folder.read_result(well) is not None
    assert folder.read_result(bad) is None
    failure = folder.read_failure(bad)
    assert "NonFiniteLossError" in failure["error"]
    assert "epoch 1" in failure["error"]
    assert failure["last_finite"][names.EPOCH] == 1
    assert failure["last_finite"][names.TRAIN_LOSS] > 0
    assert study.runs[well.name].info.status == "FINISHED"
    assert study.runs[bad.name].info.status == "FAILED"
    assert "NonFiniteLossError" in study.runs[bad.name].data.tags["error"]
    assert "failed cnn25 ibp width=0.5 seed 0: NonFiniteLossError" in printed.out
    assert "non-finite" in (study.directory / "leaderboard.md").read_text()
    assert printed.err == ""
    assert "Trial " not in printed.out, "Tune's own words"
    assert study.files() >= {"leaderboard.md"}
    assert not {name for name in study.files() if "ray" in name}


# Kills.


def assert_goes_on(place, before):
    """Epochs that were there are there still, to the last digit of their durations: none was trained again."""
    rows = folder.read_epochs(place)
    assert rows[: len(before)] == before


def stopped_in_the_middle(study, number):
    """Start the command, send it the signal once a trial has three epochs, and wait until no worker of it is left."""
    driver = study.start()
    try:
        wait_for(lambda: any(len(folder.read_epochs(place)) > 2 for place in study.places.values()), 150)
        running = workers(driver.pid)
        assert running, "trials run"
        driver.send_signal(number)
        out, err = driver.communicate(timeout=60)
    finally:
        driver.kill()
    wait_for(lambda: not any(map(alive, running)), 15)
    left = {place: folder.read_epochs(place) for place in study.places.values()}
    assert any(folder.read_result(place) is None for place in left)
    time.sleep(1)
    assert {place: folder.read_epochs(place) for place in left} == left, "nobody writes any more"
    return driver.returncode, out, err, left


def assert_the_same_command_finishes(study, left):
    assert study.main() == 0
    study.assert_complete()
    for place, before in left.items():
        assert_goes_on(place, before)


@pytest.mark.slow
def test_a_driver_that_is_killed(tmp_path, store, cluster):
    study = Study(tmp_path, {**LONG, "name": "killed", "seeds": [0, 1, 2]}, store)
    *_, left = stopped_in_the_middle(study, signal.SIGKILL)
    assert_the_same_command_finishes(study, left)


@pytest.mark.slow
def test_a_worker_that_is_killed(tmp_path, store, cluster, caplog, capsys):
    study = Study(tmp_path, {**LONG, "name": "worker"}, store)
    (place,) = study.places.values()
    before, killed = [], []

    def kill():
        wait_for(lambda: len(folder.read_epochs(place)) > 2)
        killed.extend(workers(os.getpid()))
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        before.extend(folder.read_epochs(place))

    killer = threading.Thread(target=kill)
    killer.start()
    assert study.main() == 0
    killer.join()
    assert killed
    assert 3 <= len(before) < 12
    study.assert_complete()
    assert_goes_on(place, before)
    assert "Traceback" not in capsys.readouterr().out
    assert not caplog.records, "a retry is nobody's business, and Tune's traceback would tear the live table"


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(tmp_path, store, cluster):
    study = Study(tmp_path, {**LONG, "name": "stopped"}, store)
    status, out, err, left = stopped_in_the_middle(study, signal.SIGINT)
    assert status == 130
    assert "stopped; the same command goes on" in out
    assert "Traceback" not in err
    assert study.files() == {".lock"}, "nothing of Ray's is left"
    assert_the_same_command_finishes(study, left)


class KilledError(BaseException):
    """Stands for SIGKILL: no handler of the project's catches it."""


@pytest.mark.parametrize("where", ["write_epoch", "checkpoint.save"])
def test_killed_between_the_files_of_an_epoch(tiny_trial, tmp_path, monkeypatch, where):
    """Checkpoint and row of an epoch are two files; a process may die between them, and no row may be missing."""
    config = tiny_trial(width=0.05)

    def die(*_args, **_kwargs):
        raise KilledError

    done = []

    def report(row):
        done.append(row)
        if row[names.EPOCH] == 1:
            monkeypatch.setattr(f"harness.training.loop.{where}", die)

    with pytest.raises(KilledError):
        run_trial(config, tmp_path, report)
    monkeypatch.undo()
    result = run_trial(config, tmp_path)
    rows = folder.read_epochs(tmp_path)
    assert [row[names.EPOCH] for row in rows] == [0, 1, 2, 3]
    assert rows[:2] == done
    assert result.metrics[names.TRAIN_SECONDS] == pytest.approx(sum(row[names.TRAIN_EPOCH_SECONDS] for row in rows[1:]))
    unbroken = tmp_path.with_name(f"{tmp_path.name}-unbroken")
    assert run_trial(config, unbroken).metrics[names.CERTIFIED_ERROR] == result.metrics[names.CERTIFIED_ERROR]
    whole = folder.read_epochs(unbroken)
    assert rows[0] == whole[0]
    assert [row[names.TRAIN_LOSS] for row in rows[1:]] == [row[names.TRAIN_LOSS] for row in whole[1:]]


# What lies in the results directory.


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "harness.sweep", None)


def test_a_result_of_another_trial_is_not_taken_for_this_one_s(copied, no_ray, capsys):
    """The table does not count it; then the command may not say that all is well."""
    wrong, right = copied.places["cnn5", 0], copied.places["cerdeq", 0]
    shutil.copy(right / folder.RESULT, wrong / folder.RESULT)
    try:
        status = copied.main()
    except ImportError:
        return  # trained again
    assert status != 0


def test_a_stale_trial_that_today_s_code_cannot_read_is_flagged(copied, no_ray):
    """A folder of an older recipe, whose config had a setting that is gone: stale, not in the way."""
    stale = folder.trial_json(copied.trials["cnn5", 0])
    stale |= {"key": "0" * 16, "recipe_version": RECIPE_VERSION - 1}
    stale["config"]["train"]["momentum"] = 0.9
    folder.write_json(copied.directory / "trials" / ("0" * 16) / folder.TRIAL, stale)
    assert copied.main() == 0
    assert "0000000000000000" in (copied.directory / "leaderboard.md").read_text()


@pytest.mark.parametrize("name", [folder.EPOCHS, folder.RESULT, folder.FAILURE])
def test_a_damaged_file_is_told_and_hides_no_other_trial(copied, no_ray, capsys, name):
    """In a folder that the sweep no longer names: told by its path; everything else is logged and tabled."""
    left, kept = copied.places["cerdeq", 0], copied.trials["cnn5", 0].key
    study = Study(copied.root, {**TINY, "trials": TINY["trials"][:1]}, copied.store)
    if name == folder.FAILURE:
        (left / folder.RESULT).unlink()
    (left / name).write_text("{")
    left = left.rename(left.with_name("0" * 16))  # first in order
    if kept in study.runs:
        MlflowClient(study.store).delete_run(study.runs[kept].info.run_id)
    study.main()
    captured = capsys.readouterr()
    assert str(left / name) in captured.out + captured.err
    assert "cnn5" in (study.directory / "leaderboard.md").read_text()
    assert study.runs[kept].info.status == "FINISHED"


def test_what_ray_left_of_a_killed_driver_is_cleared_away(copied, no_ray):
    """Killed after the last result was written: nothing is left to train, so nobody else would."""
    (copied.directory / ".ray/123").mkdir(parents=True)
    assert copied.main() == 0
    assert ".ray" not in copied.files()


def test_an_old_failure_is_not_told_as_a_new_one(tmp_path, store, monkeypatch, capsys):
    """A worker dies before it begins: the reason is that, not what failure.json says of last week."""
    study = Study(tmp_path, {**TINY, "name": "old", "trials": TINY["trials"][:1]}, store)
    (place,) = study.places.values()
    ((_, made),) = study.trials.items()
    folder.claim(place, made)
    folder.write_json(place / folder.FAILURE, {"error": "RuntimeError: last week's", "last_finite": {}})

    def dies_at_once(folders, data_dir, cpu, gpu, storage, on_epoch, on_end, *_):
        on_end(folders[0], "its worker failed 3 times: it died")

    monkeypatch.setattr(sweep, "run_folders", dies_at_once)
    assert study.main() == 1
    assert "it died" in folder.read_failure(place)["error"]
    assert "last week" not in capsys.readouterr().out


def test_mlflow_out_of_reach_is_bad_input(tmp_path, no_ray, capsys):
    study = Study(tmp_path, TINY, "nothing://here")
    assert study.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nothing://here" in error
    assert not (study.directory / "trials").exists()


def test_more_than_the_machine_has_is_bad_input(tmp_path, store, cluster, capsys):
    study = Study(tmp_path, {**TINY, "name": "large", "resources": {"cpu": 64}}, store)
    assert study.main() == 2
    assert "64 CPU" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_bad_input(tmp_path, store, monkeypatch, capsys):
    """Ray's ConnectionError, told in a line."""

    def nobody(address, **_options):
        raise ConnectionError(f"Could not find any running Ray instance at {address}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nobody)
    assert Study(tmp_path, TINY, store).main("--ray-address", "10.0.0.1:6379") == 2
    assert "10.0.0.1:6379" in capsys.readouterr().err


def test_exporting_tells_which_profile_was_picked(tmp_path, store, capsys):
    """Exported on a laptop for a GPU box: that these are the small trials must not come as a surprise."""
    study = Study(tmp_path, {**TINY, "profiles": {"cpu": {"seeds": [1]}}}, store)
    assert study.main("--export", str(tmp_path / "exported")) == 0
    captured = capsys.readouterr()
    assert "cpu" in captured.out.replace(str(tmp_path), "") + captured.err


def test_the_profile_is_printed_and_stands_in_every_table(tmp_path, store, no_ray, capsys, tiny_trial):
    """A profile's numbers are not comparable, and everything it produces says so."""
    content = {**TINY, "name": "profiled", "trials": TINY["trials"][:1], "profiles": {"cpu": {"seeds": [1]}}}
    study = Study(tmp_path, content, store)
    ((_, made),) = study.trials.items()
    assert made.config.profile == "cpu"
    run_trial(made.config, folder.place(study.directory, made.key))
    capsys.readouterr()
    assert study.main() == 0
    assert "no GPU here: profile 'cpu' was picked" in capsys.readouterr().out
    for kind in ("md", "html"):
        assert "not comparable with published" in (study.directory / f"leaderboard.{kind}").read_text()
    for kind in ("csv", "json"):
        assert "cpu" in (study.directory / f"leaderboard.{kind}").read_text()
    assert study.runs[made.key].data.tags["profile"] == "cpu"


@pytest.mark.parametrize("text", ["closing [/tag]", "[red]colour", "C:\\[x]", "[0, 1]\nsecond line", ""])
def test_whatever_an_error_says_is_printed_as_it_is(tiny_trial, capsys, text):
    made = folder.make_trial(tiny_trial(), "data")
    with Progress([made], Console(width=300)) as progress:
        progress.failed(made.key, text)
    assert text.strip() in capsys.readouterr().out


def test_progress_on_a_terminal_shows_every_state(tiny_trial):
    made = [folder.make_trial(tiny_trial(seed=seed), "data") for seed in range(5)]
    metrics = {names.STANDARD_ERROR: 10.0, names.ATTACK_ERROR: 20.0, names.CERTIFIED_ERROR: 30.0}
    row = {names.EPOCH: 1, names.TRAIN_EPOCH_SECONDS: 60.0, names.TRAIN_LOSS: None, names.TRAIN_EPS: 0.01}
    initial = {names.EPOCH: 0, names.TRAIN_EPS: 0.0, names.in_training(names.BOUND_WIDTH): 5.0}
    console = Console(width=200, force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    progress = Progress(made, console)
    progress.epoch(made[0].key, row)
    progress.epoch(made[1].key, {**row, names.EPOCH: 3})
    progress.epoch(made[4].key, initial)
    progress.finished(made[2].key, folder.TrialResult(made[2].key, metrics, {}, {}, ["odd [/x]"]))
    console.print(progress._render())
    text = console.export_text()
    for part in ("1/3", "2.0 min", "evaluating", "done", "30.00", "waiting", "0/3", "1 done, 3 running, 1 waiting"):
        assert part in text
    console.file.close()


def test_two_runs_at_once_are_kept_apart(finished, capsys):
    with open(finished.directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert finished.main() == 2
    assert "another run" in capsys.readouterr().err
