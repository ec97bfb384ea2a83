"""`python -m harness.trial`: one exported trial, on a machine that has neither Ray, MLflow nor pydantic."""

import json
import os
import subprocess
import sys

import pytest
from study import snapshot

from harness.command_line import main
from harness.common import names
from harness.data import load
from harness.storage import files, folder
from harness.sweep.trial import RECIPE_VERSION, trial_key

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
        trial = folder.make_trial(tiny_trial(width=0.05, train=train, **changes), fingerprint)
        files.write_json(tmp_path / name, folder.trial_json(trial))
        return tmp_path / name

    return export


def call(path, *options):
    return main("trial", [str(path), "--results-dir", str(path.parent / "results"), *options])


def edit(path, **changes):
    """Change an exported file's top level."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def edit_config(path, **changes):
    """Change an exported file's config, and leave its key."""
    return edit(path, config=json.loads(path.read_text())["config"] | changes)


def export_again(path, **changes):
    """Change an exported file's config and its key to match, as other code would have exported it."""
    content = json.loads(edit_config(path, **changes).read_text())
    return edit(path, key=trial_key(folder.from_dict(content["config"]), content["fingerprint"]))


def trial_dir_of(path):
    content = json.loads(path.read_text())
    return folder.trial_dir(path.parent / "results" / content["config"]["sweep"], content["key"])


def test_a_trial_runs_without_ray_mlflow_and_pydantic(exported, tmp_path):
    """In a process of its own, outside the project; equilibrium networks and Parquet included."""
    path = exported(model="cerdeq", options={"iterations": 3, "backward_iterations": 3}, train_images=128)
    for name in ("block", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "block/sitecustomize.py").write_text(BLOCKER)
    paths = [str(tmp_path / "block"), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    check = [sys.executable, "-c", "import pydantic"]
    assert subprocess.run(check, env=environment, capture_output=True).returncode != 0
    command = [sys.executable, "-m", "harness.trial", "../trial.json", "--results-dir", "out"]
    options = {"cwd": tmp_path / "elsewhere", "env": environment, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run(command, **options)
    assert (done.returncode, done.stderr) == (0, "")
    trial_dir = tmp_path / "elsewhere/out/tiny/trials" / json.loads(path.read_text())["key"]
    assert folder.read_trial(trial_dir / folder.TRIAL) == folder.read_trial(path)
    error = folder.read_result(trial_dir).metrics[names.CERTIFIED_ERROR]
    width = folder.read_epochs(trial_dir)[0][names.in_training(names.BOUND_WIDTH)]
    for part in (
        f"epoch 0: train/eps 0, train/bound_width {width:.5g}\n",
        "epoch 1: ",
        f"{names.CERTIFIED_ERROR}: {error:.6g}",
        trial_dir.name,
    ):
        assert part in done.stdout


def test_a_finished_trial_is_left_alone_in_a_line(exported, capsys, monkeypatch):
    """Its data is not read either."""
    path = exported()
    assert call(path) == 0
    trial_dir = trial_dir_of(path)
    before, error = snapshot(trial_dir), folder.read_result(trial_dir).metrics[names.CERTIFIED_ERROR]
    capsys.readouterr()
    monkeypatch.setattr("harness.data.load", None)
    assert call(path) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(f"{trial_dir}: finished, certified_error {error}")
    assert snapshot(trial_dir) == before


def occupy(path):
    """Put another trial into the trial's folder."""
    trial_dir = trial_dir_of(path)
    trial_dir.mkdir(parents=True)
    trial = folder.read_trial(path)
    other = folder.make_trial(folder.from_dict({**folder.to_dict(trial.config), "seed": 1}), trial.fingerprint)
    files.write_json(trial_dir / folder.TRIAL, folder.trial_json(other))


# What is done to an exported file, and what the message must name; more files: test_malformed_files.py.
REFUSED = {
    "no file": (lambda path: path.unlink(), ["No such file"]),
    "a sweep file": (lambda path: path.write_text("name: quickstart\n"), ["--export"]),
    "an older recipe": (lambda path: edit(path, recipe_version=RECIPE_VERSION - 1), ["recipe_version", "export"]),
    "another fingerprint": (lambda path: edit(path, fingerprint="f" * 16), ["key"]),
    "a setting changed by hand": (lambda path: edit_config(path, eps="1/16"), ["key"]),
    "a setting of another type": (lambda path: edit_config(path, seed="3"), ["--export"]),
    "a network of other code": (lambda path: export_again(path, model="cnn99"), ["cnn99"]),
    "an option of other code": (lambda path: export_again(path, options={"depth": 3}), ["depth"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_trial_of_this_code_is_refused_and_nothing_is_written(exported, capsys, case):
    spoil, expected = REFUSED[case]
    path = exported()
    spoil(path)
    assert call(path) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    assert all(part in captured.err for part in (str(path), *expected)), captured.err
    assert not (path.parent / "results").exists()


def test_results_that_cannot_lie_there_are_refused(exported, capsys):
    path = exported()
    (path.parent / "results").write_text("")
    assert call(path) == 2
    assert str(path.parent / "results") in capsys.readouterr().err
    (path.parent / "results").unlink()
    occupy(path)
    assert call(path) == 2
    assert str(trial_dir_of(path)) in capsys.readouterr().err


def test_data_that_is_not_what_the_trial_asks_for_is_refused(exported, capsys, fingerprint, tmp_path, monkeypatch):
    def message_of(path, *options):
        assert call(path, *options) == 2
        return capsys.readouterr().err

    assert "train_images" in message_of(exported(train_images=5000))
    few = message_of(edit_config(exported(), train_images=50))
    assert "batch_size: found 64, allowed: at most the 50" in few
    content = json.loads((path := exported()).read_text())
    edit(path, fingerprint="f" * 16, key=trial_key(folder.from_dict(content["config"]), "f" * 16))
    other = message_of(path)
    assert all(part in other for part in ("data", "f" * 16, fingerprint))

    def offline(*_args, **_kwargs):
        raise OSError("blocked by the test")

    monkeypatch.setattr("socket.getaddrinfo", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = export_again(exported(), dataset="mnist")
    assert "--data-dir" in message_of(path, "--data-dir", str(tmp_path / "empty"))
