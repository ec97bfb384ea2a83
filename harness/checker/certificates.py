"""Certificates of examples, the leaves of branch and bound: read, refused where malformed, and spread over neurons.

`certificates.safetensors` holds for an example, by its index in the test set:

    {index}/row                 int16 [L]     the margin's row (over the other classes in order) of each leaf
    {index}/{step}/neurons      int32 [U]     places in the activation's pre-activation, flat
    {index}/{step}/slopes       uint8 [L, U]  free lower slopes, of 255; of neurons not listed, the default
    {index}/{step}/signs        int8 [L, U]   1 or -1: the leaf is where sign p >= 0; 0: not split
    {index}/{step}/multipliers  float32 [L, U]  at least 0, of each split
    {index}/{step}/kept         uint8 [L, N]  of equilibria, where there: factors of the multiplier iteration

Nothing here is believed: slopes, multipliers and factors are sound whatever they are, and leaves must cover their row.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from harness.checker.boxes import Array
from harness.checker.relaxation import Leaves
from harness.errors import InputError

ROW, NEURONS, SLOPES, SIGNS, MULTIPLIERS, KEPT = "row", "neurons", "slopes", "signs", "multipliers", "kept"
_TYPES = {NEURONS: np.int32, SLOPES: np.uint8, SIGNS: np.int8, MULTIPLIERS: np.float32, KEPT: np.uint8}
_SPARE = 0.05  # a factor is at least 1 less this

Tensors = dict[str, Array]


class RefusedError(Exception):
    """The certificate is not one; the message says why."""


@dataclass(frozen=True)
class Certificate:
    """An example's: rows [L], and by step what leaves choose there, its tensors by their fields."""

    rows: Array
    steps: dict[str, Tensors]

    def leaves(self, chosen: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Leaves]:
        """What the chosen leaves, by their numbers, choose at each step, whose pre-activation is of that shape."""
        return {step: _spread(fields, chosen, shapes[step]) for step, fields in self.steps.items()}


def read(path: Path) -> dict[int, Tensors]:
    """The tensors of every example, by the rest of their names; none where there is no file. Raises InputError."""
    if not path.exists():
        return {}
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    examples = defaultdict[int, Tensors](dict)
    for name, tensor in tensors.items():
        index, _, rest = name.partition("/")
        if not index.isdecimal() or not rest:
            raise InputError(f"{path} cannot be read: it holds {name!r}")
        examples[int(index)][rest] = tensor
    return dict(examples)


def checked(tensors: Tensors, shapes: dict[str, tuple[int, ...]], margins: int) -> Certificate:
    """The certificate that is in an example's tensors. Raises RefusedError.

    shapes: of the pre-activation at each step that may be named. margins: how many rows there are.
    """
    rows = tensors.get(ROW, np.zeros(0))
    _require(rows.dtype == np.int16 and rows.ndim == 1 and len(rows) > 0, "no row of each leaf")
    _require(bool(((rows >= 0) & (rows < margins)).all()), "a leaf of a margin that is not there")
    steps = defaultdict[str, Tensors](dict)
    for name, tensor in tensors.items():
        if name != ROW:
            step, _, field = name.rpartition("/")
            _require(step in shapes and field in _TYPES, f"{name} is of nothing in the network")
            _require(tensor.dtype == _TYPES[field], f"{name} is of another type")
            steps[step][field] = tensor
    for step, fields in steps.items():
        _check_step(step, fields, len(rows), int(np.prod(shapes[step])))
    signs = [fields[SIGNS] for fields in steps.values()]
    splits = np.concatenate(signs, axis=1) if signs else np.zeros((len(rows), 0))
    for row in np.unique(rows):
        _require(complete(splits[rows == row]), f"the leaves of row {row} do not cover it")
    return Certificate(rows, dict(steps))


def complete(splits: Array) -> bool:
    """Whether leaves cover everything: [L, n] signs of the n neurons that are split anywhere.

    One leaf without splits does; and leaves that all split some neuron do, where those on either side of it do. Which
    neuron is taken first makes no difference: a tree restricted to one side of any neuron is a tree.
    """
    groups = [splits]
    while groups:
        group = groups.pop()
        if len(group) == 1 and not group.any():
            continue
        common = np.flatnonzero((group != 0).all(0))
        if not len(group) or not len(common):
            return False
        side, rest = group[:, common[0]], np.delete(group, common[0], axis=1)
        groups += [rest[side > 0], rest[side < 0]]
    return True


def _check_step(step: str, fields: Tensors, leaves: int, size: int) -> None:
    neurons = fields.get(NEURONS, np.zeros(0))
    _require({NEURONS, SLOPES, SIGNS, MULTIPLIERS} <= fields.keys(), f"{step} lacks a tensor")
    _require(neurons.ndim == 1 and len(np.unique(neurons)) == len(neurons), f"{step} lists a neuron twice")
    _require(bool(((neurons >= 0) & (neurons < size)).all()), f"{step} lists a neuron that is not there")
    for field in (SLOPES, SIGNS, MULTIPLIERS):
        _require(fields[field].shape == (leaves, len(neurons)), f"{step}'s {field} are of another shape")
    _require(fields[KEPT].shape == (leaves, size) if KEPT in fields else True, f"{step}'s {KEPT} is of another shape")
    _require(bool(np.isin(fields[SIGNS], (-1, 0, 1)).all()), f"{step} has a sign that is none")
    multipliers = fields[MULTIPLIERS]
    _require(bool((np.isfinite(multipliers) & (multipliers >= 0)).all()), f"{step} has a multiplier below 0, or none")


def _spread(fields: Tensors, chosen: Array, shape: tuple[int, ...]) -> Leaves:
    def full(field: str, default: float, scale: float = 1.0) -> Array:
        whole = np.full((len(chosen), int(np.prod(shape))), default, dtype=np.float64)
        whole[:, fields[NEURONS]] = fields[field][chosen] / scale
        return whole.reshape(-1, *shape)

    kept = np.ones((1, *shape))
    if KEPT in fields:
        kept = 1 - _SPARE * (1 - fields[KEPT][chosen].reshape(-1, *shape) / 255)
    return Leaves(full(SLOPES, np.nan, 255), full(SIGNS, 0), full(MULTIPLIERS, 0), kept)


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise RefusedError(why)
