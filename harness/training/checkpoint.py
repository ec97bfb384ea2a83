"""Checkpoints of a training in progress: written whole or not at all, read as tensors only."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.storage.folder import CHECKPOINT
from harness.storage.tensors import read_tensors, write_tensors

_REMEDY = "remove it to train from the start"


def save(directory: Path, epoch: int, parts: dict[str, Any]) -> None:
    """Keep the state of all parts, networks and optimisers by name, after `epoch` epochs in the trial's folder."""
    state = {"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}
    write_tensors(Path(directory) / CHECKPOINT, state)


def restore(directory: Path, parts: dict[str, Any], device: torch.device) -> int:
    """Load the folder's checkpoint into all parts, and return the epochs done: 0 where there is none.

    Raises DamagedFileError where it is no such checkpoint.
    """
    path = Path(directory) / CHECKPOINT
    if not path.exists():
        return 0

    def load(state: dict[str, Any]) -> int:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["epoch"]

    epoch = read_tensors(path, device, load, _REMEDY)
    for group in parts["optimiser"].param_groups:
        group["capturable"] = device.type == "cuda"  # the checkpoint may come from another kind of machine
    return epoch


def epochs_done(directory: Path) -> int:
    """How many epochs the folder's checkpoint has behind it: 0 where there is none. Raises DamagedFileError."""
    path = Path(directory) / CHECKPOINT
    return read_tensors(path, torch.device("cpu"), lambda state: state["epoch"], _REMEDY) if path.exists() else 0


def load_network(directory: Path, model: nn.Module, device: torch.device) -> None:
    """Load the network that would be judged from the folder's checkpoint. Raises DamagedFileError."""

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state.get("averaged", state["model"]))

    read_tensors(Path(directory) / CHECKPOINT, device, load, _REMEDY)
