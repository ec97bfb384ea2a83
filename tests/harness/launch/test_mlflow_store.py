"""Which MLflow store is taken, how to look at it, and stores that cannot be used."""

import shutil
import time
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow_folders import finish, make_folder, only_run

from harness.launch.mlflow_store import Tracker, TrackingError


def test_how_to_open_names_the_command_and_the_comparison_page(tracker, tmp_path):
    page = f"http://127.0.0.1:5000/#/experiments/{tracker.experiment_id}/runs?compareRunsMode=CHART"
    command = f"uv run mlflow ui --backend-store-uri {tracker.uri}"
    assert tracker.how_to_open() == f"{command}\n{page}"

    finish(place := make_folder(tmp_path))
    tracker.sync(place)
    compare = tracker.how_to_open().splitlines()[2]
    query = f'runs=["{only_run(tracker).info.run_id}"]&experiments=["{tracker.experiment_id}"]'
    assert unquote(compare) == f"http://127.0.0.1:5000/#/compare-runs?{query}"
    assert '"' not in compare

    served = Tracker("http://user:secret@server:8080/", tracker.experiment_id, tracker.client).how_to_open()
    assert served.startswith(f"http://user:***@server:8080/#/experiments/{tracker.experiment_id}/runs")


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
    assert f"'sqlite:///{directory}/mlflow.db'" in tracker.how_to_open()


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
