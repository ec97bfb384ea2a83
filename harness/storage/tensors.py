"""Files of tensors and plain values that only this project reads again."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from harness.storage.files import DamagedFileError, write_atomically

T = TypeVar("T")


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically."""
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def read_tensors(path: Path, device: torch.device, parse: Callable[[dict[str, Any]], T], remedy: str) -> T:
    """`parse` of what `write_tensors` wrote, on the device. Raises DamagedFileError, which names the remedy."""
    try:
        return parse(torch.load(path, map_location=device, weights_only=True))
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise DamagedFileError(f"{path} cannot be read: {why}; {remedy}") from error
