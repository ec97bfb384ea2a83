"""Checkpoints of a training in progress: written whole or not at all, read as tensors only."""

import pickle
from pathlib import Path
from typing import Any

import torch

from harness.storage.files import DamagedFileError, write_atomically
from harness.storage.folder import CHECKPOINT


def save(directory: Path, epoch: int, parts: dict[str, Any]) -> None:
    """Keep the state of all parts, networks and optimisers by name, after `epoch` epochs in the trial's folder."""
    state = {"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}
    write_atomically(Path(directory) / CHECKPOINT, lambda path: torch.save(state, path))


def restore(directory: Path, parts: dict[str, Any], device: torch.device) -> int:
    """Load the folder's checkpoint into all parts, and return the epochs done: 0 where there is none.

    Raises DamagedFileError where it is no such checkpoint.
    """
    path = Path(directory) / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise DamagedFileError(f"{path} cannot be read: {why}; remove it to train from the start") from error
    for group in parts["optimiser"].param_groups:
        group["capturable"] = device.type == "cuda"  # the checkpoint may come from another kind of machine
    return state["epoch"]
