"""The training loop: epochs of steps, a row each, and checkpoints."""

import copy
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines import DATASETS, build
from cerdeq.bounds.memory import is_out_of_memory
from harness.clock import Clock, Stopped
from harness.config.trial import TrialConfig
from harness.device import tf32
from harness.memory import free_memory
from harness.storage import names
from harness.storage.folder import add_without, read_epochs, write_epoch
from harness.training import checkpoint
from harness.training.augment import Draws, draw, seed_of
from harness.training.batch_norm import recompute_statistics
from harness.training.compilation import decide
from harness.training.initialise import initialise
from harness.training.monitor import monitor_bounds, monitor_untrained
from harness.training.out_of_memory import can_divide, divide_batches
from harness.training.schedule import Ramp, learning_rate
from harness.training.step import Stepper, make_optimiser

_log = logging.getLogger(__name__)
_MONITORED = 500
_ATTACK_SEEDS = 2**40
_SPLIT = 2  # the divisor of parts of a batch after memory ran out


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN, in `epoch` (from 1). last_finite: the last finite values."""

    def __init__(self, epoch: int, step: int, last_finite: dict[str, Any]):
        super().__init__(
            f"the loss became non-finite in epoch {epoch}, step {step} of the epoch; last finite values: {last_finite}"
        )
        self.epoch, self.last_finite = epoch, last_finite


def train(
    config: TrialConfig,
    images: Tensor,
    labels: Tensor,
    trial_dir: Path,
    device: torch.device,
    report: Callable[[dict[str, Any]], None],
    clock: Clock | None = None,
) -> nn.Sequential:
    """Train `config`'s network, going on from the folder's checkpoint, and return it.

    If memory runs out, training goes on from the checkpoint with each part of a batch divided by two.

    Args:
        images, labels: uint8 [N, C, H, W] and [N].
        report: called with each epoch's row after it is on disk; first with epoch 0, the untrained network's bounds.
        clock: after which epochs a checkpoint is saved, besides the last one, and when to stop.

    Raises:
        NonFiniteLossError: the loss became infinite or NaN.
        Stopped: the clock says so.
    """
    clock = clock or Clock()
    arguments = config, images, labels, trial_dir, device, report, clock
    if not divided_batches(config, read_epochs(trial_dir)):
        try:
            return _train(*arguments, split=1)
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) and can_divide(config, _SPLIT)):
                raise
        free_memory()  # here, where the error no longer holds the tensors
    return _train(*arguments, split=_SPLIT)


def divided_batches(config: TrialConfig, epochs: list[dict[str, Any]]) -> list[str]:
    """Return a warning if epochs were trained with batches in more parts than the recipe says, else none."""
    parts = [row[names.TRAIN_ACCUMULATE] for row in epochs if names.TRAIN_ACCUMULATE in row]
    usual = config.train.accumulate
    return [f"accumulate {parts[-1]} instead of {usual} after running out of memory"] if parts else []


def _train(
    config: TrialConfig, images: Tensor, labels: Tensor, directory: Path, device: torch.device,
    report: Callable[[dict[str, Any]], None], clock: Clock, split: int,
) -> nn.Sequential:  # fmt: skip
    """Train as `train` does, with each part of a batch in `split` parts; epochs' rows record a split."""
    config = divide_batches(config, split)
    torch.manual_seed(config.seed)
    model = build(config.model, config.dataset, config.width, **config.options)
    if config.train.initialisation == "ibp":
        initialise(model)
    model.to(device).to(memory_format=torch.channels_last).train()
    optimiser = make_optimiser(model, device)
    averaged = None if config.train.ema_decay is None else copy.deepcopy(model)
    parts = {"model": model, "optimiser": optimiser} | ({} if averaged is None else {"averaged": averaged})
    done = checkpoint.restore(directory, parts, device)
    images, labels = images.to(device), labels.to(device)
    if done == 0 and not read_epochs(directory):
        untrained = monitor_untrained(config, model, images[:_MONITORED], labels[:_MONITORED])
        row = _finite({names.EPOCH: 0, names.TRAIN_EPS: 0.0, **untrained})
        write_epoch(directory, row)
        report(row)
    last, stepper = config.train.epochs, None
    for epoch in range(done + 1, last + 1):
        if stepper is None:
            clock.check()
            parts_of_a_step = config, model, optimiser, images, labels, averaged
            before = _compiled_before(directory, done)
            decision = decide(config.train.compile, device, before, partial(_eager_seconds, *parts_of_a_step))
            _log.info(decision.why)
            is_divided = split > 1 or not can_divide(config, _SPLIT)
            stepper = Stepper(*parts_of_a_step, compiled=decision.compiled, divided=is_divided)
            if decision.failed:
                stepper.failed_optimisations.append(decision.why)
        row = _train_epoch(config, stepper, epoch, directory)
        if split > 1:
            row[names.TRAIN_ACCUMULATE] = config.train.accumulate
        add_without(directory, stepper.failed_optimisations)
        write_epoch(directory, row)  # first: a row without its checkpoint is written again, a row never written is lost
        stop = epoch < last and (epoch == clock.until or clock.asked())
        if epoch == last or stop or clock.due():
            checkpoint.save(directory, epoch, parts)
        report(row)
        if stop:
            raise Stopped
    trained = model if averaged is None else averaged
    if config.train.recompute_statistics:
        recompute_statistics(trained, images, config.train.batch_size)
    return trained


def _compiled_before(directory: Path, done: int) -> bool | None:
    """Return True if the trial's epochs up to `done` were compiled; None if there are none."""
    rows = [row for row in read_epochs(directory) if 0 < row[names.EPOCH] <= done]
    return bool(rows[-1].get(names.TRAIN_COMPILED)) if rows else None


def _eager_seconds(config: TrialConfig, *parts_of_a_step: Any) -> float:
    """Return an estimate of the seconds that the steps of all epochs take, from trial steps halfway up the ramp."""
    settings, stepper = config.train, Stepper(config, *parts_of_a_step)
    steps = settings.epochs * (len(stepper.images) // settings.batch_size)
    choices = _draws(config, stepper, epoch=1).batch(0, settings.batch_size)
    return steps * stepper.seconds_per_step(choices, float(config.train_eps) / 2)


def _draws(config: TrialConfig, stepper: Stepper, epoch: int) -> Draws:
    """Return the random choices of an epoch."""
    info = DATASETS[config.dataset]
    return draw(len(stepper.images), info.crop_padding, info.flip, config.seed, epoch, stepper.images.device)


def _train_epoch(config: TrialConfig, stepper: Stepper, epoch: int, directory: Path) -> dict[str, Any]:
    """Train one epoch and return its row."""
    settings = config.train
    steps = len(stepper.images) // settings.batch_size
    ramp = Ramp(float(config.train_eps), settings.ramp_start, settings.ramp_epochs, steps)
    rate = learning_rate(settings.learning_rate, settings.decay_epochs, settings.decay_factor, epoch)
    draws = _draws(config, stepper, epoch)
    torch.manual_seed(seed_of(config.seed, epoch) + _ATTACK_SEEDS)  # the starts of attacks, also after a restart
    reports = []
    started = time.perf_counter()
    with tf32(stepper.images.device, settings.precision == "tf32"):
        for step in range(steps):
            eps = ramp((epoch - 1) * steps + step)
            reports.append(stepper(draws.batch(step * settings.batch_size, settings.batch_size), eps, rate))
    loss, clean, certified = torch.stack(reports).double().cpu().unbind(1)
    seconds = time.perf_counter() - started
    _refuse_non_finite(stepper.model, loss, epoch, directory)
    seen = steps * settings.batch_size
    row = {
        names.EPOCH: epoch,
        names.TRAIN_LOSS: float(loss.mean()),
        names.TRAIN_EPS: eps,
        names.TRAIN_LEARNING_RATE: rate,
        names.TRAIN_STANDARD_ERROR: 100 * (1 - float(clean.sum()) / seen),
        names.TRAIN_CERTIFIED_ERROR: 100 * (1 - float(certified.sum()) / seen),
        names.TRAIN_EPOCH_SECONDS: seconds,
        names.TRAIN_COMPILED: float(stepper.compiled),
        names.TRAIN_EXAMPLES_PER_SECOND: seen / seconds,
        **monitor_bounds(config, stepper.model, stepper.images[:_MONITORED], stepper.labels[:_MONITORED]),
    }
    return _finite(row)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with None for numbers that are not finite, which JSON does not have."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def _refuse_non_finite(model: nn.Module, loss: Tensor, epoch: int, directory: Path) -> None:
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
    before = [row for row in read_epochs(directory) if row[names.EPOCH] < epoch]
    raise NonFiniteLossError(epoch, 1, before[-1] if before else {})
