"""The checkpoint of a training in progress: replaced whole or not at all, read as tensors only; when it is saved."""

import copy
import errno
import logging
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from cerdeq.errors import is_out_of_memory
from harness.common.errors import first_words
from harness.storage.files import read_bytes, write_atomically, write_text
from harness.storage.folder import CHECKPOINT, SAVED_EPOCHS

SAVE_SECONDS = 30.0
"""How long after a checkpoint the next one is saved, at the end of an epoch."""

_log = logging.getLogger(__name__)


class Clock:
    """Says when to save: so many seconds after the last save."""

    def __init__(self, save_seconds: float = SAVE_SECONDS):
        self.save_seconds, self.saved = save_seconds, time.monotonic()

    def is_save_due(self) -> bool:
        """Return True if it is time to save, and take it as done."""
        now = time.monotonic()
        if now - self.saved < self.save_seconds:
            return False
        self.saved = now
        return True


def save(network_dir: Path, epoch: int, parts: dict[str, Any]) -> None:
    """Write the state of all parts (networks and the optimiser, by name) after `epoch` epochs. Raises OSError."""
    state = {"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}

    def write(temporary: Path) -> None:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch raises it for a full disk, too
            raise OSError(errno.EIO, first_words(error)) from error

    write_atomically(network_dir / CHECKPOINT, write)
    write_text(network_dir / SAVED_EPOCHS, f"{epoch}\n")


def restore(network_dir: Path, parts: dict[str, Any], device: torch.device) -> int:
    """Load the checkpoint into all parts and return the epochs done; 0 if there is none.

    A damaged checkpoint is logged and removed; the parts stay as they are.
    """
    path, epoch = network_dir / CHECKPOINT, 0
    if path.exists():
        content = BytesIO(read_bytes(path))
        initial = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        try:
            with zipfile.ZipFile(content) as archive:
                if (name := archive.testzip()) is not None:  # torch does not check it
                    raise ValueError(f"{name} does not match its checksum")
            content.seek(0)
            state = torch.load(content, map_location=device, weights_only=True)  # no code in the file runs
            for name, part in parts.items():
                part.load_state_dict(state[name])
            if type(state["epoch"]) is not int or state["epoch"] < 1:
                raise ValueError(f"epoch {state['epoch']!r}")
            epoch = state["epoch"]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            _log.info("%s cannot be read: %s: %s; it is removed", path, type(error).__name__, first_words(error))
            path.unlink()
            (network_dir / SAVED_EPOCHS).unlink(missing_ok=True)
            for name, part in parts.items():  # some parts may have been loaded
                part.load_state_dict(initial[name])
    for group in parts["optimiser"].param_groups:
        group["capturable"] = device.type == "cuda"  # the checkpoint may come from another kind of machine
    return epoch
