"""The sections `bounds` and `evaluation`: what bounds of trained networks give and cost, what an evaluation costs."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq import LinfBall, bound, margin_spec
from harness.bench.steps import Step, median_seconds
from harness.common.errors import require
from harness.config.buildable import check_buildable
from harness.config.plugins import load_for, require_trusted
from harness.config.trial import Trial
from harness.data import load
from harness.evaluation.verdicts import evaluate
from harness.machine.freed_memory import reuse_freed_memory
from harness.storage import folder
from harness.training import load_network

_ROUNDS = 3
_FIRST = "cost over the first network"

Trained = tuple[str, nn.Module, Trial, Tensor, Tensor]
"""A network's label, the network, its config, test images (uint8) and their labels."""


@torch.no_grad()
def measure_bounds(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each bound of each trained network: of the first test images, in float64, rounded outwards.

    width: mean of upper minus lower margin, in logits. lower: mean lower margin. Seconds are for both ends of all
    margins. Raises InputError if a folder holds no trained trial, or the data set not so many images.
    """
    actions: dict[tuple[int, str], Step] = {}
    ends: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    trained = _trained_networks(options, device)

    def measure(key: tuple[int, str], ask: Callable[[], tuple[Tensor, Tensor]]) -> None:
        ends[key] = ask()

    for number, (_, model, config, images, classes) in enumerate(trained):
        x = images.double() / 255
        spec = margin_spec(classes, config.data_info.classes).to(x)
        for name in options.bounds:
            ask = partial(bound, model, LinfBall(x, config.eps), name, spec)
            actions[number, name] = partial(measure, (number, name), ask)
    seconds = _median_seconds(actions, device)
    rows = []
    for (number, name), (lower, upper) in ends.items():
        measured = {
            "width": float((upper - lower).mean()),
            "lower": float(lower.mean()),
            "certified %": 100 * float((lower > 0).all(1).double().mean()),
            "s an example": seconds[number, name] / options.images,
            _FIRST: seconds[number, name] / seconds[0, name],
        }
        rows.append({"network": trained[number][0], "bound": name} | measured)
    return rows


def measure_evaluation(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each trained network: what evaluating the first test images takes, as its trial says.

    Raises InputError as `measure_bounds` does.
    """
    trained = _trained_networks(options, device)
    actions: dict[tuple[int, str], Step] = {
        (number, ""): partial(evaluate, model, images, classes, config)
        for number, (_, model, config, images, classes) in enumerate(trained)
    }
    seconds = _median_seconds(actions, device)
    return [
        {
            "network": label,
            "stages": ", ".join(config.evaluation.stages),
            "s an example": seconds[number, ""] / options.images,
            _FIRST: seconds[number, ""] / seconds[0, ""],
        }
        for number, (label, _, config, _, _) in enumerate(trained)
    ]


def _trained_networks(options: argparse.Namespace, device: torch.device) -> list[Trained]:
    """Return the networks of `--trained`, with the first test images of their data sets."""
    require("--images", options.images, options.images >= 1, "at least 1")
    configs = [folder.read_trial(path / folder.TRIAL).config for path in options.trained]
    trained: list[Trained] = []
    for path, config in zip(options.trained, configs, strict=True):
        require_trusted(config, options.plugin)
        load_for(config)
        check_buildable(config)
        require("--trained", str(path), (path / folder.WEIGHTS).exists(), f"a folder with {folder.WEIGHTS}")
        model = load_network(config, path / folder.WEIGHTS).to(device)
        test = load(config.data_source, options.data_dir).test_images(options.images)
        trained.append((config.label, model, config, test.images.to(device), test.labels.to(device)))
    return trained


def _median_seconds(actions: dict[tuple[int, str], Step], device: torch.device) -> dict[tuple[int, str], float]:
    """Return the median seconds of each action, after a round that loads libraries."""
    with reuse_freed_memory():
        median_seconds(actions, 1, device)
        return median_seconds(actions, _ROUNDS, device)
