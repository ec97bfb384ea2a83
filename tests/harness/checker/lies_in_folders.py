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

DATA, CSV = "data: the fingerprint is", "leaderboard.csv does not follow"


@dataclass(frozen=True)
class Lie:
    """What is changed in a sweep, and a part of the line that must say so.

    of: whose line it is: "cnn5", "certified", "cerdeq", "key" for one without a label, or "" for the sweep's own.
    """

    change: Change
    says: str
    of: str = "cnn5"


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


LIES = {
    # What cannot be read, and what is missing.
    "a pipe": Lie(lay_pipe(folder.CERTIFICATES), "certificates.safetensors cannot be read: FileNotFound"),
    "no result": Lie(hide(folder.RESULT), "not checked: result.json: unfinished: epoch "),
    "no trial.json": Lie(hide(folder.TRIAL), "not checked: trial.json: not begun", "key"),
    "no certification.json": Lie(hide(certification.CERTIFICATION, "certified"),
        "not checked: certification.json: not begun", "certified"),
    "no weights": Lie(hide(folder.WEIGHTS), "weights.safetensors is not stored"),
    # Keys and configs.
    "a result of another trial": Lie(change_result(lambda content: content.update(key="0123456789abcdef")),
        "result.json belongs to another trial"),
    "a certification with another eps": Lie(change_certification(lambda content: content["config"].update(eps="1/10")),
        "certification.json describes another trial", "certified"),
    "a larger eps": Lie(set_eps("1/8"), "trial.json cannot be read", "key"),
    "a larger eps, with its key": Lie(change_config(eps="1/2"),
        "certified by ibp, but the smallest margin is at least -"),
    "held-out images": Lie(change_config(validation_images=40), "verdicts of 24 examples; there are 40"),
    # Data.
    "data of another fingerprint": Lie(set_fingerprint, DATA),
    "a changed image in the cache": Lie(change_cached_data(lambda tensors: tensors["test_images"][0].fill(3)), DATA),
    # Metrics.
    "a certified error of NaN": Lie(change_metrics(certified_error=float("nan")), "result.json cannot be read"),
    "no certified error": Lie(change_metrics(certified_error=None), "certified_error: recorded None, by"),
    **{
        f"a lower {name}": Lie(change_metrics(of, **{name: 1.0}), f"{name.replace('__', '/')}: recorded 1.0, by", of)
        for name, of in (("certified_error", "certified"), ("standard_error", "cnn5"), ("attack_error", "cnn5"),
            ("undecided", "cnn5"), ("certified_error__crown-ibp", "cnn5"))
    },
    # Leaderboards.
    "a lower error in leaderboard.csv": Lie(change_text("leaderboard.csv", ",20.83", ",10.83"), CSV, ""),
    "a trial removed after leaderboard.csv": Lie(lambda sweep: shutil.rmtree(sweep.cerdeq), CSV, ""),
    # User code.
    "code of the results": Lie(name_plugin, "names the plugin liar"),
}  # fmt: skip
