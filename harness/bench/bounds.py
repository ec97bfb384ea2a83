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
from harness.config.training import Training
from harness.data import load
from harness.evaluation.network import load_network, prepare_network
from harness.evaluation.verdicts import evaluate_images
from harness.machine.freed_memory import reuse_freed_memory
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.folder import main_evaluation

_ROUNDS = 3
_FIRST = "cost over the first network"

Trained = tuple[str, nn.Module, Training, Evaluation, Tensor, Tensor]
"""A network's label, the network, its training, an evaluation of it, test images (uint8) and their labels."""


@torch.no_grad()
def measure_bounds(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each bound of each trained network: of the first test images, in float64, rounded outwards.

    width: mean of upper minus lower margin, in logits. lower: mean lower margin. Seconds are for both ends of all
    margins. Raises InputError if a folder holds no trained network, or the data set not so many images.
    """
    actions: dict[tuple[int, str], Step] = {}
    ends: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    trained = _trained_networks(options, device)

    def measure(key: tuple[int, str], ask: Callable[[], tuple[Tensor, Tensor]]) -> None:
        ends[key] = ask()

    for number, (_, model, training, evaluation, images, labels) in enumerate(trained):
        x = images.double() / 255
        spec = margin_spec(labels, training.data_info.classes).to(x)
        for name in options.bounds:
            ask = partial(bound, model, LinfBall(x, evaluation.eps), name, spec)
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
    """Return a row for each trained network: what evaluating the first test images takes, by its main evaluation.

    Raises InputError as `measure_bounds` does.
    """
    trained = _trained_networks(options, device)
    actions: dict[tuple[int, str], Step] = {
        (number, ""): partial(_evaluate, model, training, evaluation, images, labels)
        for number, (_, model, training, evaluation, images, labels) in enumerate(trained)
    }
    seconds = _median_seconds(actions, device)
    return [
        {
            "network": label,
            "stages": ", ".join(evaluation.stages),
            "s an example": seconds[number, ""] / options.images,
            _FIRST: seconds[number, ""] / seconds[0, ""],
        }
        for number, (label, _, _, evaluation, _, _) in enumerate(trained)
    ]


def _evaluate(model: nn.Module, training: Training, evaluation: Evaluation, images: Tensor, labels: Tensor) -> None:
    network = prepare_network(model, evaluation.stages, training.data_info.classes)
    evaluate_images(network, images, labels, 0, evaluation, training.seed)


def _trained_networks(options: argparse.Namespace, device: torch.device) -> list[Trained]:
    """Return the networks of `--trained`, with the first test images of their data sets."""
    require("--images", options.images, options.images >= 1, "at least 1")
    configs = [folder.read_training(path / folder.TRAINING).config for path in options.trained]
    trained: list[Trained] = []
    for path, config in zip(options.trained, configs, strict=True):
        require_trusted(config, options.plugin)
        load_for(config)
        evaluation = main_evaluation(path)
        check_buildable(config, [evaluation])
        require("--trained", str(path), (path / folder.WEIGHTS).exists(), f"a folder with {folder.WEIGHTS}")
        model = load_network(config, path / folder.WEIGHTS).to(device)
        test = load(config.data_source, options.data_dir).test_images(options.images)
        trained.append((config.label, model, config, evaluation, test.images.to(device), test.labels.to(device)))
    return trained


def _median_seconds(actions: dict[tuple[int, str], Step], device: torch.device) -> dict[tuple[int, str], float]:
    """Return the median seconds of each action, after a round that loads libraries."""
    with reuse_freed_memory():
        median_seconds(actions, 1, device)
        return median_seconds(actions, _ROUNDS, device)
