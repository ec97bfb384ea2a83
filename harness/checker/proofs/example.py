"""Prove one example: all margins, or other rows of outputs, positive; or one margin negative at a counterexample."""

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain

import numpy as np

from harness.checker.bounds.boxes import Array, Box
from harness.checker.bounds.linear import Region, lower_bounds
from harness.checker.bounds.network import Network
from harness.checker.bounds.regions import (
    activation_shapes,
    interval_region,
    leaf_bounds,
    lengthened_regions,
    tight_regions,
)
from harness.checker.proofs.certificates import HIDDEN, Certificate, RefusedError, Tensors, split_by_layer
from harness.checker.proofs.cover import check_leaves
from harness.checker.proofs.tree import is_tree, prove_tree

LINEAR, CERTIFICATE = "linear", "certificate"
_LEVELS = 32767


@dataclass(frozen=True)
class Proof:
    """The result for one example.

    proved_by: what proved all rows positive: LINEAR, CERTIFICATE or "".
    minimum: the smallest bound of a row that was computed. If it is not above 0, later leaves were left out.
    refused: why the certificate was refused, or "".
    """

    proved_by: str
    minimum: float
    refused: str = ""


def prove(network: Network, images: Box, label: int, tensors: Tensors | None = None) -> Proof:
    """Return a proof of all margins for all images in the box [1, C, H, W]. tensors: of a certificate."""
    return prove_rows(network, images, network.margin_spec(label), tensors)


def prove_rows(network: Network, images: Box, spec: Array, tensors: Tensors | None = None) -> Proof:
    """Return a proof of rows of outputs for all images in the box, the cheapest method first.

    A certificate that is given is read first: a faulty one is refused, also if the rows are proved without it.

    spec: [R, K], as for `Network.rows`. tensors: of a certificate.
    """
    if tensors is not None and is_tree(tensors):
        return _prove_by_tree(network, images, spec, tensors)
    lower, intervals = np.full(len(spec), -np.inf), interval_region(network, images)
    try:
        certificate = _ParsedCertificate() if tensors is None else _parse(network, intervals, len(spec), tensors)
    except RefusedError as error:  # a faulty certificate is refused even if the rows are proved without it
        return Proof("", -np.inf, str(error))
    tried = list[Region]()
    longer = lengthened_regions(intervals) if certificate.margins is None else iter(())
    for region in chain([intervals], tight_regions(network, images), longer):
        tried.append(region)
        lower = _raise_bounds(network, region, spec, lower)
        if (lower > 0).all():
            return Proof(LINEAR, float(lower.min()))
    unproved = np.flatnonzero(~(lower > 0))
    if certificate.margins is not None:
        regions = [*tight_regions(network, images, certificate.hidden)] if certificate.hidden else tried[1:]
        for row in np.intersect1d(certificate.margins.rows, unproved):
            lower[row] = max(lower[row], _minimum_over_leaves(network, regions, spec, certificate.margins, row))
    return Proof(CERTIFICATE if (lower > 0).all() else "", float(lower.min()))


def _raise_bounds(network: Network, region: Region, spec: Array, lower: Array) -> Array:
    """Return bounds of rows, raised to those over the region: by intervals; where that is not above 0, linear ones."""
    lower = np.fmax(lower, network.rows(region.values, spec[None]).lower[0])
    if len(unproved := np.flatnonzero(~(lower > 0))):
        bounds = lower_bounds(network, region, {len(network.steps): spec[unproved]}, {})
        lower[unproved] = np.fmax(lower[unproved], bounds)
    return lower


def _minimum_over_leaves(
    network: Network, regions: list[Region], spec: Array, certificate: Certificate, row: int
) -> float:  # fmt: skip
    """Return the smallest bound of a row over its leaves, or of some, if it is not above 0.

    A leaf has the bound over the first region by which it is above 0.
    """
    leaves, minimum = np.flatnonzero(certificate.rows == row), np.inf
    for region in regions:
        open_leaves = list[Array]()
        for batch, low in leaf_bounds(network, region, len(network.steps), spec.__getitem__, certificate, leaves):
            minimum = min(minimum, low[low > 0].min(initial=np.inf))
            open_leaves.append(batch[~(low > 0)])
            if region is regions[-1] and len(open_leaves[-1]):
                return float(low.min())
        leaves = np.concatenate(open_leaves)
        if not len(leaves):
            break
    return float(minimum)


@dataclass(frozen=True)
class _ParsedCertificate:
    """A certificate without a fault in its form: leaves of the margins, and those of hidden layers by their name."""

    margins: Certificate | None = None
    hidden: dict[str, Certificate] = field(default_factory=dict)


def _parse(network: Network, region: Region, rows: int, tensors: Tensors) -> _ParsedCertificate:
    """Read all tensors of a certificate. region: boxes of all values. Raises RefusedError."""
    margins = check_leaves(split_by_layer(tensors)[0], network.steps, activation_shapes(network, region), rows)
    return _ParsedCertificate(margins, read_hidden(network, region, tensors))


def read_hidden(network: Network, region: Region, tensors: Tensors) -> dict[str, Certificate]:
    """Return the certificates of hidden layers, by the activation's name. region: boxes of all values.

    Raises RefusedError.
    """
    layers, shapes = split_by_layer(tensors)[1], activation_shapes(network, region)
    if unknown := sorted(layers.keys() - shapes.keys()):
        raise RefusedError(f"{HIDDEN}/{unknown[0]} names no activation of the network")
    hidden, before = dict[str, Certificate](), dict[str, tuple[int, ...]]()
    for step, shape in shapes.items():  # a layer's leaves may name the layers before it alone
        if step in layers:
            hidden[step] = check_leaves(layers[step], network.steps, before, 2 * int(np.prod(shape)), np.int32)
        before[step] = shape
    return hidden


def _prove_by_tree(network: Network, images: Box, spec: Array, tensors: Tensors) -> Proof:
    """Return a proof by intervals or by a tree of a monotone equilibrium."""
    lower = network.rows(network.boxes(images), spec[None]).lower[0]
    try:
        is_proved = prove_tree(network, images, spec, tensors) | (lower > 0)
    except RefusedError as error:
        return Proof("", float(lower.min()), str(error))
    return Proof(CERTIFICATE if is_proved.all() else "", float(lower.min()))


def why_not_falsified(network: Network, pixels: Array, label: int, stored: Array | None, eps: Fraction) -> str:
    """Return why a counterexample does not falsify the image [C, H, W], grey levels 0 to 255; empty if it does.

    Exact arithmetic checks that its point lies in the ball.

    stored: the point, float64 [C, H, W]; or int16 k [C, H, W], each moves a pixel by about k eps / 32767; or the signs
        of a corner, where each k is 32767 (bit 1) or -32767, uint8 [C H W / 8].
    """
    if stored is None:
        return "there is no counterexample"
    kind, signs, step = (stored.dtype, stored.shape), (-(-pixels.size // 8),), float(eps - Fraction(1, 2**50)) / _LEVELS
    if kind == (np.uint8, signs):
        bits = np.unpackbits(stored, count=pixels.size).reshape(pixels.shape)
        point = np.clip(pixels / np.float64(255) + np.where(bits == 1, _LEVELS, -_LEVELS) * step, 0, 1)
    elif kind == (np.int16, pixels.shape):
        point = np.clip(pixels / np.float64(255) + stored * step, 0, 1)
    elif kind == (np.float64, pixels.shape):
        point = stored
    else:
        expected = f"expected float64 or int16 {pixels.shape} or uint8 {signs}"
        return f"the counterexample is {stored.dtype} {stored.shape}, {expected}"
    pairs = zip(point.ravel().tolist(), pixels.ravel().tolist(), strict=True)
    if not all(0 <= value <= 1 and abs(Fraction(value) - Fraction(int(pixel), 255)) <= eps for value, pixel in pairs):
        return "the counterexample lies outside of the ball"
    values = network.boxes(Box(point[None], np.zeros_like(point[None])))
    if not (network.margins(values, np.array([label])).upper < 0).any():
        return "no margin is proved to be below 0 at the counterexample"
    return ""
