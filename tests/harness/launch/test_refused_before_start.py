"""Bad input that shows only with data, results or machine at hand: told before anything starts."""

import fcntl
import os
import subprocess
import sys

import pytest
import yaml
from small_sweep import BASE, changed, trials_of, write
from study import TINY, Study

from baselines import DATASETS
from harness.command_line import main
from harness.config.trial import TrialConfig
from harness.data import load
from harness.launch.ray_cluster import ray
from harness.storage import files, folder

# Bad input that shows only with the data or the results directory at hand.


def test_a_batch_larger_than_the_data_is_refused_before_anything_starts(refused, tmp_path):
    message = refused(write(tmp_path, changed(("train_images", 50))))
    for part in (str(tmp_path), "trials.0.train.batch_size", "found 64", "at most the 50"):
        assert part in message


def test_a_trial_s_own_batch_larger_than_the_data_is_refused(refused, tmp_path):
    message = refused(write(tmp_path, changed(("train_images", 100), ("trials.1.train", {"batch_size": 101}))))
    assert "trials.0" not in message
    for part in ("trials.1.train.batch_size", "found 101", "at most the 100"):
        assert part in message


def test_a_batch_larger_than_what_validation_leaves_is_refused(refused, tmp_path):
    message = refused(write(tmp_path, changed(("validation_images", 1400))))
    for part in ("train.batch_size", "found 64", "37"):
        assert part in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("train_images", 1438), ["train_images", "at most 1437", "1438"]),
        (("validation_images", 1437), ["validation_images", "1437", "1,437"]),
        (("validation_images", 10**6), ["validation_images", "1000000", "1,437"]),
        (("evaluation.test_images", 361), ["test_images", "at most 360", "361"]),
    ],
)
def test_more_images_than_there_are_are_refused(refused, tmp_path, change, expected):
    path = write(tmp_path, changed(change))
    message = refused(path)
    for part in expected:
        assert part in message, message


def test_data_that_is_missing_and_cannot_be_fetched_is_told(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for dataset in ("cifar10", "mnist"):
        message = refused(write(tmp_path, changed(("dataset", dataset))), "--data-dir", str(tmp_path / "empty"))
        for part in (DATASETS[dataset].title, str(tmp_path / "empty"), "--data-dir", "CERDEQ_DATA"):
            assert part in message


def put_trial(directory, **changes):
    """A trial folder in a sweep's directory, as a run would have left it."""
    trial = TrialConfig(**{**dict.fromkeys(("profile", "model", "method"), "x"), "sweep": "study", **changes})
    made = folder.make_trial(trial, "data")
    files.write_json(folder.place(directory, made.key) / folder.TRIAL, folder.trial_json(made))
    return folder.place(directory, made.key)


@pytest.mark.parametrize(
    "other", [{"eps": "3/16"}, {"dataset": "mnist"}, {"sweep": "quickstart"}], ids=["eps", "data set", "name"]
)
def test_a_results_directory_of_another_sweep_is_refused(refused, tmp_path, other):
    put_trial(tmp_path / "results/study", **({"dataset": "digits", "eps": "1/16", "seed": 0} | other))
    message = refused(write(tmp_path, BASE))
    for part in (str(tmp_path / "results/study"), "study on digits at eps 1/16", str(next(iter(other.values())))):
        assert part in message


def test_the_same_eps_written_another_way_is_the_same_sweep(nothing_starts, tmp_path):
    put_trial(tmp_path / "results/study", dataset="digits", eps="2/32", seed=0)
    with pytest.raises(ImportError, match=r"harness\.tracking\.store"):  # it goes on to MLflow, which is blocked here
        main("run", [str(write(tmp_path, BASE)), "--results-dir", str(tmp_path / "results")])


def test_a_trial_file_that_is_damaged_is_named(refused, tmp_path):
    place = put_trial(tmp_path / "results/study", dataset="digits", eps="1/16", seed=0)
    (place / folder.TRIAL).write_text("{")
    assert str(place / folder.TRIAL) in refused(write(tmp_path, BASE))


def test_a_folder_with_the_key_of_one_trial_and_the_config_of_another_is_named(refused, tmp_path):
    """A folder copied by hand under the wrong name."""
    trial = folder.make_trial(trials_of(tmp_path, BASE)[0], load("digits").fingerprint)
    place = put_trial(tmp_path / "results/study", dataset="digits", eps="1/16", seed=9)
    place.rename(place.with_name(trial.key))
    assert str(place.with_name(trial.key)) in refused(write(tmp_path, BASE))


@pytest.mark.parametrize("text", ["{", "[]", "{}"], ids=["cut off", "a list", "empty"])
def test_a_result_file_that_is_damaged_is_named(refused, tmp_path, text):
    trial = folder.make_trial(trials_of(tmp_path, BASE)[0], load("digits").fingerprint)
    place = folder.place(tmp_path / "results/study", trial.key)
    files.write_json(place / folder.TRIAL, folder.trial_json(trial))
    (place / folder.RESULT).write_text(text)
    assert str(place / folder.RESULT) in refused(write(tmp_path, BASE))


def test_two_runs_of_a_sweep_at_once_are_kept_apart(refused, tmp_path):
    directory = tmp_path / "results/study"
    directory.mkdir(parents=True)
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = refused(write(tmp_path, BASE))
    for part in ("another run", str(directory)):
        assert part in message


def test_a_results_directory_that_is_a_file_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(write(tmp_path, BASE), "--results-dir", str(tmp_path / "file"))


def test_an_export_directory_that_is_a_file_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(write(tmp_path, BASE), "--export", str(tmp_path / "file"))


def test_a_sweep_called_like_a_file_in_the_results_directory_is_refused(refused, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/published.csv").write_text("")
    assert "published.csv" in refused(write(tmp_path, changed(("name", "published.csv"))))


@pytest.fixture(scope="module")
def a_process_of_its_own(tmp_path_factory):
    """Exit statuses, messages and imported modules of commands in a process whose locale knows ASCII alone."""
    directory = tmp_path_factory.mktemp("process")
    bad = write(directory, changed(("train.epochs", 0)), "bad.yaml")
    absent = write(directory, changed(("train_images", 5000)), "absent.yaml")
    umlaut = directory / "umlaut.yaml"
    umlaut.write_bytes(("# größer\n" + yaml.safe_dump(changed(("train.epochs", 0)))).encode())
    script = (
        "import sys\n"
        "from harness.command_line import main\n"
        f"print([main('run', [path]) for path in {[str(path) for path in (bad, absent, umlaut)]!r}])\n"
        "print([name for name in ('ray', 'mlflow') if name in sys.modules])\n"
    )
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=directory, env=ascii_only, capture_output=True, text=True, timeout=120)
    assert sorted(path.name for path in directory.iterdir()) == ["absent.yaml", "bad.yaml", "umlaut.yaml"]
    return done


def test_ray_and_mlflow_are_not_imported_for_bad_input(a_process_of_its_own):
    assert a_process_of_its_own.stdout.splitlines() == ["[2, 2, 2]", "[]"], a_process_of_its_own.stderr
    assert "bad.yaml: train.epochs: found 0" in a_process_of_its_own.stderr
    assert "train_images" in a_process_of_its_own.stderr


def test_a_file_is_read_as_utf8_whatever_the_locale(a_process_of_its_own):
    assert "umlaut.yaml: train.epochs: found 0" in a_process_of_its_own.stderr


def test_mlflow_out_of_reach_is_bad_input(tmp_path, no_ray, capsys):
    study = Study(tmp_path, TINY, "nothing://here")
    assert study.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nothing://here" in error
    assert not (study.directory / "trials").exists()


def test_a_cluster_that_is_not_there_is_bad_input(tmp_path, store, monkeypatch, capsys):
    """Ray's ConnectionError, told in a line."""

    def nobody(address, **_options):
        raise ConnectionError(f"Could not find any running Ray instance at {address}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nobody)
    assert Study(tmp_path, TINY, store).main("--ray-address", "10.0.0.1:6379") == 2
    assert "10.0.0.1:6379" in capsys.readouterr().err
