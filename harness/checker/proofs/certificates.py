"""Read and check certificates: the leaves of branch and bound by which an example is proved.

`certificates.safetensors` holds these tensors for each example, by its index in the test set:

    {index}/row                 int16 [L]     row of the margin, over the other classes in order, of each leaf
    {index}/{step}/neurons      int32 [U]     flat indices into the activation's pre-activation
    {index}/{step}/slopes       uint8 [L, U]  free lower slopes times 255; other neurons have the default
    {index}/{step}/signs        int8 [L, U]   1 or -1: the leaf is where sign * p >= 0; 0: not split
    {index}/{step}/multipliers  float32 [L, U]  of each split, at least 0
    {index}/{step}/line_shares  uint8 [L, N]  optional, for equilibria: how much of each multiplier the lines take

Tensors `{index}/hidden/{activation}/...` of the same kinds bound the input p of this activation: row, here int32, is
2 n for a lower bound of p_n, 2 n + 1 for one of -p_n. Signs and multipliers may be missing where nothing is split.

The checker trusts none of them: any slope, line share and multiplier of at least 0 is sound, and it checks that the
leaves of a row cover the whole box.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from harness.checker.bounds.boxes import Array
from harness.checker.bounds.relu_lines import Leaves
from harness.storage.files import parse_file

ROW, NEURONS, SLOPES = "row", "neurons", "slopes"
SIGNS, MULTIPLIERS, LINE_SHARES = "signs", "multipliers", "line_shares"
HIDDEN = "hidden"
_TYPES = {NEURONS: np.int32, SLOPES: np.uint8, SIGNS: np.int8, MULTIPLIERS: np.float32, LINE_SHARES: np.uint8}
_SPARE = 0.05  # a line share is at least 1 less this

Tensors = dict[str, Array]


class RefusedError(Exception):
    """The certificate is malformed or incomplete; the message says why."""


@dataclass(frozen=True)
class Certificate:
    """The certificate of one example. rows: [L], of each leaf. steps: by name, a step's tensors by their field."""

    rows: Array
    steps: dict[str, Tensors]

    def leaves(self, leaf_numbers: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Leaves]:
        """Return the choices of the leaves with these numbers at each step. shapes: of the steps' pre-activations."""
        return {step: _spread(fields, leaf_numbers, shapes[step]) for step, fields in self.steps.items()}


def read_tensors(path: Path) -> Tensors:
    """Return the tensors of a file by their names, in their order; none if there is no file. Raises InputError."""
    return dict(sorted(parse_file(path, load).items())) if path.exists() else {}


def split_by_example(tensors: Tensors) -> dict[str, Tensors]:
    """Return the tensors of every example by its index, each by the rest of its name."""
    examples = defaultdict[str, Tensors](dict)
    for name, tensor in tensors.items():
        index, _, rest = name.partition("/")
        examples[index][rest] = tensor
    return examples


def split_by_layer(tensors: Tensors) -> tuple[Tensors, dict[str, Tensors]]:
    """Return an example's tensors of its margins, and those of hidden layers by the activation that follows."""
    margins, layers = Tensors(), defaultdict[str, Tensors](Tensors)
    for name, tensor in tensors.items():
        first, _, rest = name.partition("/")
        if first == HIDDEN and "/" in rest:
            step, _, field = rest.partition("/")
            layers[step][field] = tensor
        else:
            margins[name] = tensor
    return margins, dict(layers)


def check_certificate(
    tensors: Tensors, shapes: dict[str, tuple[int, ...]], margins: int, row_type: type = np.int16
) -> Certificate:
    """Check tensors of the margins or of a hidden layer, and return the certificate that they hold.

    Args:
        shapes: of the pre-activation of each activation, by the step's name.
        margins: the number of rows.
        row_type: of the tensor of rows.

    Raises:
        RefusedError: if a tensor is malformed. `cover.check_leaves` also checks that leaves cover their rows.
    """
    rows = tensors.get(ROW, np.zeros(0))
    is_row = rows.dtype == row_type and rows.ndim == 1 and len(rows) > 0
    require(is_row, f"it has no tensor of rows, {np.dtype(row_type)} [L]")
    require(bool(((rows >= 0) & (rows < margins)).all()), f"a leaf has a row that is not in 0 to {margins - 1}")
    steps = defaultdict[str, Tensors](dict)
    for name, tensor in tensors.items():
        if name != ROW:
            step, _, field = name.rpartition("/")
            require(step in shapes and field in _TYPES, f"{name} names no activation of the network, or no field")
            require(tensor.dtype == _TYPES[field], f"{name} is {tensor.dtype}, expected {np.dtype(_TYPES[field])}")
            steps[step][field] = tensor
    for step, fields in steps.items():
        _check_step(step, fields, len(rows), int(np.prod(shapes[step])))
    return Certificate(rows, dict(steps))


def _check_step(step: str, fields: Tensors, leaves: int, size: int) -> None:
    neurons = fields.get(NEURONS, np.zeros(0))
    is_complete = {NEURONS, SLOPES} <= fields.keys() and (SIGNS in fields) == (MULTIPLIERS in fields)
    require(is_complete, f"{step}: a tensor is missing")
    require(neurons.ndim == 1 and len(np.unique(neurons)) == len(neurons), f"{step}: a neuron is listed twice")
    require(bool(((neurons >= 0) & (neurons < size)).all()), f"{step}: a neuron is not in 0 to {size - 1}")
    for field in {SLOPES, SIGNS, MULTIPLIERS} & fields.keys():
        expected = leaves, len(neurons)
        require(fields[field].shape == expected, f"{step}: {field} have another shape than {expected}")
    shares_fit = LINE_SHARES not in fields or fields[LINE_SHARES].shape == (leaves, size)
    require(shares_fit, f"{step}: {LINE_SHARES} has another shape than {(leaves, size)}")
    if SIGNS not in fields:
        return
    require(bool(np.isin(fields[SIGNS], (-1, 0, 1)).all()), f"{step}: a sign is not -1, 0 or 1")
    allowed = np.isfinite(fields[MULTIPLIERS]) & (fields[MULTIPLIERS] >= 0)
    require(bool(allowed.all()), f"{step}: a multiplier is below 0 or not finite")


def _spread(fields: Tensors, leaf_numbers: Array, shape: tuple[int, ...]) -> Leaves:
    def full(field: str, default: float, scale: float = 1.0) -> Array:
        values = np.full((len(leaf_numbers), int(np.prod(shape))), default, dtype=np.float64)
        if field in fields:
            values[:, fields[NEURONS]] = fields[field][leaf_numbers] / scale
        return values.reshape(-1, *shape)

    line_shares = np.ones((1, *shape))
    if LINE_SHARES in fields:
        line_shares = 1 - _SPARE * (1 - fields[LINE_SHARES][leaf_numbers].reshape(-1, *shape) / 255)
    return Leaves(full(SLOPES, np.nan, 255), full(SIGNS, 0), full(MULTIPLIERS, 0), line_shares)


def require(holds: bool, why: str) -> None:
    """Raise RefusedError unless something holds."""
    if not holds:
        raise RefusedError(why)
