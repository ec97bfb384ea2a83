"""Parts of an example's box, over each of which the checker bounds a network anew."""

from collections.abc import Iterator

import numpy as np

from harness.checker.boxes import Array, Box, between
from harness.checker.certificates import RefusedError

SPLITS = "splits"


def parts_of(box: Box, splits: Array) -> Iterator[Box]:
    """Return parts [1, ...] that cover the box [1, ...].

    splits: int32 [S, 2], of each split the number of a part and the input along which it is halved. The box is part 0;
    the halves of the k-th split are parts 2 k + 1 and 2 k + 2.

    Raises RefusedError for splits of another kind, of a part that does not exist, or of an input that does not.
    """
    if splits.dtype != np.int32 or splits.ndim != 2 or splits.shape[1] != 2:
        raise RefusedError(f"{SPLITS} is {splits.dtype} {list(splits.shape)}, expected int32 [S, 2]")
    parts = {0: (box.lower.ravel(), box.upper.ravel())}
    for split, (number, dimension) in enumerate(splits.tolist()):
        if number not in parts or not 0 <= dimension < box.center.size:
            raise RefusedError(f"{SPLITS}: there is no part {number} with an input {dimension}")
        parts[2 * split + 1], parts[2 * split + 2] = _halves(*parts.pop(number), dimension)
    return (between(*(end.reshape(box.center.shape) for end in ends)) for ends in parts.values())


def halves_of(part: Box, box: Box) -> tuple[Box, Box]:
    """Return halves that cover the part, along the input in which it is widest, relative to the box."""
    share = np.divide(part.radius, box.radius, where=box.radius > 0, out=np.zeros_like(box.radius))
    pairs = _halves(part.lower.ravel(), part.upper.ravel(), int(share.argmax()))
    first, second = (between(*(end.reshape(box.center.shape) for end in ends)) for ends in pairs)
    return first, second


def _halves(low: Array, high: Array, dimension: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    below, above = high.copy(), low.copy()
    below[dimension] = above[dimension] = low[dimension] / 2 + high[dimension] / 2
    return (low, below), (above, high)
