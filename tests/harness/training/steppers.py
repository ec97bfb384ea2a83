"""A network's training in its folder, and its step on its data, outside the loop."""

from pathlib import Path

import torch
from one_network import train_and_evaluate

from harness.common import names
from harness.data import load
from harness.data.augment import draw
from harness.methods import make_teacher, method_options
from harness.storage import folder
from harness.storage.records import Result
from harness.training.initialise import untrained_network
from harness.training.step import Stepper

BOUNDING = [("ibp", {}), ("crown-ibp", {}), ("crown-ibp", {"loss_fusion": False})]  # methods and their options


class Killed(BaseException):
    """Stands for SIGKILL."""


def kill(row) -> None:
    """Report an epoch's row, as a training that is killed after its second epoch."""
    if row.get(names.EPOCH) == 2:
        raise Killed


def train_network(config, network_dir: Path, report=lambda row: None, **options) -> Result:
    """Train a network without evaluations, and return the result."""
    train_and_evaluate(config, [], network_dir, report, **options)
    result = folder.read_trained(network_dir)
    assert result is not None
    return result


def stepper_of(config, device: str = "cpu", **options) -> Stepper:
    data = load(config.dataset)
    model = untrained_network(config)
    model.to(device, memory_format=torch.channels_last).train()
    if "teacher" in method_options(config.method):
        options["teacher"] = make_teacher(untrained_network(config).to(device))
    return Stepper(config, model, data.train.images.to(device), data.train.labels.to(device), **options)


def choices_of(stepper: Stepper, size: int = 64, start: int = 0):
    """The random choices of a batch."""
    return draw(len(stepper.images), 2, True, 0, 1, stepper.images.device).batch(start, size)


def take_step(stepper: Stepper, index: int, batch: int = 64) -> torch.Tensor:
    return stepper(choices_of(stepper, batch, batch * index), 0.01 * index + 1e-6, 5e-4)


def take_steps(stepper: Stepper, count: int, batch: int = 64) -> torch.Tensor:
    return torch.stack([take_step(stepper, index, batch) for index in range(count)])
