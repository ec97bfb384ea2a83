"""Which MLflow store is taken, how to look at it, and stores that cannot be used."""

import shutil
import time

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_folders import make_folder, only_run

from harness.tracking import view
from harness.tracking.client import TrackingError
from harness.tracking.store import Tracker


def test_how_to_open_is_a_command_and_a_short_link(tracker, request, monkeypatch):
    runs = f"/#/experiments/{tracker.experiment_id}/runs?"
    link = f"{runs}viewStateShareKey=comparison&compareRunsMode=CHART"
    name, page = request.node.name, "http://127.0.0.1:5000"
    assert tracker.how_to_open() == f"uv run python -m harness.ui {name} --tracking-uri {tracker.uri}\n{page}{link}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert tracker.how_to_open() == f"uv run python -m harness.ui {name}\n{page}{link}"

    served = Tracker("http://user:secret@server:8080/", tracker.experiment_id, tracker.client)
    assert served.how_to_open() == f"http://user:***@server:8080{link}"

    told, plain = Tracker(tracker.uri, tracker.experiment_id, tracker.client, "4.0").how_to_open().splitlines()[1:]
    assert "MLflow 4.0" in told
    assert plain == f"{page}{runs}compareRunsMode=CHART"


def test_the_prepared_view_is_written_once_and_again_where_it_changed(tracker, request):
    def views():
        tags = tracker.client.get_experiment(tracker.experiment_id).tags
        return {name: text for name, text in tags.items() if name.startswith("mlflow.sharedViewState")}

    assert views() == {view.TAG: view.view()}
    tracker.client.set_experiment_tag(tracker.experiment_id, view.TAG, "of an older version")
    Tracker.open(request.node.name, tracker.uri)
    assert views() == {view.TAG: view.view()}
    assert len(view.view()) < 5000, "what every store takes"


def test_another_major_version_gets_no_view(opened_store, request, monkeypatch):
    monkeypatch.setattr("harness.tracking.store.version_of", lambda uri: "4.1.0")
    tracker = Tracker.open(request.node.name, opened_store)
    assert view.TAG not in tracker.client.get_experiment(tracker.experiment_id).tags
    assert "viewStateShareKey" not in tracker.how_to_open()


@pytest.mark.parametrize(
    ("version", "known"), [("3.5.0", True), ("3.17.2", True), ("3.4.9", False), ("4.0", False), ("", False)]
)
def test_versions_whose_pages_were_read(version, known):
    assert view.is_known(version) == known


def test_the_environment_names_the_store_and_the_option_wins(opened_store, tmp_path, monkeypatch):
    stores = {name: tmp_path / f"{name}.db" for name in ("environment", "option")}
    for path in stores.values():
        shutil.copy(opened_store.removeprefix("sqlite:///"), path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{stores['environment']}")
    monkeypatch.chdir(tmp_path)
    assert Tracker.open("from the environment").uri == f"sqlite:///{stores['environment']}"
    assert Tracker.open("from the option", "sqlite:///option.db").uri == f"sqlite:///{stores['option']}"
    for name, path in stores.items():
        client = MlflowClient(f"sqlite:///{path}")
        assert {e.name for e in client.search_experiments()} >= {f"from the {name}"}
        assert client.get_experiment_by_name(f"from the {name}").artifact_location.startswith(f"{tmp_path}/mlruns/")
    assert not (tmp_path / "mlflow.db").exists()


def test_without_a_uri_the_store_is_in_the_working_directory_and_nothing_is_printed(made_by_default):
    done, directory = made_by_default
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in directory.iterdir()} == {"mlflow.db", "mlruns"}
    tracker = Tracker.open("study", f"sqlite:///{directory}/mlflow.db")
    assert only_run(tracker).info.artifact_uri.startswith(f"{directory}/mlruns/study/")
    assert f"--tracking-uri 'sqlite:///{directory}/mlflow.db'" in tracker.how_to_open()


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
