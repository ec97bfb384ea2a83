"""Lies about what lies where: files of other networks, keys, configs, metrics, data, leaderboards, user code."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from lying_sweep import (
    Change,
    Sweep,
    change_config,
    change_evaluation,
    change_metrics,
    change_result,
    edit_json,
    make_key,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from harness.config import plugins
from harness.machine.environment import cache_directory
from harness.storage import folder

DATA, CSV = "data: the fingerprint is", "leaderboard.csv does not follow"


@dataclass(frozen=True)
class Lie:
    """What is changed in a sweep, and a part of the line that must say so.

    of: whose line it is: "cnn5", "certified", "cerdeq", "key" for a network without a label, "none" for an evaluation
        without a description, or "" for the sweep's own.
    """

    change: Change
    says: str
    of: str = "cnn5"


def name_plugin(sweep: Sweep) -> None:
    """Let a network name code that lies beside it, which could replace the checker."""
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


def set_eps(eps: str, of: str = "cnn5") -> Change:
    """Change the eps of an evaluation, not its key."""
    return lambda sweep: edit_json(
        sweep.evaluation_dir(of) / folder.EVALUATION, lambda content: content["config"].update(eps=eps)
    )


def set_seed(sweep: Sweep) -> None:
    edit_json(sweep.network / folder.TRAINING, lambda content: content["config"].update(seed=1))


def hide(name: str, of: str = "cnn5") -> Change:
    return lambda sweep: (getattr(sweep, of) / name).unlink()


def hold_out(sweep: Sweep) -> None:
    change_config(validation_images=40)(sweep)
    change_evaluation(split="validation", test_images=None)(sweep)


def swap_weights(sweep: Sweep) -> None:
    shutil.copy(folder.network_of(sweep.cerdeq) / folder.WEIGHTS, sweep.network)


def set_fingerprint(sweep: Sweep) -> None:
    edit_json(sweep.network / folder.TRAINING, lambda content: content.update(fingerprint="0123456789abcdef"))
    make_key(sweep)


LIES = {
    # What cannot be read, and what is missing.
    "a pipe": Lie(lay_pipe(folder.CERTIFICATES), "certificates.safetensors cannot be read: FileNotFound"),
    "no result": Lie(hide(folder.RESULT), "not checked: result.json: unfinished: trained"),
    "no training.json": Lie(hide(folder.TRAINING, "network"), "not checked: training.json: not begun", "key"),
    "no evaluation.json": Lie(hide(folder.EVALUATION), "not checked: evaluation.json: ", "none"),
    "no weights": Lie(hide(folder.WEIGHTS, "network"), "weights.safetensors is not stored"),
    "other weights": Lie(swap_weights, "weights.safetensors: found SHA-256 "),
    # Keys and configs.
    "a result of another network": Lie(change_result(lambda content: content.update(key="0123456789abcdef")),
        "result.json belongs to another network or evaluation"),
    "a result of another evaluation": Lie(
        lambda sweep: shutil.copy(sweep.certified / folder.RESULT, sweep.cnn5 / folder.RESULT),
        "result.json belongs to another network or evaluation"),
    "another seed": Lie(set_seed, "training.json cannot be read", "key"),
    "a larger eps": Lie(set_eps("1/8"), "evaluation.json cannot be read", "none"),
    "a larger eps, with its key": Lie(change_evaluation(eps="1/2"),
        "certified by ibp, but the smallest margin is at least -"),
    "held-out images": Lie(hold_out, "verdicts of 24 examples; there are 40"),
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
    "a network removed after leaderboard.csv": Lie(
        lambda sweep: shutil.rmtree(folder.network_of(sweep.cerdeq)), CSV, ""),
    "an evaluation removed after leaderboard.csv": Lie(lambda sweep: shutil.rmtree(sweep.certified), CSV, ""),
    # User code.
    "code of the results": Lie(name_plugin, "names the plugin liar"),
}  # fmt: skip
