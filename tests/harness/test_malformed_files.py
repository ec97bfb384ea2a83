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
from safetensors.numpy import load_file, save
from small_sweep import BASE

from harness.command_line import main
from harness.data import load
from harness.storage import folder
from harness.training import checkpoint, run_trial

SWEEPS = malformed.sweeps(BASE)


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def told(tmp_path, nothing_starts, capsys):
    """A function of a command and its arguments to its exit status and message; it may write nothing."""

    def call(name, *arguments):
        before = contents(tmp_path)
        status = main(name, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert contents(tmp_path) == before
        assert "Traceback" not in captured.out + captured.err
        assert len(captured.err) < 20_000
        return status, captured.err or captured.out

    return call


@pytest.mark.parametrize("what", SWEEPS)
def test_sweep_files(told, tmp_path, what):
    path = tmp_path / "study.yaml"
    path.write_bytes(SWEEPS[what])
    status, message = told("run", path, "--results-dir", tmp_path / "results")
    assert (status, message[:7]) == (2, "error: ")
    assert str(path) in message or what.startswith("an include")


@pytest.fixture(scope="module")
def trial(tiny_trial):
    config = tiny_trial(width=0.05, train={"epochs": 1, "ramp_epochs": 1})
    return folder.make_trial(config, load("digits").fingerprint)


@pytest.fixture(scope="module")
def finished(trial, tmp_path_factory):
    """The folder of a finished trial, which no test may change."""
    place = folder.trial_dir(tmp_path_factory.mktemp("finished") / "tiny", trial.key)
    run_trial(trial.config, place)
    (place / folder.LOG).unlink()
    return place


@pytest.fixture
def place(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished.parents[1], tmp_path / "tiny")
    return tmp_path / "tiny" / "trials" / finished.name


def all_told(told, path, cases, allowed, name, *arguments):
    """Try each case; all that went wrong is told at once."""
    wrong = {}
    for what, content in cases.items():
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            status, message = told(name, *arguments)
            if status not in allowed or (status == 2 and str(path.parent) not in message):
                wrong[what] = status, message[:100]
        except Exception as error:
            wrong[what] = repr(error)
    assert not wrong, wrong
    return len(cases)


def changes(content, *keys):
    """A JSON file with each value below some keys replaced by each of another type."""
    cases, inside = {}, content
    for key in keys:
        inside = inside[key]
    for name in list(inside):
        right = inside[name]
        for what, value in malformed.VALUES.items():
            inside[name] = value
            cases[f"{'.'.join(keys)}.{name}: {what}"] = json.dumps(content).encode()
        inside[name] = right
    return {what: text for what, text in cases.items() if json.loads(text) != content}


def test_trial_files(told, trial, tmp_path):
    path, good = tmp_path / "trial.json", folder.trial_json(trial)
    cases = malformed.jsons(good) | changes(good, "config") | changes(good, "config", "train")
    cases |= changes(good, "config", "evaluation")
    cases = {what: text for what, text in cases.items() if not same(text, good)}
    assert all_told(told, path, cases, [2], "trial", path, "--results-dir", tmp_path / "results") > 200


def same(text, good):
    """Whether a file says what is good; infinities and defaults are what JSON and settings make of them."""
    try:
        config = json.loads(text)["config"]
        return (
            json.loads(text)["key"] == good["key"]
            and folder.make_trial(folder.from_dict(config), good["fingerprint"]).key == good["key"]
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


HARMLESS = {  # what may be said, or is not looked at for another recipe
    folder.TRIAL: ("fingerprint text", "recipe_version a number"),
    folder.RESULT: ("key text", "data an object", ": nothing", ": a number", ": not a number", ": infinite"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_files_of_a_finished_trial(told, place, name):
    path = place / name
    good = json.loads(path.read_text())
    cases = malformed.jsons(good) | (changes(good, "metrics") if name == folder.RESULT else {})
    for harmless in HARMLESS[name]:
        cases = {what: text for what, text in cases.items() if not what.endswith(harmless)}
    assert all_told(told, path, cases, [2], "certify", place) > 30


@pytest.mark.parametrize("name", [folder.EPOCHS, folder.FAILURE])
def test_files_of_an_unfinished_trial(told, place, name):
    """Told where the trial stands; it hides no other."""
    (place / folder.RESULT).unlink()
    cases = malformed.jsons({"epoch": 1} if name == folder.EPOCHS else {"error": "it failed"})
    for what, content in cases.items():
        (place / name).write_bytes(content)
        status, message = told("status", place.parents[1])
        harmless = what in ("its error text", "empty" if name == folder.EPOCHS else "", "its epoch a number")
        assert status == 0 and ("cannot be read" in message) != harmless, (what, message)


def parquet(table):
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def test_verdicts(told, place):
    path = place / folder.VERDICTS
    good = pd.read_parquet(path)
    cases = malformed.of_bytes(path.read_bytes())
    del cases["a bit flipped"]  # may be of a column that is not read
    columns = {"as text": "x", "of nothing": np.nan, "huge": 2**62, "of lists": [[1]] * len(good)}
    unread = {}  # what no verdict of this network needs
    for name in ("index", "label", "prediction", "verdict", "stage", "margin_ibp"):
        cases[f"without {name}"] = parquet(good.drop(columns=name))
        spoilt = unread if name in ("stage", "margin_ibp") else cases
        spoilt |= {f"{name} {what}": parquet(good.assign(**{name: value})) for what, value in columns.items()}
    rows = {"no rows": good.iloc[:0], "rows twice": pd.concat([good, good]), "half": good.iloc[:9]}
    cases |= {what: parquet(table) for what, table in rows.items()}
    assert all_told(told, path, cases, [1, 2], "recheck", place.parents[1]) > 30
    assert all_told(told, path, unread, [0, 1, 2], "recheck", place.parents[1])


@pytest.mark.parametrize("name", [folder.WEIGHTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES])
def test_tensors(told, place, name):
    path = place / name
    if name != folder.WEIGHTS:
        path.write_bytes(save({"0/row" if name == folder.CERTIFICATES else "0": np.zeros((1, 8, 8), np.int16)}))
    good = load_file(path)
    first = next(name for name, tensor in good.items() if tensor.ndim)
    cases = malformed.of_bytes(path.read_bytes())
    del cases[
        "a bit flipped"
    ]  # of a weight it makes another network, of a point another point: not told from good ones
    cases |= {
        "a path for a name": save({**good, "../../x": good[first]}),
        "another shape": save({**good, first: np.zeros((3, 1), good[first].dtype)}),
        "another type": save({**good, first: np.zeros(good[first].shape, np.uint8)}),
    }
    if name == folder.WEIGHTS:
        cases |= {"not a number": save({**good, first: np.full_like(good[first], np.nan)}), "none": save({})}
        assert all_told(told, path, cases, [1, 2], "recheck", place.parents[1], "--images", 1) > 10
    else:
        statuses = [0, 1, 2]  # what no verdict needs is not looked at
        assert all_told(told, path, cases, statuses, "recheck", place.parents[1], "--images", 1) > 10


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
        "half an epoch": {**good, "epoch": 0.5},
        "an epoch below the first": {**good, "epoch": -1},
        "another shape": {**good, "model": {"weight": torch.ones(9), "bias": torch.ones(2)}},
        "a function": {**good, "model": print},
        "a number for a network": {**good, "model": 5},
    }
    cases = malformed.of_bytes(path.read_bytes())
    del cases["a bit flipped"]  # may be of what fills up: tests/harness/training/test_interrupted_trial.py
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
