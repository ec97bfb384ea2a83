"""The checkpoint of a training in progress: replaced whole or not at all, read as tensors only."""

import copy
import errno
import logging
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cerdeq.errors import is_out_of_memory
from harness.common.errors import first_words
from harness.storage.files import DamagedFileError, read_bytes, write_atomically
from harness.storage.folder import CHECKPOINT

T = TypeVar("T")
_log = logging.getLogger(__name__)


def save(trial_dir: Path, epoch: int, parts: dict[str, Any]) -> None:
    """Write the state of all parts (networks and the optimiser, by name) after `epoch` epochs. Raises OSError."""
    state = {"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}

    def write(temporary: Path) -> None:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch raises it for a full disk, too
            raise OSError(errno.EIO, first_words(error)) from error

    write_atomically(trial_dir / CHECKPOINT, write)


def restore(trial_dir: Path, parts: dict[str, Any], device: torch.device) -> int:
    """Load the checkpoint into all parts and return the epochs done; 0 if there is none.

    A damaged checkpoint is logged and removed; the parts stay as they are.
    """
    initial = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

    def load(state: dict[str, Any]) -> int:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return _read_epoch(state)

    epoch = _read(trial_dir, device, load)
    if epoch is None:
        for name, part in parts.items():  # of a damaged one some parts may have been loaded
            part.load_state_dict(initial[name])
    for group in parts["optimiser"].param_groups:
        group["capturable"] = device.type == "cuda"  # the checkpoint may come from another kind of machine
    return epoch or 0


def epochs_done(trial_dir: Path) -> int:
    """Return the epochs that the checkpoint has behind it; 0 if there is none."""
    return _read(trial_dir, torch.device("cpu"), _read_epoch) or 0


def restore_network(trial_dir: Path, model: nn.Module, device: torch.device) -> None:
    """Load the network that would be evaluated from the checkpoint. Raises DamagedFileError if there is none."""

    def load(state: dict[str, Any]) -> int:
        model.load_state_dict(state.get("averaged", state["model"]))
        return _read_epoch(state)

    if _read(trial_dir, device, load) is None:
        raise DamagedFileError(f"{trial_dir} holds no checkpoint that can be read")


def _read(trial_dir: Path, device: torch.device, load: Callable[[dict[str, Any]], T]) -> T | None:
    """Return what `load` returns for the checkpoint; None if there is none, or a damaged one, which is removed.

    No code in the file runs.
    """
    path = trial_dir / CHECKPOINT
    if not path.exists():
        return None
    content = BytesIO(read_bytes(path))
    try:
        with zipfile.ZipFile(content) as archive:
            if (name := archive.testzip()) is not None:  # torch does not check it
                raise ValueError(f"{name} does not match its checksum")
        content.seek(0)
        return load(torch.load(content, map_location=device, weights_only=True))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _log.info("%s cannot be read: %s: %s; it is removed", path, type(error).__name__, first_words(error))
        path.unlink()
        return None


def _read_epoch(state: dict[str, Any]) -> int:
    epoch = state["epoch"]
    if type(epoch) is not int or epoch < 1:
        raise ValueError(f"epoch {epoch!r}")
    return epoch
