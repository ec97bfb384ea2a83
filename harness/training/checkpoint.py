"""Checkpoints of a training in progress: written whole or not at all, read as tensors only."""

import pickle
from pathlib import Path

import torch
from torch import nn

from harness.folder import CHECKPOINT, DamagedFileError, write_atomically


def save(
    folder: Path, epoch: int, model: nn.Module, optimiser: torch.optim.Optimizer, averaged: nn.Module | None = None
) -> None:
    """Keep the state after `epoch` epochs in the trial's folder."""
    state = {"epoch": epoch, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
    if averaged is not None:
        state["averaged"] = averaged.state_dict()
    write_atomically(Path(folder) / CHECKPOINT, lambda path: torch.save(state, path))


def restore(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    averaged: nn.Module | None = None,
) -> int:
    """Load the folder's checkpoint into all of these, and return the epochs done: 0 where there is none.

    Raises DamagedFileError where it is no such checkpoint.
    """
    path = Path(folder) / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if averaged is not None:
            averaged.load_state_dict(state["averaged"])
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise DamagedFileError(f"{path} cannot be read: {why}; remove it to train from the start") from error
    for group in optimiser.param_groups:
        group["capturable"] = device.type == "cuda"  # the checkpoint may come from another kind of machine
    return state["epoch"]
