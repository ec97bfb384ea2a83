"""Boxes of every value of a wide network of few inputs, by affine forms.

A form is an affine function L of the inputs and a remainder r: a value lies within r of L(x). L is stored by its values
at n + 1 points: the centre of the box of x, and the centre moved along each of n inputs by its radius.
At x = centre + sum t_k (point_k - centre), |t_k| <= 1, errors e of the stored values move L by at most
(1 + n) e_0 + sum e_k. A ReLU on [l, u] with 0 inside lies between slope p and slope p + max(-slope l, (1 - slope) u)
for every slope in [0, 1] (Singh et al. 2018).

Sums of ReLUs between sparse layers, y = W relu(V x + c): one error for all steps from x to y.

Minima of pairs are such sums. Let relu(p) = slope p + shift + e with |e| <= shift. If x is off by up to r, then y is
off by up to |W slope V| r + |W e|. Two units with opposite inputs, q = -p, share an error: relu(q) = relu(p) - p, so
e of q is e of p plus (slope of p + slope of q - 1) p + shift of p - shift of q.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from harness.checker.bounds import relu_lines
from harness.checker.bounds.boxes import SLACK, TINY, Array, Box, U, intersect, relu, widen_for_rounding
from harness.checker.bounds.linear import Region
from harness.checker.bounds.maps import Map, Product
from harness.checker.bounds.network import Network, ReluStep, Step, boxes_of, result_box
from harness.checker.bounds.regions import tight_regions, tighten

_MOST_INPUTS = 2
_MOST_VALUES = 8192  # of a network all of whose units are bounded: at least twice as many as in the search
_MOST_TIGHTENED = 8  # units of each ReLU, by linear bounds
_MOST_ENTRIES = 8  # numbers in a row of W or V that are not 0


@dataclass(frozen=True)
class ReluSums:
    """N sums of up to K units p, which read up to C elements of x. x, p, relu: the numbers of these values.

    units: [N, K], and weights, those of W. columns: [N, C], elements of x, and inner [N, K, C], those of V. Missing
    ones are 0. firsts: [N, K], the unit that shares its error, or the unit itself. shares: [N, K], the errors' weights.
    """

    x: int
    p: int
    relu: int
    units: Array
    weights: Array
    columns: Array
    inner: Array
    firsts: Array
    shares: Array

    def error(self, r: Array, slope: Array, shift: Array, size: Array, rounding: Array) -> Array:
        """Return how far sums may be from those of the lines, [1, N].

        r: [1, M], how far x may be off. slope, shift, size >= |p|, rounding: [1, L], of units; the last one is added.
        """
        s, t = slope[0, self.units], shift[0, self.units]
        first_slope, first_shift = slope[0, self.firsts], shift[0, self.firsts]
        weights, terms, inner = np.abs(self.weights), s.shape[1] + 2, np.abs(self.inner)
        through = np.abs(np.einsum("nk,nkc->nc", self.weights * s, self.inner))
        through += SLACK * terms * U * np.einsum("nk,nkc->nc", weights, inner)
        through += TINY * (inner.sum(1) + SLACK * terms)  # products that underflow, before others multiply them
        apart = (np.abs(s + first_slope - 1) + SLACK * U) * size[0, self.units]
        apart += np.abs(t - first_shift) + SLACK * U * (t + first_shift)
        apart = np.where(self.firsts == self.units, 0, apart) + rounding[0, self.units] + TINY
        total = (through * r[0, self.columns]).sum(1) + (np.abs(self.shares) * t + weights * apart).sum(1)
        terms = through.shape[1] + 2 * s.shape[1]
        result: Array = total[None] * (1 + SLACK * (terms + 2) * U) + SLACK * (terms + 2) * s.shape[1] * TINY
        return result


def relu_sums(network: Network) -> dict[int, ReluSums]:
    """Return the sums of ReLUs between sparse layers, by the numbers of their values."""
    steps, found = network.steps, dict[int, ReluSums]()
    for number, step in enumerate(steps, start=1):
        relu = step.sources[0]
        p = steps[relu - 1].sources[0] if relu else 0
        if not p:
            continue
        outer, activation, inner = step.operation, steps[relu - 1].operation, steps[p - 1].operation
        is_relu = isinstance(activation, ReluStep) and activation.weight is None
        if is_relu and isinstance(outer, Product) and isinstance(inner, Product) and _is_sparse(outer, inner):
            found[number] = _sums(steps[p - 1].sources[0], p, relu, outer.weight, inner)
    return found


def _is_sparse(*layers: Product) -> bool:
    return all(((layer.weight != 0).sum(1) <= _MOST_ENTRIES).all() for layer in layers)


def _sums(x: int, p: int, relu: int, outer: Array, inner: Product) -> ReluSums:
    units = [np.flatnonzero(row) for row in outer]
    columns = [np.flatnonzero(inner.weight[of].any(0)) for of in units]
    count, most, reads = len(outer), max(map(len, units)), max(map(len, columns))
    numbers, weights, shares = np.zeros((count, most), int), np.zeros((count, most)), np.zeros((count, most))
    read, matrices = np.zeros((count, reads), int), np.zeros((count, most, reads))
    firsts = numbers.copy()
    for row, (of, at) in enumerate(zip(units, columns, strict=True)):
        numbers[row, : len(of)], read[row, : len(at)] = of, at
        matrices[row, : len(of), : len(at)] = inner.weight[np.ix_(of, at)]
        weights[row, : len(of)] = shares[row, : len(of)] = outer[row, of]
        firsts[row, : len(of)] = of
        for a, b in combinations(range(len(of)), 2):
            is_opposite = (matrices[row, a] == -matrices[row, b]).all() and inner.bias[of[a]] == -inner.bias[of[b]]
            if is_opposite and firsts[row, a] == of[a] and firsts[row, b] == of[b]:
                firsts[row, b] = of[a]
                shares[row, a] += shares[row, b]
                shares[row, b] = 0
    return ReluSums(x, p, relu, numbers, weights, read, matrices, firsts, shares)


@dataclass(frozen=True)
class Form:
    """points: [n + 1, *shape], the centre first. remainder: [1, *shape].

    rounding: the part of it by which rounding of the last step may have moved L.
    """

    points: Array
    remainder: Array
    rounding: Array | float = 0.0

    @property
    def box(self) -> Box:
        """The box of all its values."""
        center, moved = self.points[:1], self.points[1:]
        reach = np.abs(moved - center).sum(0, keepdims=True)
        size = len(self.points) * (np.abs(self.points).sum(0, keepdims=True) + len(moved) * np.abs(center) + reach)
        return widen_for_rounding(center, reach + self.remainder, size + self.remainder)

    def moved_by(self, points: Array, errors: Array, remainder: Array) -> "Form":
        """Return the form of these points, which are off by `errors` [n + 1, *shape]."""
        upwards = 1 + SLACK * len(points) * U
        rounding = (len(points) * errors[:1] + errors[1:].sum(0, keepdims=True)) * upwards
        return Form(points, (remainder + rounding) * upwards, rounding)


def regions_of_part(network: Network, part: Box, sums: dict[int, ReluSums]) -> Iterator[Region]:
    """Yield boxes over a part [1, ...] of a box: by forms with few inputs, then tightened unless that takes too long.

    A search counts a network's values in its own way, so whatever it proves a part by is tried here.

    sums: of the network; linear bounds do not tighten what they read.
    """
    free = (part.radius > SLACK * U * np.abs(part.center) + TINY).ravel().nonzero()[0]
    by_forms = all(_has_form(step) for step in network.steps) and len(free) <= _MOST_INPUTS
    if by_forms:
        yield _region_by_forms(network, part, free, sums)
    if not by_forms or sum(box.center.size for box in boxes_of(network.steps[:-1], part)) <= _MOST_VALUES:
        yield from tight_regions(network, part, all_units=True)


def _region_by_forms(network: Network, part: Box, free: Array, sums: dict[int, ReluSums]) -> Region:
    """Return boxes by forms of the inputs with the flat numbers `free`."""
    region, forms, summed = Region([part], {}), [_form_of_inputs(part, free)], {each.p for each in sums.values()}
    for number, step in enumerate(network.steps[:-1], start=1):
        source = step.sources[0]
        if isinstance(step.operation, ReluStep):
            box = region.values[source]
            mask = _furthest(box)
            if source > 0 and source not in summed and mask.any():
                box = region.values[source] = tighten(network, region, box, mask, {source: None})
            forms.append(form_after_relu(forms[source], box))
            region.values.append(relu(box))
        else:
            forms.append(form_after_map(step, [forms[source] for source in step.sources]))
            if number in sums and region.values[source].center.ndim == 2:
                forms[number] = with_less_error(sums[number], forms, region.values[sums[number].p])
            box = result_box(step, *[region.values[source] for source in step.sources])
            region.values.append(intersect(box, forms[number].box))
    return region


def _has_form(step: Step) -> bool:
    return isinstance(step.operation, Map) or (isinstance(step.operation, ReluStep) and step.operation.weight is None)


def _furthest(box: Box) -> Array:
    """Return which elements reach furthest on both sides of 0, bool [1, *shape]."""
    crossing = np.minimum(box.upper, -box.lower)
    least = np.sort(crossing, axis=None)[-min(_MOST_TIGHTENED, crossing.size)]
    mask: Array = (crossing >= least) & (crossing > 1e-6 * box.radius.max())
    return mask


def _form_of_inputs(part: Box, free: Array) -> Form:
    points, remainder = np.repeat(part.center, len(free) + 1, axis=0), part.radius.copy()
    rows = points.reshape(len(points), -1)
    for number, column in enumerate(free, start=1):
        rows[number, column] += part.radius.flat[column]
    remainder.flat[free] = SLACK * U * (np.abs(part.center) + part.radius).flat[free]
    return Form(points, remainder)


def form_after_map(step: Step, forms: list[Form]) -> Form:
    """Return the form after an affine step. Around a centre, its box holds W r on either side of a number."""
    boxes = []
    for form in forms:
        radius = np.zeros((len(form.points) + 1, *form.points.shape[1:]))
        radius[:1] = form.remainder
        boxes.append(Box(np.concatenate([form.points[:1], form.points]), radius))
    result = result_box(step, *boxes)
    return forms[0].moved_by(result.center[1:], result.radius[1:], result.radius[:1])


def with_less_error(sums: ReluSums, forms: list[Form], p: Box) -> Form:
    """Return the last form, which is of these sums, with their remainder where it is smaller. p: box of their units."""
    form, before, after = forms[-1], forms[sums.p], forms[sums.relu]
    (slope, shift), size = _slope_and_shift(p), np.maximum(np.abs(p.lower), np.abs(p.upper))
    rounding = (slope * before.rounding + after.rounding) * (1 + SLACK * U)
    error = sums.error(forms[sums.x].remainder, slope, shift, size, rounding) + form.rounding
    return Form(form.points, np.minimum(form.remainder, error * (1 + SLACK * U)), form.rounding)


def form_after_relu(form: Form, p: Box) -> Form:
    """Return the form after a ReLU of values in the box p."""
    slope, shift = _slope_and_shift(p)
    points = slope * form.points + shift
    errors = np.where(shift > 0, SLACK * U * (np.abs(points) + shift) + TINY, 0)
    return form.moved_by(points, errors, slope * form.remainder * (1 + SLACK * U) + shift)


def _slope_and_shift(p: Box) -> tuple[Array, Array]:
    """Return slope and shift: relu(v) lies within `shift` of slope v + shift for every v in the box p."""
    relaxation = relu_lines.lines(p, None)
    return relaxation.chord, relaxation.offset / 2
