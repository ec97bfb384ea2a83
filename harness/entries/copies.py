"""Copies: networks under different seeds that compute one function, up to a positive factor."""

import numpy as np

_TOLERANCE = 0.01  # of the length 1: rounding moves it by 1e-7, another seed by 0.05 and more


def margin_directions(logits: np.ndarray) -> np.ndarray:
    """Return the margins of each image as a vector of length 1, float32 [N, K]; zeros if all its logits are equal.

    A constant that is added to an image's logits, and a positive factor of them, do not change it.

    logits: float64 [N, K].
    """
    margins = logits - logits.mean(1, keepdims=True)
    margins /= _or_one(np.abs(margins).max(1, keepdims=True))  # else squares may overflow
    return (margins / _or_one(np.linalg.norm(margins, axis=1, keepdims=True))).astype(np.float32)


def _or_one(sizes: np.ndarray) -> np.ndarray:
    return np.where(sizes > 0, sizes, 1)


def are_copies(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether the margins of most images are positive multiples of each other, up to rounding.

    Not of all: else a copy with another class on one image would pass. first, second: of `margin_directions`.
    """
    return bool(np.median(np.linalg.norm(first - second, axis=1)) < _TOLERANCE)
