"""What MLflow has of networks, in a real SQLite store: nothing missing and nothing doubled, whatever happened."""

import contextlib
import errno
import itertools
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow_folders import (
    EVALUATION,
    FINAL,
    FINGERPRINT,
    artifacts,
    assert_complete,
    finish,
    make_folder,
    only_run,
    train,
)
from rich.console import Console
from servers import free_port

from harness.common.radius import Radius
from harness.config.training import RECIPE_VERSION
from harness.storage import files, folder, training_progress
from harness.tracking import view
from harness.tracking.client import TrackingError
from harness.tracking.tracker import STATE, Tracker, row_of


class CountingClient:
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


def opened(sweep, uri=None):
    return Tracker.open(sweep, uri, Console())


def counting(tracker, fatal=None):
    other = Tracker(tracker.uri, tracker.sweep, tracker.experiment_id, tracker.client, tracker.console)
    other.client = CountingClient(tracker.client, fatal)
    return other


def test_a_run_follows_its_network_from_epoch_0_to_the_end(tracker, tmp_path):
    network_dir = make_folder(tmp_path)
    tracker.log(network_dir)
    assert only_run(tracker).info.status == "RUNNING" and artifacts(tracker) == {folder.TRAINING}
    training_progress.write_epoch(network_dir, {"epoch": 0, "train/eps": 0.0, "train/bound_width_relative": None})
    for first, last in ((1, 2), (3, 4)):
        for _ in range(2):
            tracker.log(network_dir)
        train(network_dir, first, last)
    finish(network_dir)
    for _ in range(2):
        tracker.log(network_dir)
    assert_complete(tracker, first=0)
    counted = counting(tracker)
    counted.log(network_dir)
    assert not counted.client.calls, "once it is complete"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_later_command_goes_on_by_the_network_s_file_and_without_it_by_the_run(tracker, tmp_path, is_there):
    network_dir = make_folder(tmp_path)
    train(network_dir, 1, 2)
    tracker.log(network_dir)
    if not is_there:
        (network_dir / STATE).unlink()
    later = counting(opened(tracker.sweep, tracker.uri))
    for epoch in (3, 4):
        train(network_dir, epoch, epoch)
        later.log(network_dir)
    assert later.client.calls["get_metric_history"] == (0 if is_there else 1)
    finish(network_dir)
    later.log(network_dir)
    assert_complete(tracker)


def test_a_driver_killed_after_mlflow_has_something_and_before_the_file_says_so_sends_nothing_twice(
    tracker, tmp_path, monkeypatch
):
    monkeypatch.setattr("harness.tracking.tracker.LARGEST_BATCH", 8)  # two epochs a batch
    network_dir, writes, later = make_folder(tmp_path), [], tracker
    train(network_dir, 1, 4)
    finish(network_dir)

    def write(path, content):
        writes.append(path)
        if len(writes) % 2:
            raise KeyboardInterrupt
        files.write_json(path, content)

    monkeypatch.setattr("harness.tracking.tracker.write_json", write)
    for _ in range(20):
        with contextlib.suppress(KeyboardInterrupt):
            later.log(network_dir)
        later = opened(tracker.sweep, tracker.uri)
    written = len(writes)
    later.log(network_dir)
    assert 10 < len(writes) == written, "nothing is left to send"
    assert_complete(tracker)


def test_a_store_that_was_moved_with_its_files_gets_all_again_where_they_are(opened_store, tmp_path, request):
    """MLflow keeps absolute paths of files."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(opened_store.removeprefix("sqlite:///"), old / "mlflow.db")
    network_dir = make_folder(old)
    train(network_dir, 1, 4)
    finish(network_dir)
    tracker = opened("moved", f"sqlite:///{old}/mlflow.db")
    tracker.log(network_dir)
    (old / "leaderboard.md").write_text("")
    assert tracker.finish(old, [], [network_dir.name])
    old.rename(new)
    moved = opened("moved", f"sqlite:///{new}/mlflow.db")
    assert moved.finish(new, [], [network_dir.name])
    assert_complete(moved)
    version = moved.client.get_model_version_by_alias("moved", "best")
    assert Path(version.source).is_relative_to(new) and (Path(version.source) / "MLmodel").exists()
    names = {experiment.name for experiment in moved.client.search_experiments()}
    assert {"moved", f"moved, experiment {tracker.experiment_id}, files in {old}/mlruns/moved"} <= names
    assert opened("moved", f"sqlite:///{new}/mlflow.db").experiment_id == moved.experiment_id


def test_a_run_has_the_network_s_tags_and_parameters(tracker, tmp_path):
    network_dir = make_folder(tmp_path)
    finish(network_dir, {**FINAL, "bound_width": None})
    tracker.log(network_dir)
    run = only_run(tracker)
    identity = {"sweep": tracker.sweep, "model": "deqlate", "method": "ibp", "seed": "0"}
    tags = {"trial": network_dir.name, "environment.device": "cpu", "eps": "8/255", "stages": "ibp"}
    assert (identity | tags).items() <= run.data.tags.items()
    assert run.data.tags["warnings"] == "W is at its bound\nfewer images than published"
    assert run.data.params.items() >= {
        "recipe_version": str(RECIPE_VERSION),
        "fingerprint": FINGERPRINT,
        "train.eps": "8/255",
        "options.margin": "0.1",
        "train.decay_epochs": "[2]",
        "train_images": "null",
    }.items()  # fmt: skip
    assert run.data.metrics == FINAL | {"eps": pytest.approx(8 / 255)}


def test_a_new_result_replaces_the_old_one(tracker, tmp_path):
    network_dir = make_folder(tmp_path)
    train(network_dir, 1, 4)
    finish(network_dir, {**FINAL, "certified_error": 40.0})
    tracker.log(network_dir)
    assert only_run(tracker).data.metrics["certified_error"] == 40.0
    finish(network_dir)
    tracker.log(network_dir)
    assert only_run(tracker).data.metrics["certified_error"] == FINAL["certified_error"]


def test_charts_average_no_networks_that_differ_in_more_than_their_seeds(tracker, tmp_path):
    """Though their rows have one name: of other data, of another recipe, or with fewer images."""
    record = folder.read_training(make_folder(tmp_path) / folder.TRAINING)
    others = [replace(record, fingerprint="f" * 64), replace(record, recipe_version=1)]
    others += [replace(record, config=record.config.replace(train_images=1000))]
    assert len({row_of(each) for each in [record, *others]}) == 4
    assert {row_of(each).rpartition(" ")[0] for each in [record, *others]} == {record.config.row}
    assert row_of(replace(record, config=record.config.replace(seed=1))) == row_of(record)


def test_a_failed_network_is_tried_again_and_a_repeated_epoch_keeps_its_first_point(tracker, tmp_path):
    network_dir = make_folder(tmp_path)
    train(network_dir, 1, 2)
    files.write_json(network_dir / folder.FAILURE, {"error": "loss is not finite " * 1000, "epoch": 3})
    for _ in range(2):
        tracker.log(network_dir)
    run = only_run(tracker)
    assert run.info.status == "FAILED" and run.data.tags["error"].startswith("loss is not finite")
    (network_dir / folder.FAILURE).unlink()
    train(network_dir, 2, 2, loss=7.0)
    tracker.log(network_dir)
    run = only_run(tracker)
    assert run.info.status == "RUNNING" and "error" not in run.data.tags
    train(network_dir, 3, 4)
    finish(network_dir)
    tracker.log(network_dir)
    assert_complete(tracker)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_driver_killed_before_any_call_leaves_nothing_missing_or_doubled(opened_store, tmp_path, monkeypatch, step):
    monkeypatch.setattr("harness.tracking.tracker.LARGEST_BATCH", 8)  # two epochs a batch
    network_dir = make_folder(tmp_path)
    train(network_dir, 1, 4)
    finish(network_dir)
    complete = counting(opened(f"not killed {step}", opened_store))
    complete.log(network_dir)
    assert complete.client.batches == [0, 0, 4, 4, 1, 0, len(FINAL)]
    calls = complete.client.calls.total()
    assert 10 < calls < 25
    for fatal in range(1, calls + 1, step):
        tracker = opened(f"killed before call {fatal} {step}", opened_store)
        with pytest.raises(KeyboardInterrupt):
            counting(tracker, fatal).log(network_dir)
        opened(tracker.sweep, tracker.uri).log(network_dir)
        assert_complete(tracker)


def test_a_deleted_run_is_made_again_and_a_deleted_experiment_restored(tracker, tmp_path, request):
    network_dir = make_folder(tmp_path)
    train(network_dir, 1, 4)
    finish(network_dir)
    tracker.log(network_dir)
    tracker.client.delete_experiment(tracker.experiment_id)
    again = opened(request.node.name, tracker.uri)
    assert again.experiment_id == tracker.experiment_id
    tracker.client.delete_run(only_run(tracker).info.run_id)
    again = opened(request.node.name, tracker.uri)
    again.log(network_dir)
    assert_complete(again)
    assert len(tracker.client.search_runs([tracker.experiment_id], run_view_type=ViewType.ALL)) == 2


def test_how_to_open_is_a_command_and_a_short_link(tracker):
    link = f"/#/experiments/{tracker.experiment_id}/runs?viewStateShareKey=comparison&compareRunsMode=CHART"
    command = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false uv run mlflow ui --workers 1"
    title, *lines = tracker.how_to_open().splitlines()
    assert "Ctrl-C" in title
    assert lines == [f"{command} --backend-store-uri {tracker.uri}", f"http://127.0.0.1:5000{link}"]
    spaced = Tracker("sqlite:///a folder/m.db", "", tracker.experiment_id, tracker.client, Console())
    assert "--backend-store-uri 'sqlite:///a folder/m.db'\n" in spaced.how_to_open()
    server = Tracker("http://user:secret@server:8080/", "", tracker.experiment_id, tracker.client, Console())
    assert server.how_to_open() == f"MLflow:\nhttp://user:***@server:8080{link}"


@pytest.mark.parametrize("name", ["why?", "a%20b", "50%", "x#y", "a b", "Grüße", "a;b&c=d@e:f", "plain"])
def test_store_and_artifacts_lie_in_the_working_directory_whatever_its_name(opened_store, tmp_path, monkeypatch, name):
    working = tmp_path / name
    working.mkdir()
    shutil.copy(opened_store.removeprefix("sqlite:///"), working / "mlflow.db")
    monkeypatch.chdir(working)
    network_dir = make_folder(working)
    train(network_dir, 1, 4)
    finish(network_dir)
    for uri in (None, "sqlite:///mlflow.db"):
        tracker = opened("study", uri)
        tracker.log(network_dir)
        (working / "leaderboard.md").write_text("")
        assert tracker.finish(working, [network_dir.name], [network_dir.name])
        assert_complete(tracker)
    again = opened("study", shlex.split(tracker.how_to_open().splitlines()[1])[-1])
    assert again.run_ids == tracker.run_ids, "what the printed command serves"
    assert next(working.glob("mlruns/study/*/artifacts/network/MLmodel")).exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_address_whose_path_would_end_at_a_question_mark_is_refused(tmp_path):
    with pytest.raises(TrackingError, match="write %3F"):
        opened("study", f"sqlite:///{tmp_path}/why?/mlflow.db")
    assert not list(tmp_path.iterdir())


def test_the_view_is_written_when_the_store_is_opened(tracker, request):
    tracker.client.set_experiment_tag(tracker.experiment_id, view.TAG, "of an older version")
    opened(request.node.name, tracker.uri)
    assert tracker.client.get_experiment(tracker.experiment_id).tags[view.TAG] == view.view()
    assert len(view.view()) < 5000, "what every store takes"


def test_the_environment_names_the_store_and_the_option_wins(opened_store, tmp_path, monkeypatch):
    stores = {name: tmp_path / f"{name}.db" for name in ("environment", "option")}
    for path in stores.values():
        shutil.copy(opened_store.removeprefix("sqlite:///"), path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{stores['environment']}")
    monkeypatch.chdir(tmp_path)
    assert opened("from the environment").uri == f"sqlite:///{stores['environment']}"
    assert opened("from the option", "sqlite:///option.db").uri == f"sqlite:///{stores['option']}"
    experiment = MlflowClient(f"sqlite:///{stores['option']}").get_experiment_by_name("from the option")
    assert experiment.artifact_location.startswith(f"{tmp_path}/mlruns/")


OPENS_AT_ONCE = """
import os, sys, warnings
from rich.console import Console
from harness.tracking.tracker import Tracker
warnings.filterwarnings("ignore", ".*fork")  # of later versions of Python
for number in range(4):
    if not os.fork():
        try:
            Tracker.open(f"study {number % 2}", sys.argv[1], Console())
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
sys.exit(any([os.wait()[1] for _ in range(4)]))
"""


@pytest.mark.slow
def test_a_new_store_is_opened_by_several_processes_at_once(tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-W", "default", "-c", OPENS_AT_ONCE, uri]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    experiments = {experiment.name for experiment in MlflowClient(uri).search_experiments()}
    assert experiments == {"Default", "study 0", "study 1"}


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///{directory}/text.db", "file is not a database"),
        ("mlruns", "filesystem tracking backend"),
        ("http://user:secret@127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_store_that_cannot_be_used_is_reported_soon_and_in_one_line(uri, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "text.db").write_text("not a database, but long enough to have the header of one " * 10)
    start = time.perf_counter()
    with pytest.raises(TrackingError, match=reason) as caught:
        opened("study", uri.format(directory=tmp_path))
    assert time.perf_counter() - start < 5
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_server_that_is_asked_through_a_proxy_is_reported_with_the_proxy(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        TrackingError, match=r"refused; .* proxy http://user:\*\*\*@127.0.0.1:9: .* 127.0.0.1 to no_proxy$"
    ):
        opened("study", uri)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(TrackingError, match=r"Connection refused$"):
        opened("study", uri)


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_of_the_store_is_the_store_s(tracker, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracker.client, "log_artifact", full)
    tracker.log(make_folder(tmp_path))
    assert tracker.is_away
    printed = capsys.readouterr().out
    assert printed.startswith(f"warning: MLflow store {tracker.uri} cannot be used: [Errno 28] No space left")


@pytest.mark.parametrize("name", [STATE, folder.RESULT, folder.EPOCHS, folder.VERDICTS, folder.WEIGHTS])
def test_a_fault_of_a_network_s_folder_is_not_the_store_s(tracker, tmp_path, capsys, name):
    faulty, other = (make_folder(tmp_path, seed) for seed in range(2))
    evaluation_dir = finish(faulty)
    path = (evaluation_dir if name in (folder.RESULT, folder.VERDICTS) else faulty) / name
    path.unlink(missing_ok=True)
    path.mkdir()
    for _ in range(2):
        tracker.log(faulty)
    tracker.log(other)
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("warning: ") == 1 and name in printed and "not logged to MLflow" in printed
    assert not tracker.is_away and other.name in {run.data.tags["trial"] for run in tracker._runs()}
    (tmp_path / "leaderboard.md").write_text("")
    assert not tracker.finish(tmp_path, [faulty.name], [])
    assert tracker.finish(tmp_path, [other.name], []), "another command's network"
    path.rmdir()
    assert tracker.finish(tmp_path, [faulty.name], [])
    assert len(tracker._runs()) == 2


def runs(tracker):
    """All runs, by their tag `trial`."""
    found = tracker._runs()
    by_key = {run.data.tags["trial"]: run for run in found}
    assert len(by_key) == len(found)
    return by_key


def test_further_evaluations_of_a_network_are_child_runs_logged_once(tracker, tmp_path):
    network_dir = make_folder(tmp_path)
    finish(network_dir)
    further = EVALUATION.replace(eps=Radius("2/255"), stages=("ibp", "bab"))
    folder.begin_evaluation(network_dir, further)
    tracker.log(network_dir)
    first = f"{network_dir.name}/{EVALUATION.key}"
    assert runs(tracker).keys() == {network_dir.name, first}, "the other has no result yet"
    assert runs(tracker)[network_dir.name].info.status == "RUNNING"
    finish(network_dir, {**FINAL, "certified_error": 12.5, "x": None}, further)
    for _ in range(2):
        tracker.log(network_dir, running=False)
    assert runs(tracker)[first].data.metrics == runs(tracker)[network_dir.name].data.metrics
    parent, child = (runs(tracker)[key] for key in (network_dir.name, f"{network_dir.name}/{further.key}"))
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id and child.info.status == "FINISHED"
    assert {"eps": "2/255", "stages": "ibp > bab"}.items() <= child.data.params.items()
    assert child.data.metrics["certified_error"] == 12.5
    assert child.data.metrics["eps"] == pytest.approx(2 / 255)
    assert (parent.data.metrics["certified_error"], parent.info.status) == (FINAL["certified_error"], "FINISHED")
    counted = counting(opened(tracker.sweep, tracker.uri))
    counted.log(network_dir)
    assert not counted.client.calls


def test_the_network_s_run_has_the_metrics_of_what_is_the_main_evaluation_now(tracker, tmp_path, monkeypatch):
    """Though the other one is newer, and the clock of another machine is behind."""
    network_dir = make_folder(tmp_path)
    further = EVALUATION.replace(eps=Radius("2/255"), stages=("ibp", "crown"))
    metrics = {
        further: {**FINAL, "certified_error": 12.5, "certified_error/crown": 12.5},
        EVALUATION: {**FINAL, "certified_error": 40.0, "certified_error/ibp": None},
    }
    for number, (evaluation, values) in enumerate(metrics.items()):
        result = finish(network_dir, values, evaluation) / folder.RESULT
        os.utime(result, (time.time() - 100 + number,) * 2)
    for _, main in zip(range(5), itertools.cycle(metrics), strict=False):
        folder.add_to_study(network_dir, "cpu", main)
        tracker.log(network_dir, running=False)
        monkeypatch.setattr("harness.tracking.tracker.time", SimpleNamespace(time=lambda: 0.0))
        assert_main(tracker, network_dir, metrics[main] | {"eps": float(main.eps)})
        children = {f"{network_dir.name}/{each.key}": values for each, values in metrics.items()}
        assert runs(tracker).keys() == {network_dir.name, *children}
        for key, values in children.items():
            assert runs(tracker)[key].data.metrics["certified_error"] == values["certified_error"]
    begun = EVALUATION.replace(eps=Radius("1/255"))
    folder.begin_evaluation(network_dir, begun)
    folder.add_to_study(network_dir, "cpu", begun)
    tracker.log(network_dir)
    assert_main(tracker, network_dir, {"parameters": 650})
    assert runs(tracker)[network_dir.name].data.tags["eps"] == "1/255"


def assert_main(tracker, network_dir, metrics):
    """The network's run has these metrics; what is left of another evaluation is NaN."""
    logged = runs(tracker)[network_dir.name].data.metrics
    numbers = {name: value for name, value in logged.items() if not math.isnan(value)}
    assert numbers == {name: value for name, value in metrics.items() if value is not None}


def test_a_study_that_is_logged_later_has_the_times_of_its_training_and_evaluation(tracker, tmp_path):
    network_dir = make_folder(tmp_path)
    trained = time.time() - 1000
    for epoch in range(4):
        seconds = {"train/seconds": 10.0 * epoch} if epoch else {}
        training_progress.write_epoch(network_dir, {"epoch": epoch, "train/eps": 0.0, **seconds})
    result = finish(network_dir, FINAL | {"evaluation_seconds": 50.0}) / folder.RESULT
    further = EVALUATION.replace(eps=Radius("2/255"))
    other = finish(network_dir, FINAL | {"evaluation_seconds": 25.0}, further) / folder.RESULT
    ends = {network_dir / folder.EPOCHS: 0, network_dir / folder.TRAINED: 1, result: 60, other: 90}
    for path in network_dir.rglob("*"):
        os.utime(path, (trained + ends.get(path, 0),) * 2)
    tracker.log(network_dir, running=False)
    run, child = (runs(tracker)[key] for key in (network_dir.name, f"{network_dir.name}/{further.key}"))

    def times(name):
        points = tracker.client.get_metric_history(run.info.run_id, name)
        return [round(point.timestamp / 1000 - trained) for point in points]

    assert times("train/eps") == [-60, -50, -30, 0]
    assert times("parameters") == [1] and times("certified_error") == [60]
    began, ended = ([round(getattr(each.info, name) / 1000 - trained) for each in (run, child)] for name in ENDS)
    assert (began, ended) == ([-60, 65], [90, 90])
    os.utime(other, (trained - 1000,) * 2)
    (network_dir / STATE).unlink()
    tracker.log(network_dir, running=False)
    again = runs(tracker)[child.data.tags["trial"]].info
    assert again.end_time == again.start_time, "no run ends before it begins"


ENDS = ("start_time", "end_time")
