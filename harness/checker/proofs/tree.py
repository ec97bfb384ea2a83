"""Check the tree by which rows of a network with one monotone equilibrium are proved positive.

docs/developers/certificates.md describes its tensors.
"""

import numpy as np

from harness.checker.bounds.boxes import SLACK, Array, Box, U, magnitude
from harness.checker.bounds.linear import Region, pull_to
from harness.checker.bounds.maps import Map
from harness.checker.bounds.monotone import AffineMap, NotMonotoneError, dense, prove
from harness.checker.bounds.network import Network, ReluStep
from harness.checker.bounds.relu_lines import LARGEST
from harness.checker.proofs.certificates import RefusedError, Tensors, require
from harness.checker.proofs.multipliers import EquilibriumBounds

PREFIX = "equilibrium"
_FIELDS = {
    "nodes": (np.int32, "M4"), "rows": (np.int32, "T4"), "multipliers": (np.float16, "TN"),
    "scales": (np.float32, "T"), "betas": (np.float32, "T"), "exact": (np.float64, "EN"),
}  # fmt: skip
_MOST_NUMBERS = 2**26  # of all nodes' boxes; they take 1 GiB


def is_tree(tensors: Tensors) -> bool:
    """Return whether a certificate is a tree of a monotone equilibrium."""
    return any(name.startswith(f"{PREFIX}/") for name in tensors)


def prove_tree(network: Network, images: Box, spec: Array, tensors: Tensors) -> Array:
    """Return which rows of `spec` [R, K] the tree proves to be positive for all images in the box.

    Raises RefusedError.
    """
    values = network.boxes(images)
    tree = read_tree(network, values, len(spec), tensors)
    layer, rows = equilibrium_bounds(network, values, spec)
    nodes, steps = tree["nodes"], _steps_of(tree)
    children, boxes = [list[int]() for _ in nodes], list[tuple[Array, Array] | None]()
    is_closed = np.zeros(len(nodes), bool)
    for number, (parent, row, unit, sign) in enumerate(nodes):
        if number == 0:
            leaf = layer.first_leaf()
        else:
            children[parent].append(number)
            if is_closed[parent]:
                boxes.append(None)
                is_closed[number] = True
                continue
            above = boxes[parent]
            assert above is not None, "it is open"
            leaf = above[0].copy(), above[1].copy()
            if sign > 0:
                leaf[0][unit] = max(leaf[0][unit], 0)
            elif sign < 0:
                leaf[1][unit] = min(leaf[1][unit], 0)
        assumed, offset = np.zeros(len(layer.loops)), 0.0
        if row >= 0:
            assumed = rows.matrix[row]
            offset = rows.offset[row] - rows.error[row] - SLACK * U * (abs(rows.offset[row]) + rows.error[row])
        for step in steps.get(number, []):
            is_closed[number] = is_closed[number] or (layer.apply(leaf, step, assumed, offset) and number > 0)
        boxes.append(leaf)
    for number in range(len(nodes) - 1, 0, -1):
        both = children[number]
        is_closed[number] |= len(both) == 2 and bool(is_closed[both].all())
    is_proved = np.zeros(len(spec), bool)
    for number in children[0]:
        is_proved[nodes[number, 1]] |= is_closed[number]
    return is_proved


def equilibrium_bounds(network: Network, values: list[Box], spec: Array) -> tuple[EquilibriumBounds, AffineMap]:
    """Return the network's equilibrium, and rows of the outputs as a map of z. Raises RefusedError for other networks.

    values: boxes of all values over the box of the example.
    """
    number, weight = _equilibrium(network)
    if not all((magnitude(box) <= LARGEST).all() for box in values):  # else underflow may count
        raise RefusedError(f"a value of the network may be above {LARGEST:g}")
    (source,) = network.steps[number - 1].sources
    try:
        proof = prove(dense(weight, values[number].center.shape[1:]))
        inject = _affine_map(network, values, np.eye(len(proof.weight)), source, 0)
        rows = _affine_map(network, values, spec, len(network.steps), number)
        x, z = (Box(box.center.ravel(), box.radius.ravel()) for box in (values[0], values[number]))
        return EquilibriumBounds(proof, inject, x, z), rows
    except (NotMonotoneError, np.linalg.LinAlgError) as error:
        raise RefusedError(str(error)) from None


def _equilibrium(network: Network) -> tuple[int, Array]:
    """Return the number of the value that is the network's only equilibrium, and its weight. Raises RefusedError."""
    numbers = [n for n, step in enumerate(network.steps, start=1) if not isinstance(step.operation, Map)]
    operation = network.steps[numbers[0] - 1].operation if len(numbers) == 1 else None
    weight = operation.weight if isinstance(operation, ReluStep) else None
    if weight is None:
        raise RefusedError("the network has not one equilibrium between affine layers")
    return numbers[0], weight


def _affine_map(network: Network, values: list[Box], rows: Array, at: int, source: int) -> AffineMap:
    """Return rows [K, N] of value `at` as a map of the flat value `source`."""
    rows = rows.reshape(len(rows), *(values[at].center.shape[1:] if at < len(values) else rows.shape[1:]))
    pulled, constants, losses, _ = pull_to(network, Region(values, {}), {at: rows}, {}, source)
    if pulled.keys() != {source}:
        raise RefusedError("the network has branches around its equilibrium")
    count, lost = len(constants) + len(losses) + 1, np.sum([*losses, np.zeros(len(rows))], axis=0)
    offset, sizes = (np.sum([*map(of, constants), np.zeros(len(rows))], axis=0) for of in (np.positive, np.abs))
    error = (lost + SLACK * count * U * (sizes + lost)) * (1 + SLACK * count * U)
    return AffineMap(pulled[source].reshape(len(rows), -1), offset, error)


def read_tree(network: Network, values: list[Box], rows: int, tensors: Tensors) -> Tensors:
    """Return the tensors by their fields. values: boxes of all values. Raises RefusedError where they are no tree."""
    units = values[_equilibrium(network)[0]].center.size
    require(tensors.keys() == {f"{PREFIX}/{field}" for field in _FIELDS}, "its tensors are not those of a tree")
    tree = {field: tensors[f"{PREFIX}/{field}"] for field in _FIELDS}
    (nodes, *_), (places, *_) = ((*tree[field].shape, 0) for field in ("nodes", "rows"))
    sizes = {"M": nodes, "T": places, "N": units, "E": np.count_nonzero(tree["scales"] == 0), "4": 4}
    for field, (kind, dimensions) in _FIELDS.items():
        tensor, shape = tree[field], tuple(sizes[dimension] for dimension in dimensions)
        expected = f"expected {np.dtype(kind)} {list(shape)}"
        require(
            tensor.dtype == kind and tensor.shape == shape,
            f"{field} is {tensor.dtype} {list(tensor.shape)}, {expected}",
        )
    most = _MOST_NUMBERS // units
    require(0 < nodes <= most, f"there are {nodes:,} nodes, allowed: up to {most:,} of {units} units")
    finite = all(np.isfinite(tensor).all() for tensor in tree.values())
    require(finite and bool((tree["betas"] >= 0).all()), "a number is not finite, or a beta is below 0")
    _check_nodes(tree["nodes"], rows, units)
    number, order, unit, sign = tree["rows"].T
    require(bool(((number >= 0) & (number < nodes) & (order >= 0)).all()), "a row is of no node")
    require(bool(((unit >= 0) & (unit < units) & np.isin(sign, (-1, 0, 1))).all()), "a row bounds no unit")
    return tree


def _check_nodes(nodes: Array, rows: int, units: int) -> None:
    """Raise RefusedError unless every node is the root, assumes a row, or is one half of its parent."""
    require(tuple(nodes[0]) == (-1, -1, -1, 0), "node 0 is not the root")
    halves = dict[int, list[tuple[int, int]]]()
    for number, (parent, row, unit, sign) in enumerate(nodes[1:].tolist(), start=1):
        require(0 <= parent < number and 0 <= row < rows, f"node {number} has no parent before it, or no row")
        if parent == 0:
            require(unit == -1 and sign == 0, f"node {number} splits the root")
            continue
        require(row == nodes[parent, 1], f"node {number} has another row than its parent")
        require(0 <= unit < units and sign in (-1, 1), f"node {number} splits no unit")
        halves.setdefault(parent, []).append((unit, sign))
    for parent, pair in halves.items():
        (unit, *others), signs = {u for u, _ in pair}, sorted(s for _, s in pair)
        require(not others and signs == [-1, 1], f"the children of node {parent} are not its two halves")


def _steps_of(tree: Tensors) -> dict[int, list[Tensors]]:
    """Return the steps of each node, in order."""
    multipliers = tree["multipliers"].astype(np.float64) * tree["scales"].astype(np.float64)[:, None]
    multipliers[tree["scales"] == 0] = tree["exact"]
    steps = dict[int, list[Tensors]]()
    keys, places, counts = np.unique(tree["rows"][:, :2], axis=0, return_inverse=True, return_counts=True)
    of_steps = np.split(np.argsort(places.ravel(), kind="stable"), np.cumsum(counts))
    for (number, _), rows in zip(keys.tolist(), of_steps[: len(keys)], strict=True):
        steps.setdefault(number, []).append({
            "units": tree["rows"][rows, 2], "signs": tree["rows"][rows, 3].astype(np.float64),
            "multipliers": multipliers[rows], "betas": tree["betas"][rows].astype(np.float64),
        })  # fmt: skip
    return steps
