"""`python -m harness.benchmark`: how fast a training step is, against plain training of the same network in one run.

Plain training is torch's own forward pass, cross entropy and Adam on the same batches. An IBP step carries three
values (clean, centre, radius) through every layer, so three times its cost is what arithmetic alone would ask; fused
CROWN-IBP carries one set of coefficients back as well, and each of an attack's eight steps is a clean pass there and
back.
Steps of all kinds are taken in turn, so that a machine whose speed drifts slows them alike.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from baselines import DATASETS, build
from harness.command_line import OK
from harness.config.radius import Radius
from harness.config.settings import TrainSettings
from harness.config.trial import TrialConfig
from harness.environment import best_device, device_title
from harness.measure.timing import medians
from harness.training.augment import augmented, draw
from harness.training.initialise import initialise
from harness.training.step import Stepper, make_optimiser

_IMAGES = 4096
WARM_UP = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("models", nargs="*", default=["cnn7", "resnet9", "cerdeq"])
    parser.add_argument("--dataset", default="cifar10", choices=list(DATASETS))
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)


def main(options: argparse.Namespace) -> int:
    """Print examples per second and the cost relative to plain training, medians over rounds."""
    device = best_device()
    size = f"{options.dataset}, width {options.width:g}, batch {options.batch_size}"
    print(f"{device_title(device)}, torch {torch.__version__}, {size}")
    print(f"{'network':10} {'step':26} {'examples/s':>12} {'cost over plain':>16}")
    for model in options.models:
        steps = _steps(model, options, device)
        medians(steps, WARM_UP, device)
        seconds = medians(steps, options.rounds, device)
        for name, median in seconds.items():
            print(
                f"{model:10} {name:26} {options.batch_size / median:12.0f} {median / seconds['plain']:16.2f}",
                flush=True,
            )
    return OK


def _steps(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """The kinds of step to compare, each on a network of its own."""
    info = DATASETS[options.dataset]
    images = torch.randint(0, 256, (_IMAGES, *info.shape), dtype=torch.uint8, device=device)
    labels = torch.randint(0, info.classes, (_IMAGES,), device=device)
    choices = draw(_IMAGES, info.crop_padding, info.flip, 0, 1, device).batch(0, options.batch_size)

    def stepper(method: str, **method_options: bool) -> Stepper:
        config = TrialConfig(
            "benchmark", "full", options.dataset, Radius("8/255"), 0, name, method, method_options=method_options,
            width=options.width, train=TrainSettings(batch_size=options.batch_size),
        )  # fmt: skip
        torch.manual_seed(0)
        model = build(name, options.dataset, options.width)
        initialise(model)
        model.to(device).to(memory_format=torch.channels_last).train()
        return Stepper(config, model, make_optimiser(model, device), images, labels)

    plain = stepper("ibp")

    def plain_step() -> None:
        x = augmented(images, *choices).contiguous(memory_format=torch.channels_last)
        plain.optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(plain.model(x), labels[choices[0]]).backward()
        plain.optimiser.step()

    steps: dict[str, Callable[[], object]] = {"plain": plain_step}
    bounded = {
        "ibp": stepper("ibp"),
        "crown-ibp": stepper("crown-ibp"),
        "crown-ibp unfused": stepper("crown-ibp", loss_fusion=False),
        **{method: stepper(method) for method in ("sabr", "mtl-ibp", "pgd")},
    }
    for title, each in bounded.items():
        steps[f"{title} eager"] = partial(each.eager, choices, each.config.method)
        if device.type == "cuda":
            steps[f"{title} captured"] = partial(each, choices, 0.01, 5e-4)
    return steps
