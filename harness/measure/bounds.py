"""The section `bounds`: how tight each bound is on trained networks, and what it certifies and takes."""

import argparse
import time
from typing import Any

import torch

from baselines import DATASETS
from cerdeq import LinfBall, bound, margin_spec
from harness.config.plugins import load_for
from harness.config.trial import labels
from harness.data import load
from harness.errors import require
from harness.storage import folder
from harness.training import load_network


@torch.no_grad()
def measure_bounds(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each bound of each trained network: of the first test images, in float64, rounded outwards.

    width: mean of upper minus lower margin, in logits. lower: mean lower margin. Seconds are for both ends of all
    margins. Raises InputError if a folder holds no trained trial, or the data set not so many images.
    """
    require("--images", options.images, options.images >= 1, "at least 1")
    configs = [folder.read_trial(path / folder.TRIAL).config for path in options.trained]
    rows = []
    for path, config, label in zip(options.trained, configs, labels(configs), strict=True):
        load_for(config)
        require("--trained", str(path), (path / folder.WEIGHTS).exists(), f"a folder with {folder.WEIGHTS}")
        model = load_network(config, path / folder.WEIGHTS).to(device)
        test = load(config.dataset, options.data_dir).test_images(options.images)
        x = test.images.to(device).double() / 255
        spec = margin_spec(test.labels.to(device), DATASETS[config.dataset].classes).to(x)
        bound(model, LinfBall(x[:1], 0), "ibp", spec[:1])  # the first call loads libraries
        for name in options.bounds:
            started = time.perf_counter()
            lower, upper = bound(model, LinfBall(x, config.eps), name, spec)
            width = float((upper - lower).mean())  # waits for the device
            seconds = time.perf_counter() - started
            measured = {
                "width": width,
                "lower": float(lower.mean()),
                "certified %": 100 * float((lower > 0).all(1).double().mean()),
                "s an example": seconds / len(x),
            }
            rows.append({"network": label, "bound": name} | measured)
    return rows
