"""Malformed files of every kind: each ends in a message that names it and exit status 2, or in verdicts that are not
confirmed; no traceback, nothing run, nothing written."""

import io
import json
import logging
import shutil

import malformed
import numpy as np
import pandas as pd
import pytest
import torch
from one_network import train_and_evaluate
from safetensors.numpy import load_file, save
from small_sweep import write

from harness.command_line import main
from harness.data import load
from harness.report.figures import catalogue
from harness.storage import folder
from harness.storage.records import make_record
from harness.storage.sweep_file import SWEEP
from harness.training import checkpoint


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def run_command(tmp_path, nothing_starts, capsys):
    """A function of a command and its arguments to its exit status and message; it may write nothing."""

    def run(name, *arguments):
        before = contents(tmp_path)
        status = main(name, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert contents(tmp_path) == before
        assert "Traceback" not in captured.out + captured.err
        assert len(captured.err) < 20_000
        return status, captured.err or captured.out

    return run


@pytest.fixture(scope="module")
def record(tiny_training):
    config = tiny_training(width=0.05, train={"epochs": 1, "ramp_epochs": 1, "compile": "never"})
    return make_record(config, load("digits").fingerprint)


@pytest.fixture(scope="module")
def finished(record, tiny_evaluation, tmp_path_factory):
    """The folder of a network that is trained and evaluated, which no test may change."""
    network_dir = folder.network_dir(tmp_path_factory.mktemp("finished") / "tiny", record.key)
    train_and_evaluate(record.config, [tiny_evaluation()], network_dir)
    folder.add_to_study(network_dir, "full", tiny_evaluation())
    for path in network_dir.rglob(folder.LOG):
        path.unlink()
    train = {"epochs": 1, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 1, "decay_epochs": [], "compile": "never"}
    evaluation = tiny_evaluation().model_dump(mode="json", exclude_defaults=True, exclude={"eps"})
    content = {"name": "tiny", "dataset": "digits", "eps": "1/32", "seeds": [0], "width": 0.05, "train_images": 320}
    content |= {"train": train, "evaluation": evaluation, "trials": [{"model": "cnn5", "method": "ibp"}]}
    write(network_dir.parents[1], content | {"ran": {"profile": "full"}}, SWEEP)
    return network_dir


@pytest.fixture
def network_dir(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished.parents[1], tmp_path / "tiny")
    return tmp_path / "tiny" / folder.NETWORKS / finished.name


@pytest.fixture
def evaluation_dir(network_dir):
    """The folder of its evaluation."""
    return folder.evaluation_folders(network_dir)[0]


def assert_refused(run_command, path, cases, allowed, name, *arguments):
    """Try each case as the content of a file; a message of exit status 2 names its folder."""
    wrong = {}
    for what, content in cases.items():
        path.write_bytes(content)
        status, message = run_command(name, *arguments)
        if status not in allowed or (status == 2 and str(path.parent) not in message):
            wrong[what] = status, message[:100]
    assert cases and not wrong, wrong


_DEFAULTS = ("without taken_over", "without weights", "without verdicts")  # then it is evaluated again


@pytest.mark.parametrize("name", [folder.TRAINING, folder.TRAINED, folder.EVALUATION, folder.RESULT])
def test_files_of_a_finished_network(run_command, network_dir, evaluation_dir, name):
    path = (network_dir if name in (folder.TRAINING, folder.TRAINED) else evaluation_dir) / name
    cases = malformed.jsons(json.loads(path.read_text()))
    cases = {what: text for what, text in cases.items() if what not in _DEFAULTS}
    (file,) = network_dir.parents[1].glob("*.yaml")
    assert_refused(run_command, path, cases, [2], "run", file, "--here", "--dry-run")


def parquet(table):
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def test_verdicts(run_command, network_dir, evaluation_dir):
    path = evaluation_dir / folder.VERDICTS
    good = pd.read_parquet(path)
    cases = malformed.of_bytes(path.read_bytes())
    del cases["a bit flipped"]  # may be of a column that is not read
    for name in ("index", "label", "verdict"):
        cases[f"without {name}"] = parquet(good.drop(columns=name))
        cases |= {f"{name} {what}": parquet(good.assign(**{name: value})) for what, value in
                  {"as text": "x", "of nothing": np.nan, "of lists": [[1]] * len(good)}.items()}  # fmt: skip
    rows = {"no rows": good.iloc[:0], "rows twice": pd.concat([good, good]), "half": good.iloc[:9]}
    cases |= {what: parquet(table) for what, table in rows.items()}
    assert_refused(run_command, path, cases, [1, 2], "recheck", network_dir.parents[1])


@pytest.mark.parametrize("command", ["publish", "tables"])
@pytest.mark.parametrize(("column", "value"), [("width", None), ("verdict", 5)])
def test_a_wrong_column_of_verdicts_is_named(evaluation_dir, tmp_path, capsys, monkeypatch, command, column, value):
    monkeypatch.setattr(catalogue, "FIGURES", [])  # which read no verdicts
    path, sweep_dir = evaluation_dir / folder.VERDICTS, str(tmp_path / "tiny")
    table = pd.read_parquet(path)
    path.write_bytes(parquet(table.drop(columns=column) if value is None else table.assign(**{column: value})))
    target = ["--to", str(tmp_path / "published")] if command == "publish" else []
    status = main(command, [sweep_dir, *target])
    assert status == (2 if command == "publish" else 0)
    assert command != "publish" or f"{path}: {column} is " in capsys.readouterr().err


@pytest.mark.parametrize("name", [folder.WEIGHTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES])
def test_tensors(run_command, network_dir, evaluation_dir, name):
    path = (network_dir if name == folder.WEIGHTS else evaluation_dir) / name
    if name != folder.WEIGHTS:
        path.write_bytes(save({"0/row" if name == folder.CERTIFICATES else "0": np.zeros((1, 8, 8), np.int16)}))
    good = load_file(path)
    first = next(name for name, tensor in good.items() if tensor.ndim)
    cases = malformed.of_bytes(path.read_bytes())
    del cases["a bit flipped"]  # another network, or another point
    cases |= {
        "another shape": save({**good, first: np.zeros((3, 1), good[first].dtype)}),
        "another type": save({**good, first: np.zeros(good[first].shape, np.uint8)}),
    }
    statuses = [1, 2] if name == folder.WEIGHTS else [0, 1, 2]  # proofs that no verdict needs is not read
    if name == folder.WEIGHTS:
        cases |= {"not a number": save({**good, first: np.full_like(good[first], np.nan)}), "none": save({})}
    assert_refused(run_command, path, cases, statuses, "recheck", network_dir.parents[1], "--images", 1)


def test_checkpoints(tmp_path, caplog):
    """As if there were none, which is logged; and nothing in them is run."""
    network = torch.nn.Linear(3, 2)
    parts = {"model": network, "optimiser": torch.optim.Adam(network.parameters())}
    checkpoint.save(tmp_path, 3, parts)
    path, before = tmp_path / folder.CHECKPOINT, network.weight.clone()
    good = torch.load(path, weights_only=True)
    states = {
        "a list": [],
        "no epoch": {name: good[name] for name in parts},
        "an epoch below the first": {**good, "epoch": -1},
        "another shape": {**good, "model": {"weight": torch.ones(9), "bias": torch.ones(2)}},
        "a function": {**good, "model": print},
    }
    cases = malformed.of_bytes(path.read_bytes())
    del cases["a bit flipped"]  # may be of what fills up: tests/harness/training/test_interrupted_training.py
    for what, state in states.items():
        torch.save(state, path)
        cases[what] = path.read_bytes()
    caplog.set_level(logging.INFO)
    for what, content in cases.items():
        path.write_bytes(content)
        caplog.clear()
        assert checkpoint.restore(tmp_path, parts, torch.device("cpu")) == 0, what
        assert f"{path} cannot be read" in caplog.text, what
        assert not path.exists() and torch.equal(network.weight, before), what
