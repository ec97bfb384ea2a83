"""Boxes of every value over the images of a box: by intervals, or each activation's input by linear bounds as well."""

from collections.abc import Iterator

import numpy as np

from harness.checker.boxes import Array, Box, between, intersected, relu
from harness.checker.equilibrium import contracted, preactivation, recurrent_back
from harness.checker.linear import Region, at_once, lower_bounds
from harness.checker.network import Activation, Network, result


def plain(network: Network, images: Box) -> Region:
    """By intervals alone."""
    region = Region(network.boxes(images), {})
    for number, step in enumerate(network.steps[:-1], start=1):
        if isinstance(step.does, Activation) and step.does.weight is not None:
            h, z = region.values[step.sources[0]], region.values[number]
            region.inside[number] = preactivation(step.does.weight, h, z)
    return region


def tightened(network: Network, images: Box) -> Region:
    """The input of each activation, where 0 is inside, and the inside of each equilibrium by linear bounds, too.

    The first activation's input is left as it is: one matrix product of the images, most often, where intervals lose
    nothing.
    """
    region, done = Region([images], {}), {0}
    for number, step in enumerate(network.steps[:-1], start=1):
        given = [region.values[source] for source in step.sources]
        if not isinstance(step.does, Activation):
            region.values.append(result(step, *given))
            continue
        (source,), (h,), first = step.sources, given, len(done) == 1
        if step.does.weight is None:
            if source not in done and not first:
                h = region.values[source] = _tightened(network, region, h, _crossing(h), {source: None})
            region.values.append(relu(h))
        else:
            region.values.append(_equilibrium(network, region, number, step.does.weight, source, first))
        done.add(source)
    return region


def _equilibrium(network: Network, region: Region, number: int, weight: Array, source: int, first: bool) -> Box:
    """The box of the equilibrium that is value `number`; that of its pre-activation is left in the region."""
    step, h = network.steps[number - 1], region.values[source]
    if not first:
        alive = preactivation(weight, h, result(step, h)).upper > 0
        h = region.values[source] = _tightened(network, region, h, alive & (h.radius > 0), {source: None})
    z = result(step, h)
    p = preactivation(weight, h, z)
    known = Region([*region.values, z], {**region.inside, number: p})
    p = _tightened(network, known, p, _crossing(p), {number: weight, source: None})
    z = contracted(weight, h, intersected(z, relu(p)))
    region.inside[number] = intersected(p, preactivation(weight, h, z))
    return z


def _crossing(p: Box) -> Array:
    return (p.lower < 0) & (p.upper > 0)


def _tightened(network: Network, region: Region, box: Box, chosen: Array, parts: dict[int, Array | None]) -> Box:
    """`box` [1, *shape], tightened where `chosen`: of a sum of values by their numbers, each as it is or times a W."""
    lower, upper = box.lower.copy(), box.upper.copy()
    for places in _some(np.flatnonzero(chosen), at_once(network, region)):
        rows = np.zeros((2 * len(places), lower.size))
        rows[np.arange(len(rows)), np.concatenate([places, places])] = np.repeat([1.0, -1.0], len(places))
        rows = rows.reshape(-1, *lower.shape[1:])
        functional = {value: rows if w is None else recurrent_back(w, rows) for value, w in parts.items()}
        low, high = np.split(lower_bounds(network, region, functional, {}), 2)
        lower.flat[places] = np.maximum(lower.flat[places], low)
        upper.flat[places] = np.minimum(upper.flat[places], -high)
    return intersected(box, between(lower, upper))


def _some(places: Array, count: int) -> Iterator[Array]:
    for start in range(0, len(places), count):
        yield places[start : start + count]
