"""Parts of an example's box, over each of which the checker bounds a network anew.

A certificate of parts may have slopes: tensors of leaves without signs (certificates.py), and `part`, int32 [L], the
part of each leaf. Any slope is sound.
"""

from collections.abc import Iterator

import numpy as np

from harness.checker.bounds.boxes import TINY, Array, Box, U, between
from harness.checker.proofs.certificates import SIGNS, Certificate, RefusedError, Tensors, check_certificate, require

SPLITS, PART = "splits", "part"
_MOST_SPLITS, _MOST_NUMBERS = 2**20, 2**26  # of parts, and of their lower ends: all ends take 1 GiB


def slopes_of_parts(tensors: Tensors, shapes: dict[str, tuple[int, ...]], rows: int) -> dict[int, Certificate]:
    """Return the slopes of a certificate of parts, by number of the part.

    shapes: of the pre-activation of each activation, by the step's name. rows: their number. Raises RefusedError.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if name != SPLITS}
    if not tensors:
        return {}
    part = tensors.pop(PART, np.zeros(0))
    certificate = check_certificate(tensors, shapes, rows)
    is_part = part.dtype == np.int32 and part.shape == certificate.rows.shape
    require(is_part, f"it has no tensor {PART}, int32 {list(certificate.rows.shape)}")
    require(not any(SIGNS in fields for fields in certificate.steps.values()), "leaves of parts have signs")
    order = part.argsort(kind="stable")
    numbers, starts = np.unique(part[order], return_index=True)
    groups = np.split(order, starts[1:])
    return {number: certificate.of(leaves) for number, leaves in zip(numbers.tolist(), groups, strict=True)}


def parts_of(box: Box, splits: Array) -> Iterator[tuple[int, Box]]:
    """Return parts [1, ...] that cover the box [1, ...], each with its number.

    splits: int32 [S, 2], of each split the number of a part and the input along which it is halved. The box is part 0;
    the halves of the k-th split are parts 2 k + 1 and 2 k + 2.

    Raises RefusedError for splits of another kind, too many of them, or of a part or an input that does not exist.
    """
    if splits.dtype != np.int32 or splits.ndim != 2 or splits.shape[1] != 2:
        raise RefusedError(f"{SPLITS} is {splits.dtype} {list(splits.shape)}, expected int32 [S, 2]")
    if len(splits) > (most := min(_MOST_SPLITS, _MOST_NUMBERS // box.center.size)):
        raise RefusedError(f"{SPLITS} has {len(splits):,} rows, allowed: up to {most:,} of {box.center.size} inputs")
    parts = {0: (box.lower, box.upper)}
    for split, (number, dimension) in enumerate(splits.tolist()):
        if number not in parts or not 0 <= dimension < box.center.size:
            raise RefusedError(f"{SPLITS}: there is no part {number} with an input {dimension}")
        parts[2 * split + 1], parts[2 * split + 2] = _halves(*parts.pop(number), dimension)
    return ((number, between(*ends)) for number, ends in parts.items())


def halves_of(part: Box, box: Box) -> tuple[Box, Box]:
    """Return halves that cover the part, along the input in which it is widest, relative to the box."""
    is_free = box.radius > 8 * U * np.abs(box.center) + TINY  # a fixed input has the radius of its rounding
    share = np.divide(part.radius, box.radius, where=is_free, out=np.zeros_like(box.radius))
    first, second = _halves(part.lower, part.upper, int(share.argmax()))
    return between(*first), between(*second)


def _halves(low: Array, high: Array, dimension: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return the ends of both halves along an input, by its flat number."""
    below, above = high.copy(), low.copy()
    below.flat[dimension] = above.flat[dimension] = low.flat[dimension] / 2 + high.flat[dimension] / 2
    return (low, below), (above, high)
