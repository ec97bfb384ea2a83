"""All margins of one example above 0: by linear bounds, or by those of the leaves of a certificate."""

from dataclasses import dataclass

import numpy as np

from harness.checker.boxes import Array, Box
from harness.checker.certificates import Certificate, RefusedError, Tensors, checked
from harness.checker.linear import Region, at_once, lower_bounds
from harness.checker.network import Activation, Network
from harness.checker.regions import plain, tightened
from harness.checker.relaxation import Leaves

LINEAR, CERTIFICATE = "linear", "certificate"


@dataclass(frozen=True)
class Proof:
    """by: what proved all margins above 0, or nothing. least: the least margin's lower bound.
    refused: why a certificate was."""

    by: str
    least: float
    refused: str = ""


def prove(network: Network, images: Box, label: int, tensors: Tensors | None = None) -> Proof:
    """A proof for all images in the box [1, C, H, W]; tensors: of a certificate. Cheapest first, margin by margin."""
    lower, features = np.full(len(network.bias) - 1, -np.inf), network.steps[-1].sources[0]
    for region_of in (plain, tightened):
        region = region_of(network, images)
        lower = np.fmax(lower, network.margins_of(region.values[features], np.array([label]))[0])
        if len(waiting := np.flatnonzero(~(lower > 0))):
            lower[waiting] = np.fmax(lower[waiting], _bounds(network, region, label, waiting, {}))
        if (lower > 0).all():
            return Proof(LINEAR, float(lower.min()))
    if tensors is None:
        return Proof("", float(lower.min()))
    shapes = _shapes(network, region)
    try:
        certificate = checked(tensors, shapes, len(lower))
    except RefusedError as error:
        return Proof("", float(lower.min()), str(error))
    for row in np.intersect1d(certificate.rows, np.flatnonzero(~(lower > 0))):
        lower[row] = max(lower[row], _least_of_leaves(network, region, label, row, certificate, shapes))
    return Proof(CERTIFICATE if (lower > 0).all() else "", float(lower.min()))


def _least_of_leaves(
    network: Network, region: Region, label: int, row: int, certificate: Certificate, shapes: dict[str, tuple[int, ...]]
) -> float:
    """The least bound of a margin over the leaves of its row; no more are looked at once one is not above 0."""
    leaves, count = np.flatnonzero(certificate.rows == row), at_once(network, region)
    least = np.inf
    for start in range(0, len(leaves), count):
        some = leaves[start : start + count]
        chosen = certificate.leaves(some, shapes)
        least = min(least, _bounds(network, region, label, np.full(len(some), row), chosen).min())
        if not least > 0:
            break
    return least


def _bounds(network: Network, region: Region, label: int, rows: Array, leaves: dict[str, Leaves]) -> Array:
    """Linear bounds of the margins of these rows, [K], over the region or each in a leaf."""
    others = np.delete(np.eye(len(network.bias)), label, axis=0)
    spec = np.eye(len(network.bias))[label] - others[rows]
    return lower_bounds(network, region, {len(network.steps): spec}, leaves)


def _shapes(network: Network, region: Region) -> dict[str, tuple[int, ...]]:
    """The shape of the pre-activation of every activation, by the step's name."""
    pairs = zip(network.steps[:-1], region.values[1:], strict=True)
    return {step.name: z.center.shape[1:] for step, z in pairs if isinstance(step.does, Activation)}
