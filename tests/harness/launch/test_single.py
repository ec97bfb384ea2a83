"""`python -m harness.trial`: one exported trial, on a machine that has neither Ray, MLflow nor pydantic."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.clock import Clock
from harness.command_line import main
from harness.config.trial import RECIPE_VERSION, trial_key
from harness.data import load
from harness.storage import files, folder, names
from harness.storage.folder import make_trial, trial_json
from harness.training import run_trial

BLOCKED = ("ray", "mlflow", "pydantic", "yaml", "typer", "sqlalchemy")
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"blocked by the test: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="session")
def fingerprint():
    return load("digits").fingerprint


@pytest.fixture
def exported(tiny_trial, fingerprint, tmp_path):
    """A function of changed fields to an exported file of a trial of one epoch."""

    def export(name="trial.json", **changes):
        train = {"epochs": 1, "ramp_epochs": 1, **changes.pop("train", {})}
        made = make_trial(tiny_trial(width=0.05, train=train, **changes), fingerprint)
        files.write_json(tmp_path / name, trial_json(made))
        return tmp_path / name

    return export


def call(path, *options):
    return main("trial", [str(path), "--results-dir", str(path.parent / "results"), *options])


def edit(path, **changes):
    """Change an exported file's top level."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def place_of(path):
    content = json.loads(path.read_text())
    return path.parent / "results" / content["config"]["sweep"] / "trials" / content["key"]


def snapshot(directory):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


def test_a_trial_runs_without_ray_mlflow_and_pydantic(exported, tmp_path):
    """In a process of its own, outside the project; equilibrium networks and Parquet included."""
    path = exported(model="cerdeq")
    (tmp_path / "block").mkdir()
    (tmp_path / "block/sitecustomize.py").write_text(BLOCKER)
    (tmp_path / "elsewhere").mkdir()
    paths = [str(tmp_path / "block"), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "harness.trial", "../trial.json", "--results-dir", "out"]
    check = [sys.executable, "-c", "import pydantic"]
    assert subprocess.run(check, env=environment, capture_output=True).returncode != 0
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    place = tmp_path / "elsewhere/out/tiny/trials" / json.loads(path.read_text())["key"]
    result = folder.read_result(place)
    assert {file.name for file in place.iterdir()} == {
        folder.LOG,
        folder.TRIAL,
        folder.EPOCHS,
        folder.CHECKPOINT,
        folder.WEIGHTS,
        folder.VERDICTS,
        folder.COUNTEREXAMPLES,
        folder.RESULT,
    }
    assert f"{names.CERTIFIED_ERROR}: {result.metrics[names.CERTIFIED_ERROR]:.6g}" in done.stdout
    initial = folder.read_epochs(place)[0][names.in_training(names.BOUND_WIDTH)]
    assert f"epoch 0: train/eps 0, train/bound_width {initial:.5g}\n" in done.stdout
    assert "epoch 1: " in done.stdout
    assert place.name in done.stdout
    assert folder.read_trial(place / folder.TRIAL) == folder.read_trial(path)


def test_a_finished_trial_is_left_alone_in_a_line(exported, capsys, monkeypatch):
    """No data is read for it either."""
    path = exported()
    assert call(path) == 0
    before, result = snapshot(place_of(path)), folder.read_result(place_of(path))
    capsys.readouterr()
    monkeypatch.setattr("harness.trial.load", None)
    monkeypatch.setattr("harness.trial.run_trial", None)
    assert call(path) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(f"{place_of(path)}: finished, certified_error {result.metrics[names.CERTIFIED_ERROR]}")
    assert snapshot(place_of(path)) == before


def test_a_trial_goes_on_from_its_checkpoint(exported, capsys):
    path = exported(train={"epochs": 2})
    assert call(path) == 0
    place = place_of(path)
    weights, (_, first, _) = (place / folder.WEIGHTS).read_bytes(), folder.read_epochs(place)
    capsys.readouterr()

    class StoppedError(Exception):
        pass

    def stop(row):
        if row[names.EPOCH] == 1:
            raise StoppedError

    shutil.rmtree(place)
    with pytest.raises(StoppedError):
        run_trial(folder.read_trial(path).config, directory=place, report=stop, clock=Clock(keep_every=0))
    assert call(path) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if "epoch" in line] == ["epoch 2"]
    again = folder.read_epochs(place)
    assert [row[names.EPOCH] for row in again] == [0, 1, 2]
    assert again[1][names.TRAIN_LOSS] == first[names.TRAIN_LOSS]
    assert (place / folder.WEIGHTS).read_bytes() == weights
    assert folder.read_failure(place) is None


def test_a_trial_that_diverges_is_told_in_a_line_and_in_failure_json(exported, capsys):
    path = exported(train={"regularisation": 3e38})
    assert call(path) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("failed: ")
    assert "epoch 1" in captured.err
    assert "Traceback" not in captured.err
    failure = folder.read_failure(place_of(path))
    assert "NonFiniteLossError" in failure["error"]
    assert failure["last_finite"][names.TRAIN_LOSS] > 1e37
    assert folder.read_result(place_of(path)) is None


def test_a_batch_larger_than_the_data_exits_with_a_message(exported, capsys):
    path = exported(train_images=None)
    recipe = json.loads(path.read_text())["config"]["train"] | {"batch_size": 2000}
    assert call(remade(path, train=recipe)) == 2
    assert "batch_size: found 2000, allowed: at most the 1437" in capsys.readouterr().err
    path = exported()
    assert call(edit(path, config=json.loads(path.read_text())["config"] | {"train_images": 50})) == 2
    assert "batch_size: found 64, allowed: at most the 50" in capsys.readouterr().err


def test_more_training_images_than_there_are_exit_with_a_message(exported, capsys):
    assert call(exported(train_images=5000)) == 2
    assert "train_images" in capsys.readouterr().err


def remade(path, **config):
    """The file with its config changed and the key to match, as other code would have exported it."""
    content = json.loads(path.read_text())
    content["config"] |= config
    from_dict = folder.from_dict(content["config"])
    return edit(path, config=content["config"], key=trial_key(from_dict, content["fingerprint"]))


# What is done to an exported file, and what the message must say.
BAD_FILES = {
    "missing": (lambda path: path.unlink(), ["No such file"]),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), ["directory"]),
    "empty": (lambda path: path.write_text(""), ["--export"]),
    "not JSON": (lambda path: path.write_text("{"), ["--export"]),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), ["--export"]),
    "a list": (lambda path: path.write_text("[]"), ["--export"]),
    "an empty mapping": (lambda path: path.write_text("{}"), ["'key'", "--export"]),
    "a sweep file": (lambda path: path.write_text("name: quickstart\n"), ["--export"]),
    "a result": (lambda path: path.write_text('{"key": "a", "metrics": {}}'), ["'recipe_version'"]),
    "no config": (lambda path: edit(path, config=None), ["--export"]),
    "an unknown setting": (lambda path: edit(path, config={"train": {"epochs": 1}}), ["--export"]),
    "an older recipe": (lambda path: edit(path, recipe_version=RECIPE_VERSION - 1), ["recipe_version", "export"]),
    "a newer recipe": (lambda path: edit(path, recipe_version=RECIPE_VERSION + 1), ["recipe_version", "export"]),
    "another key": (lambda path: edit(path, key="0" * 16), ["key", "'0000000000000000'"]),
    "another fingerprint": (lambda path: edit(path, fingerprint="f" * 16), ["key"]),
}


def edited(path, key, value):
    content = json.loads(path.read_text())
    section = content["config"]
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    section[last] = value
    path.write_text(json.dumps(content))


EDITS = [("seed", 5), ("width", 0.5), ("eps", "1/16"), ("train.epochs", 2), ("train.clip_norm", 1.0), ("model", "cnn7")]
EDITS += [("evaluation.attack_steps", 1), ("options", {"depth": 3}), ("dataset", "mnist")]
BAD_FILES |= {f"edited {key}": (lambda path, k=key, v=value: edited(path, k, v), ["key"]) for key, value in EDITS}
BAD_FILES |= {
    f"edited to nonsense: {key} {value!r}": (lambda path, k=key, v=value: edited(path, k, v), [])
    for key, value in [
        ("train.epochs", 0),
        ("train.epochs", "3"),
        ("eps", 5),
        ("seed", None),
        ("train", []),
        ("new", 1),
    ]
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_exit_with_a_message_and_write_nothing(exported, capsys, case):
    spoil, expected = BAD_FILES[case]
    path = exported()
    spoil(path)
    assert call(path) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    for part in (str(path), *expected):
        assert part in captured.err
    assert not (path.parent / "results").exists()


def test_a_file_for_other_data_is_refused_with_both_fingerprints(exported, capsys, fingerprint):
    path = exported()
    content = json.loads(path.read_text())
    edit(path, fingerprint="f" * 16, key=trial_key(folder.from_dict(content["config"]), "f" * 16))
    assert call(path) == 2
    message = capsys.readouterr().err
    for part in ("f" * 16, fingerprint, "data"):
        assert part in message


def test_a_file_for_data_that_is_not_here_is_refused(exported, capsys, tmp_path, monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("blocked by the test")

    monkeypatch.setattr("socket.getaddrinfo", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert call(remade(exported(), dataset="mnist"), "--data-dir", str(tmp_path / "empty")) == 2
    assert "--data-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"model": "cnn99"}, "cnn99"), ({"method": "magic"}, "magic"), ({"options": {"depth": 3}}, "depth")],
    ids=["network", "method", "option"],
)
def test_a_file_from_code_that_knows_more_is_refused(exported, capsys, changes, told):
    """Its key is right, since the config is; this code has no such network, method or option."""
    assert call(remade(exported(), **changes)) == 2
    assert told in capsys.readouterr().err


def test_a_folder_of_another_trial_is_left_alone(exported, capsys):
    path, other = exported(), exported("other.json", seed=1)
    place_of(path).mkdir(parents=True)
    shutil.copy(other, place_of(path) / folder.TRIAL)
    assert call(path) == 2
    assert str(place_of(path)) in capsys.readouterr().err


def test_a_results_directory_that_is_a_file_is_told(exported, capsys):
    path = exported()
    (path.parent / "results").write_text("")
    assert call(path) == 2
    assert str(path.parent / "results") in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(exported, capsys, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.trial.run_trial", interrupt)
    assert call(exported()) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_told_and_the_trial_done(exported, capsys):
    path = exported()
    place_of(path).mkdir(parents=True)
    (place_of(path) / folder.CHECKPOINT).write_bytes(b"not a checkpoint")
    assert call(path) == 0
    assert f"{place_of(path) / folder.CHECKPOINT} cannot be read" in capsys.readouterr().out


def test_the_project_is_used_as_it_lies():
    """The subprocess above runs outside the project: it must find these very modules."""
    done = subprocess.run(
        [sys.executable, "-c", "import harness; print(harness.__file__)"], cwd="/", capture_output=True
    )
    assert Path(done.stdout.decode().strip()) == Path(harness.__file__)
