"""The MLflow mirror: one run a trial, nothing missing and nothing doubled, whatever happened in between."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pandas
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from harness import folder as files
from harness.settings import RECIPE_VERSION, TrainSettings, TrialConfig
from harness.tracking import LARGEST_BATCH, Tracker, TrackingError

FINGERPRINT = "0123456789abcdef" * 4
FINAL = {"certified_error": 100 / 3, "standard_error": 25.0, "bound_width/stem.0": 0.125, "parameters": 650}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The URI of one store, since making a store takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    Tracker.open("first", uri)
    return uri


@pytest.fixture
def tracker(store, request):
    """An experiment of the test's own."""
    return Tracker.open(request.node.name, store)


def make_folder(tmp_path, seed=0, epochs=4):
    config = TrialConfig(
        sweep="study",
        profile="cpu",
        dataset="digits",
        eps="8/255",
        seed=seed,
        model="deqlate",
        method="ibp",
        options={"margin": 0.1, "parametrisation": "perron"},
        train=TrainSettings(epochs=epochs, decay_epochs=(2,), ramp_epochs=1),
    )
    trial = files.make_trial(config, FINGERPRINT)
    folder = tmp_path / "trials" / trial.key
    files.write_json(folder / files.TRIAL, files.trial_json(trial))
    return folder


def train(folder, first, last, loss=1.0):
    for epoch in range(first, last + 1):
        row = {"epoch": epoch, "train/loss": loss / epoch, "train/eps": 0.1 * epoch, "note": "text", "missing": None}
        files.write_epoch(folder, row)


def finish(folder, metrics=FINAL):
    pandas.DataFrame({"index": [0, 1], "verdict": ["certified", "attacked"]}).to_parquet(folder / files.VERDICTS)
    (folder / files.WEIGHTS).write_bytes(b"weights")
    result = {
        "key": folder.name,
        "metrics": metrics,
        "environment": {"device": "cpu", "torch": "2.11"},
        "data": {"train_images": 1437},
        "warnings": ["W is at its bound", "fewer images than published"],
    }
    files.write_json(folder / files.RESULT, result)


def only_run(tracker):
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    return run


def history(tracker, name):
    points = tracker.client.get_metric_history(only_run(tracker).info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def artifacts(tracker, path=None):
    return {file.path for file in tracker.client.list_artifacts(only_run(tracker).info.run_id, path)}


class Watched:
    """A client that counts its calls and dies before call number `fatal`, as if the driver were killed."""

    def __init__(self, client, fatal=None):
        self.client, self.fatal, self.calls, self.batches = client, fatal, Counter(), []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls[name] += 1
            if self.calls.total() == self.fatal:
                raise KeyboardInterrupt
            if name == "log_batch":
                self.batches.append(len(args[1]) if len(args) > 1 else 0)
            return getattr(self.client, name)(*args, **kwargs)

        return call


def watch(tracker, fatal=None):
    return Tracker(tracker.uri, tracker.experiment_id, Watched(tracker.client, fatal))


def assert_complete(tracker, epochs=4):
    run = only_run(tracker)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "deqlate ibp margin=0.1 parametrisation=perron seed 0"
    assert history(tracker, "train/loss") == [(epoch, 1.0 / epoch) for epoch in range(1, epochs + 1)]
    assert history(tracker, "train/eps") == [(epoch, 0.1 * epoch) for epoch in range(1, epochs + 1)]
    for name, value in FINAL.items():
        assert history(tracker, name) == [(epochs, value)]
    assert run.data.metrics.keys() == {"train/loss", "train/eps", *FINAL}
    assert artifacts(tracker) == {files.TRIAL, files.VERDICTS, files.WEIGHTS, files.RESULT}
    assert run.data.params["train.epochs"] == str(epochs)
    assert len(run.inputs.dataset_inputs) == 1


def test_a_trial_from_start_to_end(tracker, tmp_path):
    folder = make_folder(tmp_path)
    tracker.sync(folder)
    assert only_run(tracker).info.status == "RUNNING"
    assert artifacts(tracker) == {files.TRIAL}

    train(folder, 1, 2)
    tracker.sync(folder)
    tracker.sync(folder)
    assert history(tracker, "train/loss") == [(1, 1.0), (2, 0.5)]

    train(folder, 3, 4)
    finish(folder)
    tracker.sync(folder)
    tracker.sync(folder)
    assert_complete(tracker)


def test_a_run_has_the_name_it_was_given_first(tracker, tmp_path):
    folder = make_folder(tmp_path)
    tracker.sync(folder, "deqlate by a name of its own")
    tracker.sync(folder)
    assert only_run(tracker).info.run_name == "deqlate by a name of its own"


def test_what_a_run_says(tracker, tmp_path):
    folder = make_folder(tmp_path)
    finish(folder, {**FINAL, "bound_width": None})
    tracker.sync(folder)
    run = only_run(tracker)
    identity = {"sweep": "study", "model": "deqlate", "method": "ibp", "seed": "0", "profile": "cpu"}
    assert identity.items() <= run.data.tags.items()
    assert run.data.tags["trial"] == folder.name
    assert run.data.tags["environment.device"] == "cpu"
    assert run.data.tags["warnings"] == "W is at its bound\nfewer images than published"
    assert run.data.params.items() >= {
        "recipe_version": str(RECIPE_VERSION),
        "fingerprint": FINGERPRINT,
        "eps": "8/255",
        "options.margin": "0.1",
        "train.decay_epochs": "[2]",
        "train_images": "null",
    }.items()  # fmt: skip
    assert run.data.metrics == FINAL
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("digits", FINGERPRINT[:36])
    assert json.loads(entry.dataset.profile)["classes"] == 10
    assert {tag.key: tag.value for tag in entry.tags} == {"mlflow.data.context": "training, evaluation"}
    content = tracker.client.download_artifacts(run.info.run_id, files.TRIAL, str(tmp_path))
    assert json.loads(Path(content).read_text())["key"] == folder.name


def test_a_finished_trial_costs_one_search(tracker, tmp_path):
    folder = make_folder(tmp_path)
    train(folder, 1, 4)
    finish(folder)
    tracker.sync(folder)
    watched = watch(tracker)
    start = time.perf_counter()
    watched.sync(folder)
    assert time.perf_counter() - start < 0.5
    assert watched.client.calls == {"search_runs": 1}


def test_a_failed_trial_is_tried_again(tracker, tmp_path):
    folder = make_folder(tmp_path)
    train(folder, 1, 2)
    files.write_json(folder / files.FAILURE, {"error": "loss is not finite " * 1000, "epoch": 3})
    tracker.sync(folder)
    tracker.sync(folder)
    run = only_run(tracker)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("loss is not finite")

    (folder / files.FAILURE).unlink()
    train(folder, 2, 3, loss=1.0)
    tracker.sync(folder)
    run = only_run(tracker)
    assert run.info.status == "RUNNING"
    assert "error" not in run.data.tags

    train(folder, 4, 4)
    finish(folder)
    tracker.sync(folder)
    assert_complete(tracker)


def test_an_epoch_run_again_keeps_its_first_point(tracker, tmp_path):
    folder = make_folder(tmp_path)
    train(folder, 1, 3)
    tracker.sync(folder)
    train(folder, 2, 2, loss=7.0)
    tracker.sync(folder)
    train(folder, 3, 4, loss=7.0)
    tracker.sync(folder)
    assert history(tracker, "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 7 / 4)]


def test_a_driver_killed_before_any_call_leaves_nothing_missing_or_doubled(store, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.tracking.LARGEST_BATCH", 4)  # two epochs a batch
    folder = make_folder(tmp_path)
    train(folder, 1, 4)
    finish(folder)
    for fatal in range(1, 100):
        tracker = Tracker.open(f"killed before call {fatal}", store)
        dying = watch(tracker, fatal)
        try:
            dying.sync(folder)
        except KeyboardInterrupt:
            tracker.sync(folder)
            assert_complete(tracker)
        else:
            break
    assert fatal > 10
    assert dying.client.batches == [0, 4, 4, len(FINAL)]


def test_many_metrics_go_in_large_batches(tracker, tmp_path):
    folder = make_folder(tmp_path, epochs=60)
    names = [f"train/bound_width/{layer}" for layer in range(49)]
    rows = [{"epoch": epoch, "train/loss": 0.5, **dict.fromkeys(names, float(epoch))} for epoch in range(1, 61)]
    (folder / files.EPOCHS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    watched = watch(tracker)
    watched.sync(folder)
    assert [size for size in watched.client.batches if size] == [1000, 1000, 1000]
    assert max(watched.client.batches) <= LARGEST_BATCH
    assert history(tracker, names[-1]) == [(epoch, epoch) for epoch in range(1, 61)]


def test_the_untrained_network_is_step_0(tracker, tmp_path):
    """Whether it is logged alone, or with epochs that follow."""
    folder = make_folder(tmp_path)
    initial = {"epoch": 0, "train/eps": 0.0, "train/bound_width": 7.0, "train/bound_width_relative": None}
    files.write_epoch(folder, initial)
    for _ in range(2):
        tracker.sync(folder)
        assert history(tracker, "train/bound_width") == [(0, 7.0)]
    train(folder, 1, 4)
    finish(folder)
    tracker.sync(folder)
    assert history(tracker, "train/bound_width") == [(0, 7.0)]
    assert history(tracker, "train/eps") == [(epoch, 0.1 * epoch) for epoch in range(5)]
    assert history(tracker, "train/loss") == [(epoch, 1.0 / epoch) for epoch in range(1, 5)]


def test_a_new_result_replaces_the_old_one(tracker, tmp_path):
    folder = make_folder(tmp_path)
    finish(folder)
    tracker.sync(folder)
    finish(folder, {**FINAL, "certified_error": 40.0})
    tracker.sync(folder)
    assert only_run(tracker).data.metrics == {**FINAL, "certified_error": 40.0}
    assert history(tracker, "standard_error") == [(4, 25.0)]


def test_trials_are_told_apart(tracker, tmp_path):
    folders = [make_folder(tmp_path, seed) for seed in range(3)]
    for folder in folders + folders:
        tracker.sync(folder)
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert sorted(run.data.tags["trial"] for run in runs) == sorted(folder.name for folder in folders)
    assert not any("mlflow.parentRunId" in run.data.tags for run in runs)


def test_a_deleted_run_is_made_anew(tracker, tmp_path):
    folder = make_folder(tmp_path)
    train(folder, 1, 4)
    finish(folder)
    tracker.sync(folder)
    tracker.client.delete_run(only_run(tracker).info.run_id)
    tracker.sync(folder)
    assert_complete(tracker)
    assert len(tracker.client.search_runs([tracker.experiment_id], run_view_type=ViewType.ALL)) == 2


def test_a_deleted_experiment_is_restored(tracker, tmp_path):
    folder = make_folder(tmp_path)
    tracker.sync(folder)
    name = tracker.client.get_experiment(tracker.experiment_id).name
    tracker.client.delete_experiment(tracker.experiment_id)
    again = Tracker.open(name, tracker.uri)
    again.sync(folder)
    assert again.experiment_id == tracker.experiment_id
    assert only_run(again).data.tags["trial"] == folder.name


def test_tables_go_to_every_run_and_replace_older_ones(tracker, tmp_path):
    tracker.sync_tables(tmp_path)
    for seed in range(2):
        tracker.sync(make_folder(tmp_path, seed))
    for text in ("old", "new"):
        for suffix in ("csv", "md"):
            (tmp_path / f"leaderboard.{suffix}").write_text(text)
        tracker.sync_tables(tmp_path)
    watched = watch(tracker)
    watched.sync_tables(tmp_path)
    assert watched.client.calls == {"search_runs": 1}
    for run in tracker.client.search_runs([tracker.experiment_id]):
        table = tracker.client.download_artifacts(run.info.run_id, "tables/leaderboard.md", str(tmp_path))
        assert Path(table).read_text() == "new"
        assert {f.path for f in tracker.client.list_artifacts(run.info.run_id, "tables")} == {
            "tables/leaderboard.csv",
            "tables/leaderboard.md",
        }


def test_how_to_open(tracker, tmp_path):
    page = f"http://127.0.0.1:5000/#/experiments/{tracker.experiment_id}/runs?compareRunsMode=CHART"
    command = f"uv run mlflow ui --backend-store-uri {tracker.uri}"
    assert tracker.how_to_open() == f"{command}\n{page}"

    finish(folder := make_folder(tmp_path))
    tracker.sync(folder)
    compare = tracker.how_to_open().splitlines()[2]
    query = f'runs=["{only_run(tracker).info.run_id}"]&experiments=["{tracker.experiment_id}"]'
    assert unquote(compare) == f"http://127.0.0.1:5000/#/compare-runs?{query}"
    assert '"' not in compare

    served = Tracker("http://user:secret@server:8080/", tracker.experiment_id, tracker.client).how_to_open()
    assert served.startswith(f"http://user:***@server:8080/#/experiments/{tracker.experiment_id}/runs")


def test_the_environment_names_the_store_and_the_option_wins(store, tmp_path, monkeypatch):
    stores = {name: tmp_path / f"{name}.db" for name in ("environment", "option")}
    for path in stores.values():
        shutil.copy(store.removeprefix("sqlite:///"), path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{stores['environment']}")
    monkeypatch.chdir(tmp_path)
    assert Tracker.open("from the environment").uri == f"sqlite:///{stores['environment']}"
    assert Tracker.open("from the option", "sqlite:///option.db").uri == f"sqlite:///{stores['option']}"
    for name, path in stores.items():
        client = MlflowClient(f"sqlite:///{path}")
        assert {e.name for e in client.search_experiments()} >= {f"from the {name}"}
        assert client.get_experiment_by_name(f"from the {name}").artifact_location.startswith(f"{tmp_path}/mlruns/")
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.timeout(60)
def test_without_a_uri_the_store_is_in_the_working_directory_and_nothing_is_printed(tmp_path):
    place = tmp_path / "a place"
    place.mkdir()
    finish(folder := make_folder(tmp_path))
    code = "import sys, pathlib, harness.tracking as t; t.Tracker.open('study').sync(pathlib.Path(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, str(folder)],
        cwd=place,
        env={**environment, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in place.iterdir()} == {"mlflow.db", "mlruns"}
    tracker = Tracker.open("study", f"sqlite:///{place}/mlflow.db")
    assert only_run(tracker).info.artifact_uri.startswith(f"{place}/mlruns/study/")
    assert f"'sqlite:///{place}/mlflow.db'" in tracker.how_to_open()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///{directory}", "unable to open database file"),
        ("sqlite:///{directory}/text.db", "file is not a database"),
        ("sqlite:///{directory}/text.db/below/mlflow.db", "Not a directory"),
        ("mlruns", "filesystem tracking backend"),
        ("nowhere://at/all", "unsupported URI"),
        ("http://user:secret@127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_store_that_cannot_be_used_is_reported_soon_and_in_one_line(uri, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "text.db").write_text("not a database, but long enough to have the header of one " * 10)
    start = time.perf_counter()
    with pytest.raises(TrackingError, match=reason) as caught:
        Tracker.open("study", uri.format(directory=tmp_path))
    assert time.perf_counter() - start < 5
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("error", [MlflowException("server says no"), OSError(28, "No space left on device")])
def test_a_failure_while_logging_is_a_tracking_error(tracker, tmp_path, monkeypatch, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(tracker.client, "log_artifact", fail)
    with pytest.raises(TrackingError, match=r"server says no|No space left"):
        tracker.sync(make_folder(tmp_path))
