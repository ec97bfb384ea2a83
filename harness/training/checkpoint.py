"""Checkpoints of a training in progress: the last two, each written whole or not at all, read as tensors only."""

import copy
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.storage.files import DamagedFileError
from harness.storage.folder import CHECKPOINT, PREVIOUS
from harness.storage.tensors import read_tensors, write_tensors

_log = logging.getLogger(__name__)


def save(directory: Path, epoch: int, parts: dict[str, Any]) -> None:
    """Keep the state of all parts, networks and optimisers by name, after `epoch` epochs in the trial's folder.

    The checkpoint that was there becomes the previous one. Raises OSError.
    """
    path = Path(directory) / CHECKPOINT
    state = {"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    write_tensors(path, state)


def restore(directory: Path, parts: dict[str, Any], device: torch.device) -> int:
    """Load the folder's checkpoint into all parts, and return the epochs done: 0 where there is none.

    One that is damaged is removed, and that is logged; then it is the previous one, and where that is damaged too, the
    parts are as they were.
    """
    begun = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()} if _kept(directory) else {}

    def load(state: dict[str, Any]) -> int:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return _epoch(state)

    epoch = _last(directory, device, load)
    if epoch is None:
        for name, state in begun.items():  # of a damaged one some parts may have been loaded
            parts[name].load_state_dict(state)
        return 0
    for group in parts["optimiser"].param_groups:
        group["capturable"] = device.type == "cuda"  # the checkpoint may come from another kind of machine
    return epoch


def epochs_done(directory: Path) -> int:
    """How many epochs the checkpoint has behind it that `restore` would load: 0 where there is none."""
    return _last(directory, torch.device("cpu"), _epoch) or 0


def load_network(directory: Path, model: nn.Module, device: torch.device) -> None:
    """Load the network that would be judged from the checkpoint. Raises DamagedFileError where there is none."""

    def load(state: dict[str, Any]) -> int:
        model.load_state_dict(state.get("averaged", state["model"]))
        return _epoch(state)

    if _last(directory, device, load) is None:
        raise DamagedFileError(f"{directory} holds no checkpoint that can be read")


def _kept(directory: Path) -> list[Path]:
    """The checkpoints, the last one first."""
    return [path for name in (CHECKPOINT, PREVIOUS) if (path := Path(directory) / name).exists()]


def _last(directory: Path, device: torch.device, load: Callable[[dict[str, Any]], int]) -> int | None:
    """The epoch that `load` finds in the last checkpoint that is not damaged, None where there is none; those that are
    damaged are removed."""
    for path in _kept(directory):
        try:
            epoch = read_tensors(path, device, load)
        except DamagedFileError as error:
            _log.info("%s; it is removed", error)
            path.unlink()
            continue
        if path.name == PREVIOUS:
            _log.info("going on from the checkpoint before the last one, after epoch %d", epoch)
        return epoch
    return None


def _epoch(state: dict[str, Any]) -> int:
    epoch = state["epoch"]
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"epoch {epoch!r}")
    return epoch
