"""The section `bounds`: how tight each bound is on trained networks, what it certifies and takes."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines import DATASETS
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.boxes import Box
from harness.config.plugins import load_for
from harness.config.trial import labels
from harness.data import load
from harness.errors import require
from harness.measure.machine import peak_memory, seconds_of
from harness.storage import folder
from harness.training import load_network


def check_trained(trial_dirs: list[Path], images: int, data_dir: str | None) -> None:
    """Raise InputError where a folder holds no trained trial, or the data set not so many images."""
    require("--images", images, images >= 1, "at least 1")
    for path in trial_dirs:
        config = folder.read_trial(path / folder.TRIAL).config
        load_for(config)
        load(config.dataset, data_dir).test_images(images)
        require("--trained", str(path), (path / folder.WEIGHTS).exists(), f"a folder with {folder.WEIGHTS}")


def measure_bounds(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each bound of each trained network: of the first test images, in float64, rounded outwards.

    width: mean of upper minus lower margin, in logits. lower: mean lower margin. Seconds are for both ends of all
    margins. MiB: the most memory beyond what was held before.
    """
    configs = [folder.read_trial(path / folder.TRIAL).config for path in options.trained]
    rows = []
    for path, config, label in zip(options.trained, configs, labels(configs), strict=True):
        model = load_network(config, path / folder.WEIGHTS).to(device)
        test = load(config.dataset, options.data_dir).test_images(options.images)
        x = test.images.to(device).double() / 255
        spec = margin_spec(test.labels.to(device), DATASETS[config.dataset].classes).to(x)
        bound(model, LinfBall(x[:1], 0), "ibp", spec[:1])  # the first call loads libraries
        for name in options.bounds:
            rows.append({"network": label, "bound": name} | _measure(model, LinfBall(x, config.eps), spec, name))
    return rows


@torch.no_grad()
def _measure(model: nn.Module, ball: Box, spec: Tensor, name: str) -> dict[str, float]:
    """Bound each margin from both sides. spec: [N, K, classes]."""
    outcomes = list[tuple[Tensor, Tensor]]()
    seconds = list[float]()

    def action() -> None:
        seconds.append(seconds_of(lambda: outcomes.append(bound(model, ball, name, spec)), spec.device))

    memory = peak_memory(action, spec.device)
    lower, upper = outcomes[0]
    return {
        "width": float((upper - lower).mean()),
        "lower": float(lower.mean()),
        "certified %": 100 * float((lower > 0).all(1).double().mean()),
        "s an example": seconds[0] / len(spec),
        "MiB": memory,
    }
