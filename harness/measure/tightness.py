"""`python -m harness.tightness TRIAL_FOLDER ...`: how tight each bound is on trained networks, what it takes and needs.

Of the first test images: the mean width of the margins' bounds, the mean lower bound, the share certified, seconds an
example for both ends of all margins, and the most memory above that of the loaded network. Each bound runs in a
process of its own, so that none pays for another. Float64, rounded outwards.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from baselines import DATASETS
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import BOUNDS
from harness.command_line import OK, add_data_dir
from harness.config.plugins import load_for
from harness.config.trial import labels
from harness.data import load
from harness.device import best_device
from harness.environment import device_title
from harness.errors import require
from harness.storage import folder
from harness.training import load_network

_KIB_IN_MIB = 1024
_TITLES = "{:32} {:12} {:>10} {:>10} {:>12} {:>12} {:>8}"
_ROW = "{:32} {:12} {:>10.4f} {:>+10.4f} {:>12.1f} {:>12.3f} {:>8.0f}"


@dataclass(frozen=True)
class Measured:
    """What one bound gives on one network.

    width, lower: means over margins, in logits.
    certified: percent.
    seconds, memory: an example's, and the most in MiB.
    """

    width: float
    lower: float
    certified: float
    seconds: float
    memory: float


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folders", nargs="+", type=Path, help="trained trials: results/<sweep>/trials/<key>")
    parser.add_argument("--images", type=int, default=20, help="how many test images, the first ones; default: 20")
    parser.add_argument("--bounds", nargs="+", choices=BOUNDS, default=list(BOUNDS), help="default: all")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where a folder, the data or an option will not do."""
    require("--images", options.images, options.images >= 1, "at least 1")
    configs = [folder.read_trial(path / folder.TRIAL).config for path in options.folders]
    for path, config in zip(options.folders, configs, strict=True):
        load_for(config)
        load(config.dataset, options.data_dir).test_images(options.images)
        require(str(path), "no trained weights", (path / folder.WEIGHTS).exists(), f"a folder with {folder.WEIGHTS}")
    print(f"first {options.images} test images, {device_title(best_device())}")
    print(_TITLES.format("network", "bound", "width", "lower", "certified %", "s / example", "MiB"))
    for path, label in zip(options.folders, labels(configs), strict=True):
        for name in options.bounds:
            with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as new_process:
                measured = new_process.submit(measure, path, name, options.images, options.data_dir).result()
            print(_ROW.format(label, name, *astuple(measured)), flush=True)
    return OK


@torch.no_grad()
def measure(path: Path, name: str, images: int, data_dir: str | None) -> Measured:
    """Bounds of the first `images` test images by the bound `name`, on the network trained in the folder `path`."""
    config = folder.read_trial(path / folder.TRIAL).config
    load_for(config)
    device = best_device()
    model = load_network(config, path / folder.WEIGHTS).to(device)
    test = load(config.dataset, data_dir).test_images(images)
    x, labels = test.images.to(device).double() / 255, test.labels.to(device)
    ball = LinfBall(x, config.eps)
    spec = margin_spec(labels, DATASETS[config.dataset].classes).to(x)
    bound(model, LinfBall(x[:1], 0), "ibp", spec[:1])  # first calls load libraries
    before, started = _memory(device), time.perf_counter()
    lower, upper = bound(model, ball, name, spec)
    float(lower.sum())  # waits for the device
    seconds = time.perf_counter() - started
    return Measured(
        width=float((upper - lower).mean()),
        lower=float(lower.mean()),
        certified=100 * float((lower > 0).all(1).double().mean()),
        seconds=seconds / len(x),
        memory=_memory(device) - before,
    )


def _memory(device: torch.device) -> float:
    """The most memory so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_IN_MIB
