"""What training does when memory runs out: it goes on from its checkpoint with smaller parts of batches."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq.errors import is_out_of_memory
from harness.common import names
from harness.config.training import Training
from harness.machine.freed_memory import free_memory
from harness.storage.training_record import read_epochs
from harness.training.checkpoint import Clock
from harness.training.loop import Report, train

DIVISOR = 2
"""What each part of a batch is divided by, once."""


def train_within_memory(
    config: Training,
    images: Tensor,
    labels: Tensor,
    network_dir: Path,
    device: torch.device,
    report: Report,
    clock: Clock,
) -> nn.Sequential:
    """Train as `loop.train` does, on a device; if memory runs out, go on with each part of a batch divided."""
    data = images.to(device), labels.to(device)
    parts = DIVISOR * config.train.accumulate
    can_divide = config.train.can_accumulate(parts)
    if not describe_smaller_batches(config, read_epochs(network_dir)):
        try:
            return train(config, *data, network_dir, report, clock, is_last_try=not can_divide)
        except (RuntimeError, MemoryError) as error:
            if not (can_divide and is_out_of_memory(error)):
                raise
        free_memory()  # here, where the error no longer holds the tensors
    smaller = config.replace(train=config.train.replace(accumulate=parts))
    return train(smaller, *data, network_dir, report, clock, is_last_try=True, is_divided=True)


def describe_smaller_batches(config: Training, epochs: list[dict[str, Any]]) -> list[str]:
    """Return a warning if epochs were trained with batches in more parts than the recipe says, else none."""
    parts = [row[names.TRAIN_ACCUMULATE] for row in epochs if names.TRAIN_ACCUMULATE in row]
    usual = config.train.accumulate
    return [f"accumulate {parts[-1]} instead of {usual} after running out of memory"] if parts else []
