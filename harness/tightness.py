"""`python -m harness.tightness TRIAL_FOLDER ...`: how tight each bound is on trained networks, what it takes and needs.

Of the first test images: the mean width of the margins' bounds, the mean lower bound, the share certified, seconds an
example for both ends of all margins, and the most memory above that of the loaded network. Each method runs in a
process of its own, so that none pays for another. Float64, rounded outwards.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from baselines import DATASETS
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import METHODS
from harness import folder
from harness.data import DataError, load
from harness.environment import device_title
from harness.settings import SettingError, labels, parse_eps
from harness.training import load_network

_KIB_IN_MIB = 1024
_ROW = "{:32} {:12} {:>10} {:>10} {:>12} {:>12} {:>8}"


@dataclass(frozen=True)
class Measured:
    """width, lower: means over margins, in logits. certified: percent. seconds: an example. memory: MiB."""

    width: float
    lower: float
    certified: float
    seconds: float
    memory: float


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 measured, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m harness.tightness", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="trained trials: results/<sweep>/trials/<key>")
    parser.add_argument("--images", type=int, default=20, help="how many test images, the first ones; default: 20")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--data-dir", help="where data sets lie; default: $CERDEQ_DATA, else ./data")
    options = parser.parse_args(argv)
    try:
        if options.images < 1:
            raise SettingError("--images", options.images, "at least 1")
        configs = [folder.read_trial(path / folder.TRIAL).config for path in options.folders]
        for path, config in zip(options.folders, configs, strict=True):
            load(config.dataset, options.data_dir).test_images(options.images)
            if not (path / folder.WEIGHTS).exists():
                raise SettingError(str(path), "no trained weights", f"a folder with {folder.WEIGHTS}")
    except (DataError, SettingError, folder.DamagedFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"first {options.images} test images, {device_title(_device())}")
    print(_ROW.format("network", "bound", "width", "lower", "certified %", "s / example", "MiB"))
    for path, label in zip(options.folders, labels(configs), strict=True):
        for method in options.methods:
            measured = _apart(path, method, options.images, options.data_dir)
            numbers = (
                f"{measured.width:.4f}", f"{measured.lower:+.4f}", f"{measured.certified:.1f}",
                f"{measured.seconds:.3f}", f"{measured.memory:.0f}",
            )  # fmt: skip
            print(_ROW.format(label, method, *numbers), flush=True)
    return 0


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _apart(path: Path, method: str, images: int, data_dir: str | None) -> Measured:
    """`measure` in a new process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, path, method, images, data_dir).result()


@torch.no_grad()
def measure(path: Path, method: str, images: int, data_dir: str | None) -> Measured:
    """Bounds of the first `images` test images by one method, on the network trained in the folder `path`."""
    config = folder.read_trial(path / folder.TRIAL).config
    device = _device()
    model = load_network(config, path / folder.WEIGHTS).to(device)
    test = load(config.dataset, data_dir).test_images(images)
    x, labels = test.images.to(device).double() / 255, test.labels.to(device)
    ball = LinfBall(x, parse_eps(config.eps))
    spec = margin_spec(labels, DATASETS[config.dataset].classes).to(x)
    bound(model, LinfBall(x[:1], 0), "ibp", spec[:1])  # first calls load libraries
    before, started = _memory(device), time.perf_counter()
    lower, upper = bound(model, ball, method, spec)
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


if __name__ == "__main__":
    sys.exit(main())
