"""Boxes of every value of a network over a box of images: by intervals, or tightened by linear bounds."""

from collections.abc import Callable, Iterator

import numpy as np

from harness.checker.bounds.boxes import Array, Box, between, intersect, relu
from harness.checker.bounds.equilibrium import apply_recurrence_back, preactivation, tighten_by_map
from harness.checker.bounds.linear import Region, lower_bounds, rows_at_once
from harness.checker.bounds.maps import Map
from harness.checker.bounds.network import Network, ReluStep, result_box
from harness.checker.proofs.certificates import Certificate

_LENGTHENED = (1e-4, 1e-3)
"""Shares of a box's length, by more than which float32 seldom widens a box for its rounding; by widened boxes an
evaluation chooses between two lines. Sums of 3,000 terms have needed the second."""


def interval_region(network: Network, images: Box) -> Region:
    """Return boxes by intervals only."""
    return with_images_of_equilibria(network, Region(network.boxes(images), {}))


def tight_region(network: Network, images: Box, hidden: dict[str, Certificate] | None = None) -> Region:
    """Return boxes in which linear bounds tighten the unstable inputs of activations and the inside of equilibria.

    What is one sum of the images' pixels keeps its intervals, which are exact.

    hidden: certificates of the inputs of ReLUs, by the step's name, which tighten them further.
    """
    region, tightened = Region([images], {}), {0}
    for number, step in enumerate(network.steps[:-1], start=1):
        boxes = [region.values[source] for source in step.sources]
        if isinstance(step.operation, Map):
            region.values.append(result_box(step, *boxes))
            continue
        (source,), (h,) = step.sources, boxes
        if isinstance(step.operation, ReluStep) and step.operation.weight is not None:
            region.values.append(_equilibrium(network, region, number, step.operation.weight, source))
        else:
            is_after_map = source > 0 and isinstance(network.steps[source - 1].operation, Map)
            if is_after_map and source not in tightened and not _is_exact(network, source):
                is_loose = _is_unstable if isinstance(step.operation, ReluStep) else step.operation.is_loose
                h = region.values[source] = tighten(network, region, h, is_loose(h), {source: None})
            if source not in tightened and hidden and step.name in hidden:
                h = region.values[source] = _tighten_by_leaves(network, region, source, hidden[step.name])
            region.values.append(result_box(step, h))
        tightened.add(source)
    return region


def with_images_of_equilibria(network: Network, region: Region) -> Region:
    """Return a region whose pre-activations of equilibria follow from the boxes of z and h alone, as in a search.

    They are larger, but the lines that are chosen by them may give better bounds.
    """
    preactivations = {
        number: preactivation(step.operation.weight, region.values[step.sources[0]], region.values[number])
        for number, step in enumerate(network.steps[:-1], start=1)
        if isinstance(step.operation, ReluStep) and step.operation.weight is not None
    }
    return Region(region.values, preactivations)


def tight_regions(network: Network, images: Box, hidden: dict[str, Certificate] | None = None) -> Iterator[Region]:
    """Yield the boxes of `tight_region`; then, with equilibria, those by which a search chooses its lines."""
    region = tight_region(network, images, hidden)
    yield region
    if region.preactivations:
        yield with_images_of_equilibria(network, region)


def lengthened_regions(region: Region) -> Iterator[Region]:
    """Yield the region with longer boxes, first below, then above.

    The lower line of a ReLU whose input has ends nearly as far from 0 is another one there. Nothing is yielded where a
    box is not finite: linear bounds have none there.
    """
    if not all(np.isfinite(box.radius).all() for box in [*region.values, *region.preactivations.values()]):
        return
    for share in _LENGTHENED:
        for below, above in ((share, 0.0), (0.0, share)):

            def lengthened(x: Box, below: float = below, above: float = above) -> Box:
                return between(x.lower - 2 * below * x.radius, x.upper + 2 * above * x.radius)

            boxes = {number: lengthened(box) for number, box in region.preactivations.items()}
            yield Region([region.values[0], *map(lengthened, region.values[1:])], boxes)


def _is_exact(network: Network, number: int) -> bool:
    """Return whether intervals of a value are exact, but for rounding and copies: of one sum of the images' pixels."""
    sums = 0
    while number > 0:
        step = network.steps[number - 1]
        if not isinstance(step.operation, Map) or len(step.sources) > 1:
            return False
        sums += step.operation.is_sum
        (number,) = step.sources
    return sums <= 1


def _equilibrium(network: Network, region: Region, number: int, weight: Array, source: int) -> Box:
    """Return the box of the equilibrium that is value `number`; store the box of its pre-activation in the region."""
    step, h = network.steps[number - 1], region.values[source]
    if not _is_exact(network, source):
        alive = preactivation(weight, h, result_box(step, h)).upper > 0
        h = region.values[source] = tighten(network, region, h, alive & (h.radius > 0), {source: None})
    z = result_box(step, h)
    p = preactivation(weight, h, z)
    with_z = Region([*region.values, z], {**region.preactivations, number: p})
    p = tighten(network, with_z, p, _is_unstable(p), {number: weight, source: None})
    z = tighten_by_map(weight, h, intersect(z, relu(p)))
    region.preactivations[number] = intersect(p, preactivation(weight, h, z))
    return z


def activation_shapes(network: Network, region: Region) -> dict[str, tuple[int, ...]]:
    """Return the shape of each activation whose box the region has, by the step's name."""
    steps = zip(network.steps, region.values[1:], strict=False)
    return {step.name: z.center.shape[1:] for step, z in steps if isinstance(step.operation, ReluStep)}


def leaf_bounds(
    network: Network, region: Region, value: int, rows_of: Callable[[Array], Array], certificate: Certificate,
    leaves: Array,
) -> Iterator[tuple[Array, Array]]:  # fmt: skip
    """Yield some of these leaves of a certificate at a time, and the bounds of their rows.

    rows_of: from the leaves' rows in the certificate to coefficients [K, *shape] of the value.
    """
    shapes, count = activation_shapes(network, region), rows_at_once(region)
    for start in range(0, len(leaves), count):
        batch = leaves[start : start + count]
        choices = certificate.leaves(batch, shapes)
        yield batch, lower_bounds(network, region, {value: rows_of(certificate.rows[batch])}, choices)


def _tighten_by_leaves(network: Network, region: Region, source: int, certificate: Certificate) -> Box:
    """Return the box of a value, tightened to the smallest bounds of each row's leaves."""
    box = region.values[source]

    def rows_of(numbers: Array) -> Array:
        rows = np.zeros((len(numbers), box.center.size))
        rows[np.arange(len(numbers)), numbers // 2] = 1.0 - 2 * (numbers % 2)
        return rows.reshape(-1, *box.center.shape[1:])

    bounds, leaves = np.full(2 * box.center.size, np.inf), np.arange(len(certificate.rows))
    for batch, lower in leaf_bounds(network, region, source, rows_of, certificate, leaves):
        np.minimum.at(bounds, certificate.rows[batch], lower)
    bounds = np.where(np.isfinite(bounds), bounds, -np.inf)
    low, high = (end.reshape(box.center.shape) for end in (bounds[::2], -bounds[1::2]))
    return intersect(box, between(np.maximum(box.lower, low), np.minimum(box.upper, high)))


def _is_unstable(p: Box) -> Array:
    return (p.lower < 0) & (p.upper > 0)


def tighten(network: Network, region: Region, box: Box, mask: Array, parts: dict[int, Array | None]) -> Box:
    """Tighten `box` [1, *shape] of a sum of values where `mask`. parts: each value's W, None for the value itself."""
    lower, upper = box.lower.copy(), box.upper.copy()
    by_pixel = np.moveaxis(np.arange(mask.size).reshape(mask.shape), 1, -1)  # neurons of a batch see few other pixels
    neurons, count = by_pixel[np.moveaxis(mask, 1, -1)], rows_at_once(region)
    for start in range(0, len(neurons), count):
        indices = neurons[start : start + count]
        rows = np.zeros((2 * len(indices), lower.size))
        rows[np.arange(len(rows)), np.concatenate([indices, indices])] = np.repeat([1.0, -1.0], len(indices))
        rows = rows.reshape(-1, *lower.shape[1:])
        functional = {value: rows if w is None else apply_recurrence_back(w, rows) for value, w in parts.items()}
        low, high = np.split(lower_bounds(network, region, functional, {}), 2)
        lower.flat[indices] = np.maximum(lower.flat[indices], low)
        upper.flat[indices] = np.minimum(upper.flat[indices], -high)
    return intersect(box, between(lower, upper))
