"""The training loop: epochs of steps, a row each, and checkpoints."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq.bounds import Program
from harness.common import names
from harness.config.training import Training
from harness.data.augment import Draws, draw, seed_of
from harness.evaluation.metrics import finite_or_none
from harness.machine.device import tf32
from harness.machine.environment import device_name
from harness.storage.folder import TRAINED_ON
from harness.storage.training_progress import add_lines, cut_epochs, read_epochs, write_epoch
from harness.training import checkpoint
from harness.training.checkpoint import Clock
from harness.training.decisions import decide_steps
from harness.training.initialise import untrained_network
from harness.training.monitor import monitor_bounds, monitor_untrained, recompute_statistics
from harness.training.schedule import Ramp, learning_rate
from harness.training.step import Stepper

_MONITORED = 500
_ATTACK_SEEDS = 2**40


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN in an epoch, from 1. last_finite: the last finite values."""

    def __init__(self, epoch: int, step: int, last_finite: dict[str, Any]):
        super().__init__(
            f"the loss became non-finite in epoch {epoch}, step {step} of the epoch; last finite values: {last_finite}"
        )
        self.last_finite = last_finite


def train(
    config: Training,
    images: Tensor,
    labels: Tensor,
    network_dir: Path,
    report: names.Report,
    clock: Clock | None = None,
    teacher: Program | None = None,
) -> nn.Sequential:
    """Train a network, going on from the folder's checkpoint, and return it.

    Args:
        images, labels: uint8 [N, C, H, W] and [N], on the device.
        report: called with each epoch's row after it is on disk; first with epoch 0, the untrained network's bounds.
            Before and after steps are compiled it is called with {"activity": ...}.
        clock: after which epochs a checkpoint is saved, besides the last one.
        teacher: of a distilling method.

    Raises:
        InputError: this machine cannot compute steps as was decided before the first one.
        NonFiniteLossError: the loss became infinite or NaN.
    """
    clock = clock or Clock()
    device, last = images.device, config.train.epochs
    decided = decide_steps(config, len(images), device, network_dir)
    config = config.replace(train=config.train.replace(precision=decided.precision))
    model = untrained_network(config)
    model.to(device).to(memory_format=torch.channels_last).train()
    announce = lambda activity: report({names.ACTIVITY: activity})  # noqa: E731
    stepper = Stepper(config, model, images, labels, decided.compile, announce, teacher)
    parts = {"model": model, "optimiser": stepper.optimiser}
    if stepper.averaged is not None:
        parts["averaged"] = stepper.averaged
    done = checkpoint.restore(network_dir, parts, device)
    cut_epochs(network_dir, done)
    if done == 0 and not read_epochs(network_dir):
        untrained = monitor_untrained(config, model, images[:_MONITORED], labels[:_MONITORED])
        row = {names.EPOCH: 0, **finite_or_none({names.TRAIN_EPS: 0.0, **untrained})}
        write_epoch(network_dir, row)
        report(row)
    if done < last:
        add_lines(network_dir / TRAINED_ON, [device_name(device)])
    for epoch in range(done + 1, last + 1):
        row = _train_epoch(stepper, epoch, network_dir)
        write_epoch(network_dir, row)  # before the checkpoint: after a kill in between, both are made again
        if epoch == last or clock.is_save_due():
            checkpoint.save(network_dir, epoch, parts)
        report(row)
    trained = stepper.networks[-1]
    if config.train.recompute_statistics:
        recompute_statistics(trained, images, config.train.batch_size)
    return trained


def _draws(stepper: Stepper, epoch: int) -> Draws:
    """Return the random choices of an epoch."""
    info, seed = stepper.config.data_info, stepper.config.seed
    return draw(len(stepper.images), info.crop_padding, info.flip, seed, epoch, stepper.images.device)


def _train_epoch(stepper: Stepper, epoch: int, network_dir: Path) -> dict[str, Any]:
    """Train one epoch and return its row."""
    config, settings = stepper.config, stepper.config.train
    steps = len(stepper.images) // settings.batch_size
    ramp = Ramp(float(config.train_eps), settings.ramp_start, settings.ramp_epochs, steps, settings.ramp_shape)
    rate = learning_rate(settings.learning_rate, settings.decay_epochs, settings.decay_factor, epoch)
    draws = _draws(stepper, epoch)
    torch.manual_seed(seed_of(config.seed, epoch) + _ATTACK_SEEDS)  # the starts of attacks, also after a restart
    radii = [ramp((epoch - 1) * steps + step) for step in range(steps)]
    reports = []
    started = time.perf_counter()
    with tf32(stepper.images.device, settings.precision == "tf32"):
        for step, eps in enumerate(radii):
            reports.append(stepper(draws.batch(step * settings.batch_size, settings.batch_size), eps, rate))
    loss, clean, certified = torch.stack(reports).double().cpu().unbind(1)
    seconds = time.perf_counter() - started
    _refuse_non_finite(stepper.model, loss, epoch, network_dir)
    seen = steps * settings.batch_size
    metrics = {
        names.TRAIN_LOSS: float(loss.mean()),
        names.TRAIN_EPS: radii[-1],
        names.TRAIN_LEARNING_RATE: rate,
        names.TRAIN_STANDARD_ERROR: 100 * (1 - float(clean.sum()) / seen),
        names.TRAIN_CERTIFIED_ERROR: 100 * (1 - float(certified.sum()) / seen),
        names.TRAIN_EPOCH_SECONDS: seconds,
        names.TRAIN_EXAMPLES_PER_SECOND: seen / seconds,
        **monitor_bounds(config, stepper.model, stepper.images[:_MONITORED], stepper.labels[:_MONITORED]),
    }
    return {names.EPOCH: epoch, **finite_or_none(metrics)}


def _refuse_non_finite(model: nn.Module, loss: Tensor, epoch: int, network_dir: Path) -> None:
    """Raise NonFiniteLossError if a step's loss, or the network after it, is not finite."""
    finite = loss.isfinite()
    finite[-1] &= all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    if bool(finite.all()):
        return
    step = int((~finite).nonzero()[0])
    if step > 0:
        raise NonFiniteLossError(
            epoch, step + 1, {names.EPOCH: epoch, "step": step, names.TRAIN_LOSS: float(loss[step - 1])}
        )
    before = [row for row in read_epochs(network_dir) if row[names.EPOCH] < epoch]
    raise NonFiniteLossError(epoch, 1, before[-1] if before else {})
