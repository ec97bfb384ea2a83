"""Read and check counterexamples: int16 k, each of which moves a pixel by about k eps / 32767."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from harness.checker.boxes import Array, Box
from harness.checker.network import Network
from harness.errors import InputError

_LEVELS = 32767


def read(path: Path) -> dict[int, Array]:
    """Return the k [C, H, W] of each image, by its index; empty if there is no file. Raises InputError."""
    if not path.exists():
        return {}
    try:
        return {int(name): k for name, k in load_file(path).items()}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def why_not_falsified(network: Network, pixels: Array, label: int, k: Array | None, eps: Fraction) -> str:
    """Return why the point k does not falsify the image [C, H, W], grey levels 0 to 255; empty if it does.

    Exact arithmetic checks that the point lies in the ball.
    """
    if k is None:
        return "there is no counterexample"
    if k.dtype != np.int16 or k.shape != pixels.shape:
        return f"the counterexample is {k.dtype} {k.shape}, expected int16 {pixels.shape}"
    step = float(eps - Fraction(1, 2**50)) / _LEVELS
    point = np.clip(pixels / np.float64(255) + k * step, 0, 1)
    pairs = zip(point.ravel().tolist(), pixels.ravel().tolist(), strict=True)
    if any(abs(Fraction(value) - Fraction(int(pixel), 255)) > eps for value, pixel in pairs):
        return "the counterexample lies outside of the ball"
    if not network.falsifies(Box(point[None], np.zeros_like(point[None])), label):
        return "no margin is proved to be below 0 at the counterexample"
    return ""
