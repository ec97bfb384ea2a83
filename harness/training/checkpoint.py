"""Checkpoints of a training in progress: the last two, each written whole or not at all, read as tensors only."""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import torch

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
    kept = [path for name in (CHECKPOINT, PREVIOUS) if (path := Path(directory) / name).exists()]
    begun = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()} if kept else {}
    for path in kept:
        try:
            epoch = read_tensors(path, device, lambda state: _load(parts, state))
        except DamagedFileError as error:
            _log.info("%s; it is removed", error)
            path.unlink()
            continue
        for group in parts["optimiser"].param_groups:
            group["capturable"] = device.type == "cuda"  # the checkpoint may come from another kind of machine
        if path.name == PREVIOUS:
            _log.info("going on from the checkpoint before the last one, after epoch %d", epoch)
        return epoch
    for name, state in begun.items():  # of a damaged one some parts may have been loaded
        parts[name].load_state_dict(state)
    return 0


def _load(parts: dict[str, Any], state: dict[str, Any]) -> int:
    for name, part in parts.items():
        part.load_state_dict(state[name])
    epoch = state["epoch"]
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"epoch {epoch!r}")
    return epoch
