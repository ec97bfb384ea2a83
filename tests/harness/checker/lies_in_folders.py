"""Lies about what lies where: files of other trials, keys, configs, metrics, data, leaderboards, user code."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from lying_sweep import (
    Change,
    Sweep,
    change_config,
    change_metrics,
    change_result,
    edit_json,
    make_key,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from harness.config import plugins
from harness.machine.environment import cache_directory
from harness.storage import certification, folder


@dataclass(frozen=True)
class Lie:
    """What is changed in a sweep, a part of the line that must say so, and the check that the lie aims at.

    of: whose line it is: "cnn5", "certified", "cerdeq", or "" for the sweep's own. accept: takes the check's place in
    the test of the tests.
    """

    change: Change
    says: str
    check: str
    of: str = "cnn5"
    accept: Callable[..., Any] = lambda *_args, **_kwargs: []


FOLDERS, RECORDS, IMAGES = ("harness.checker." + name for name in ("folders", "verdict_tables", "images"))
READ, STORED = "harness.storage.files.read_bytes", f"{FOLDERS}.read_finished"
METRICS = f"{RECORDS}.check_metrics"
LEADERBOARD, PLUGINS = "harness.recheck.check_leaderboard", f"{FOLDERS}.check_plugins"


def name_plugin(sweep: Sweep) -> None:
    """Let a trial name code that lies beside it, which could replace the checker."""
    (sweep.root / "liar.py").write_text("print('the liar has run')\n")
    change_config(plugins=plugins.digests(["liar"]))(sweep)


def change_cached_data(change: Callable[[dict[str, np.ndarray]], None]) -> Change:
    """Change the cache of decoded data, which keeps the fingerprint that it records."""

    def damage(_sweep: Sweep) -> None:
        for path in cache_directory().glob("digits-*.safetensors"):
            tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
            with safe_open(path, "numpy") as file:
                metadata = file.metadata()
            change(tensors)
            save_file(tensors, path, metadata)

    return damage


def change_text(name: str, old: str, new: str) -> Change:
    def damage(sweep: Sweep) -> None:
        path = sweep.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def change_text_of_result(old: str, new: str) -> Change:
    return lambda sweep: change_text(f"trials/{sweep.cnn5.name}/{folder.RESULT}", old, new)(sweep)


def drop_last_line(name: str) -> Change:
    def damage(sweep: Sweep) -> None:
        lines = (sweep.root / name).read_text().splitlines(keepends=True)
        (sweep.root / name).write_text("".join(lines[:-1]))

    return damage


def lay_pipe(name: str) -> Change:
    def damage(sweep: Sweep) -> None:
        (sweep.cnn5 / name).unlink()
        os.mkfifo(sweep.cnn5 / name)

    return damage


def set_eps(eps: str) -> Change:
    return lambda sweep: edit_json(sweep.cnn5 / folder.TRIAL, lambda content: content["config"].update(eps=eps))


def hide(name: str, of: str = "cnn5") -> Change:
    return lambda sweep: (getattr(sweep, of) / name).unlink()


def change_certification(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda sweep: edit_json(sweep.certified / certification.CERTIFICATION, change)


def set_fingerprint(sweep: Sweep) -> None:
    edit_json(sweep.cnn5 / folder.TRIAL, lambda content: content.update(fingerprint="0123456789abcdef"))
    make_key(sweep)


NAN = float("nan")
CERTIFICATION = f"{FOLDERS}.check_certification"
DATA = "harness.checker.verdicts.check_data"
KEY = "harness.storage.folder.require"
LIES = {
    # What cannot be read, and what is missing.
    "a pipe": Lie(lay_pipe(folder.CERTIFICATES), "certificates.safetensors cannot be read: FileNotFound", READ,
        accept=lambda *_: b""),
    "a pipe for a config": Lie(lay_pipe(folder.TRIAL), "trial.json cannot be read: FileNotFound", READ, "key",
        accept=lambda *_: b""),
    "no result": Lie(hide(folder.RESULT), "not checked: result.json: unfinished: epoch ", STORED),
    "no result of a certification": Lie(hide(folder.RESULT, "certified"), "not checked: result.json: ", STORED,
        "certified"),
    "no trial.json": Lie(hide(folder.TRIAL), "not checked: trial.json: not begun", STORED, "key"),
    "no certification.json": Lie(hide(certification.CERTIFICATION, "certified"),
        "not checked: certification.json: not begun", STORED, "certified"),
    "a failure of a finished trial": Lie(
        lambda sweep: (hide(folder.RESULT)(sweep), folder.write_failure(sweep.cnn5, "loss is NaN")),
        "not checked: result.json: failed: loss is NaN", STORED),
    "no weights": Lie(hide(folder.WEIGHTS), "weights.safetensors is not stored", f"{FOLDERS}.check_weights"),
    # Keys and configs.
    "a result of another trial": Lie(change_result(lambda content: content.update(key="0123456789abcdef")),
        "result.json belongs to another trial", STORED),
    "a certification's result of another trial": Lie(
        change_result(lambda content: content.update(key="f" * 16), "certified"),
        "result.json belongs to another trial", STORED, "certified"),
    "a certification with another eps": Lie(change_certification(lambda content: content["config"].update(eps="1/10")),
        "certification.json describes another trial", CERTIFICATION, "certified"),
    "a certification of another seed": Lie(change_certification(lambda content: content["config"].update(seed=7)),
        "certification.json describes another trial", CERTIFICATION, "certified"),
    "a larger eps": Lie(set_eps("1/8"), "trial.json cannot be read", KEY, "key"),
    "a larger eps, with its key": Lie(change_config(eps="1/2"),
        "certified by ibp, but the smallest margin is at least -", f"{IMAGES}.check_ibp"),
    "held-out images": Lie(change_config(validation_images=40), "verdicts of 24 examples; there are 40",
        f"{RECORDS}.check_index"),
    # Data.
    "data of another fingerprint": Lie(set_fingerprint, "data: the fingerprint is", DATA),
    "a changed image in the cache": Lie(change_cached_data(lambda tensors: tensors["test_images"][0].fill(3)),
        "data: the fingerprint is", DATA),
    "changed labels in the cache": Lie(change_cached_data(lambda tensors: tensors["test_labels"][-1:].fill(0)),
        "data: the fingerprint is", DATA),
    # Metrics.
    "a certified error of NaN": Lie(change_metrics(certified_error=NAN), "result.json cannot be read",
        "harness.storage.files._refuse_number", accept=float),
    "a certified error of infinity": Lie(
        change_text_of_result('"certified_error": ', '"certified_error": 1e999, "": '), "result.json cannot be read",
        "harness.storage.files._finite", accept=float),
    "no certified error": Lie(change_metrics(certified_error=None), "certified_error: recorded None, by", METRICS),
    "a lower certified error": Lie(change_metrics(certified_error=8.5), "certified_error: recorded 8.5, by", METRICS),
    "a lower certified error of a certification": Lie(change_metrics("certified", certified_error=8.5),
        "certified_error: recorded 8.5, by", METRICS, "certified"),
    "a lower standard error": Lie(change_metrics(standard_error=0.0), "standard_error: recorded 0.0, by", METRICS),
    "a lower attack error": Lie(change_metrics(attack_error=0.0), "attack_error: recorded 0.0, by", METRICS),
    "fewer undecided": Lie(change_metrics(undecided=0.0), "undecided: recorded 0.0, by", METRICS),
    "a lower error by a stage": Lie(change_metrics(**{"certified_error__crown-ibp": 1.0}),
        "certified_error/crown-ibp: recorded 1.0, by", METRICS),
    # Leaderboards.
    **{
        f"{what} leaderboard.{kind}": Lie(change, f"leaderboard.{kind} does not follow", LEADERBOARD, "")
        for what, kind, change in (
            ("a lower error in", "csv", change_text("leaderboard.csv", ",20.83", ",10.83")),
            ("a lower error in", "md", change_text("leaderboard.md", "20.83", "10.83")),
            ("a lower error in", "tex", change_text("leaderboard.tex", "20.83", "10.83")),
            ("a lower error in", "json", change_text("leaderboard.json", ": 20.83", ": 10.83")),
            ("a row left out of", "csv", drop_last_line("leaderboard.csv")),
            ("a trial removed after", "csv", lambda sweep: shutil.rmtree(sweep.cerdeq)),
        )
    },
    # User code.
    "code of the results": Lie(name_plugin, "names the plugin liar", PLUGINS),
}  # fmt: skip
