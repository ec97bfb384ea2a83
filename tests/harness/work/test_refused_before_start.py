"""Bad input that shows only with data, results or machine at hand: refused before anything starts."""

import fcntl
import os
import subprocess
import sys

import pytest
import yaml
from small_sweep import BASE, changed, load_sweep, write
from study import TINY, Study

from baselines import DATASETS
from harness.data import load
from harness.machine.device import count_cores
from harness.storage import folder
from harness.storage.records import make_record


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train_images", 50, "trials.0.train.batch_size: found 64, allowed: at most the 50"),
        ("validation_images", 1400, "train.batch_size: found 64, allowed: at most the 37 training images"),
        ("train.batch_size", 5000, "train.batch_size: found 5000, allowed: at most the 1437 training images"),
        ("train_images", 1438, "train_images: found 1438, allowed: 1 to 1437; "),
        ("validation_images", 1437, "validation_images: found 1437, allowed: at most 1436; "),
        ("evaluation.test_images", 361, "evaluation.test_images: found 361, allowed: 1 to 360; "),
        ("resources.cpu", 1000, f"resources.cpu: found 1000, allowed: at most {count_cores()}, "),
    ],
)
def test_more_than_there_is_is_refused_by_file_key_found_and_allowed(refused, tmp_path, key, value, expected):
    path = write(tmp_path, changed((key, value)))
    for option in ((), ("--dry-run",)):
        assert f"error: {path}: {expected}" in refused(path, *option)
    if key != "train_images":
        assignment = f"{key}={value}"
        message = refused(write(tmp_path, BASE), "--set", assignment)
        assert f"--set {assignment}: {expected}" in message


def test_one_machine_of_a_cluster_must_have_the_cpus_and_the_gpu(refused, tmp_path, monkeypatch):
    machines = [{"CPU": 32, "GPU": 0}, {"CPU": 2, "GPU": 1}]
    monkeypatch.setattr("harness.work.machines.machines_at", lambda address: machines)
    path = write(tmp_path, changed(("resources", {"cpu": 8, "gpu": 1})))
    expected = "resources.cpu: found 8, allowed: at most 2, the CPUs of one machine with 1 GPU"
    assert refused(path, "--profile", "full") == f"error: {path}: {expected}\n"


@pytest.mark.parametrize(
    ("key", "value", "profiles"),
    [("train.epochs", 0, {}), ("train.epochs", 0, {"cpu": {"seeds": [1]}}), ("trials.0.model", "cnn55", {})],
)
def test_a_wrong_file_is_refused_before_a_cluster_is_asked(refused, tmp_path, monkeypatch, key, value, profiles):
    monkeypatch.setattr("harness.work.machines.machines_at", lambda address: pytest.fail("it asks Ray"))
    path = write(tmp_path, changed((key, value), ("profiles", profiles)))
    assert f"{path}: {key}: found {value!r}" in refused(path, "--ray-address", "127.0.0.1:9")


def test_data_that_is_missing_and_cannot_be_downloaded_is_refused(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    message = refused(write(tmp_path, changed(("dataset", "cifar10"))), "--data-dir", str(tmp_path / "empty"))
    for part in (DATASETS["cifar10"].title, str(tmp_path / "empty"), "--data-dir", "CERDEQ_DATA"):
        assert part in message


def begin(results, content, tmp_path, **changes):
    """The folders of the first network of a sweep file and of its evaluation, begun, in the directory of BASE."""
    study = load_sweep(write(tmp_path, content), "full", True)
    record = make_record(study.trainings[0].replace(**changes), load("digits").fingerprint)
    network_dir = folder.network_dir(results / "study", record.key)
    folder.begin_network(network_dir, record, "full", study.evaluations)
    return network_dir, folder.evaluation_dir(network_dir, study.evaluations[0])


def test_a_results_directory_of_another_data_set_is_refused(refused, tmp_path):
    begin(tmp_path / "results", BASE, tmp_path, dataset="mnist")
    message = refused(write(tmp_path, BASE))
    for part in (str(tmp_path / "results/study"), "found data set mnist, this one's is digits", "rename one of them"):
        assert part in message


def test_the_same_eps_written_another_way_is_the_same_study(tmp_path):
    begun = begin(tmp_path / "results", BASE, tmp_path)
    assert begin(tmp_path / "results", changed(("eps", "2/32")), tmp_path) == begun


@pytest.mark.parametrize("name", [folder.TRAINING, folder.EVALUATION, folder.RESULT])
def test_a_damaged_file_is_named(refused, tmp_path, name):
    network_dir, evaluation_dir = begin(tmp_path / "results", BASE, tmp_path)
    path = (network_dir if name == folder.TRAINING else evaluation_dir) / name
    path.write_text("{")
    assert str(path) in refused(write(tmp_path, BASE))


def test_two_runs_of_a_sweep_at_once_are_kept_apart(refused, tmp_path):
    directory = tmp_path / "results/study"
    directory.mkdir(parents=True)
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = refused(write(tmp_path, BASE))
    assert "another run" in message and str(directory) in message


def test_a_dashboard_without_its_packages_is_refused(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.work.machines.find_spec", lambda name: None if name == "colorful" else name)
    message = refused(write(tmp_path, BASE), "--dashboard")
    assert message == 'error: --dashboard: needs colorful: uv pip install "ray[default]"\n'


def test_files_where_directories_should_be_are_refused(refused, tmp_path):
    for path in (tmp_path / "file", tmp_path / "results/literature.csv"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert str(tmp_path / "file") in refused(write(tmp_path, BASE), "--results-dir", str(tmp_path / "file"))
    assert "literature.csv" in refused(write(tmp_path, changed(("name", "literature.csv"))))


def test_bad_input_is_refused_without_ray_and_mlflow_in_any_locale(tmp_path):
    """In a process of its own, whose locale knows ASCII alone."""
    (tmp_path / "bad.yaml").write_bytes(
        ("# gr\u00f6\u00dfer\n" + yaml.safe_dump(changed(("train.epochs", 0)))).encode()
    )
    script = (
        "import sys\n"
        "from harness.command_line import main\n"
        "print(main('run', ['bad.yaml']), [name for name in ('ray', 'mlflow') if name in sys.modules])\n"
    )
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=ascii_only, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("2 []\n"), done.stderr
    assert "train.epochs: found 0" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("nothing://here", "unsupported URI"), ("http://127.0.0.1:9", "cannot be used: Connection refused\n")],
)
def test_mlflow_out_of_reach_is_bad_input_in_a_line(tmp_path, no_ray, capsys, monkeypatch, uri, reason):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    study = Study(tmp_path, TINY, uri)
    assert study.main() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: MLflow store {uri} ") and reason in error and len(error) < 250
    assert not (tmp_path / "results/tiny").exists()


def test_own_images_are_not_read_where_an_option_is_wrong(refused, tmp_path):
    entries = [{"model": "cnn5", "method": "ibp", "options": {"depth": 2}}]
    path = write(tmp_path, changed(("dataset", {"folder": "no-such-folder"}), ("trials", entries)))
    message = refused(path)
    assert "trials.0.options.depth: unknown option of cnn5" in message and "no-such-folder" not in message
