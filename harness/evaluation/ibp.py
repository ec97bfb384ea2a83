"""Bounds by IBP, with the clean margins: the first stage of every evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import Context, Interval, Program, propagate, trace
from cerdeq.bounds.batch_sizes import examples_in_cache
from cerdeq.boxes import Box, outward_ends
from harness.common import names
from harness.evaluation.ledger import Ledger, add_seconds
from harness.evaluation.network import PreparedNetwork

_TENSORS = ("lower", "width", "clean", "clean_lower")  # fields of Bounds


@dataclass(frozen=True)
class Bounds:
    """IBP of B examples: of the margins, [B, K - 1] over the other classes in order, and of the layers before them.

    lower, width, clean: the margins' lower bounds, the widths of their intervals, and their clean values.
    clean_lower: proved lower bounds of the clean values, which count a solver's error.
    layers: of each pre-activation, by metrics' names: mean width, percentages of inactive and unstable values.
    """

    lower: Tensor
    width: Tensor
    clean: Tensor
    clean_lower: Tensor
    layers: dict[str, float]

    def prediction(self, labels: Tensor) -> Tensor:
        """Return the predicted class [B]: the label if all clean margins are proved positive, else the strongest
        other class."""
        smallest, other = self.clean_lower.min(1)
        return torch.where(smallest > 0, labels, other + (other >= labels))


@torch.no_grad()
def bound_margins(
    program: Program, x: Tensor, labels: Tensor, eps: Fraction, classes: int, seconds: dict[str, float]
) -> Bounds:
    """Return sound IBP bounds and the clean values of the margins for x [B, C, H, W], pixels in [0, 1].

    seconds: gets the time of IBP added.
    """
    size = examples_in_cache(program, Interval(x, torch.zeros_like(x)))
    slices = zip(x.split(size), labels.split(size), strict=True)
    return _join_bounds([_bound_slice(program, *part, eps, classes, seconds) for part in slices])


def bound_batch(
    network: PreparedNetwork, images: Tensor, labels: Tensor, eps: Fraction, ledger: Ledger
) -> tuple[Bounds, Tensor]:
    """Return `bound_margins` of a batch, NaN for examples that cannot be bounded, and which can be: bool [B].

    Raises:
        RuntimeError: none of several examples can be bounded.
    """

    def ask(examples: Tensor) -> Bounds:
        x, y = images[examples], labels[examples]
        return bound_margins(network.program, x, y, eps, network.classes, ledger.seconds)

    answers = ledger.answers(names.CLEAN, ask, torch.arange(len(labels), device=images.device))
    ledger.seconds[names.CLEAN] -= ledger.seconds.get(names.IBP, 0.0)  # which `bound_margins` has counted
    if not answers and len(labels) > 1:
        raise RuntimeError(f"none of {len(labels)} images can be evaluated: {ledger.reason[0]}")
    bounded = torch.zeros_like(labels, dtype=torch.bool)
    tensors = {name: images.new_full((len(labels), network.classes - 1), torch.nan) for name in _TENSORS}
    for examples, bounds in answers:
        bounded[examples] = True
        for name, tensor in tensors.items():
            tensor[examples] = getattr(bounds, name)
    layers = average_rows([bounds.layers for _, bounds in answers], [len(examples) for examples, _ in answers])
    return Bounds(**tensors, layers=layers), bounded


def count_without_attack(
    model: nn.Module, x: Tensor, labels: Tensor, eps: Fraction, classes: int
) -> tuple[int, int]:  # fmt: skip
    """Return how many of x [B, C, H, W] a float64 network predicts rightly, and how many IBP certifies."""
    bounds = bound_margins(trace(model), x, labels, eps, classes, {})
    return int((bounds.prediction(labels) == labels).sum()), int((bounds.lower > 0).all(1).sum())


def _join_bounds(parts: Sequence[Bounds]) -> Bounds:
    """Return the bounds of the examples of all parts."""
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    layers = average_rows([part.layers for part in parts], [len(part.lower) for part in parts])
    return Bounds(**tensors, layers=layers)


def average_rows(rows: Sequence[dict[str, float]], images: Sequence[int]) -> dict[str, float]:
    """Return the mean of each entry over rows, weighted by their numbers of images; empty rows do not count."""
    weighted = [(row, count) for row, count in zip(rows, images, strict=True) if row]
    total = sum(count for _, count in weighted)
    keys = weighted[0][0] if weighted else ()
    return {key: sum(count / total * row[key] for row, count in weighted) for key in keys}


def _bound_slice(
    program: Program, x: Tensor, labels: Tensor, eps: Fraction, classes: int, seconds: dict[str, float]
) -> Bounds:
    """Return `bound_margins` of all examples at once. The clean value is the centre of a point's proved box."""
    ball, ctx = LinfBall(x, eps), Context(sound=True)
    spec = margin_spec(labels, classes)
    with add_seconds(seconds, names.IBP, x.device):
        output = propagate(program, Interval(ball.center, ball.radius), ctx, spec)
        lower, _ = outward_ends(output.box)
    point = propagate(program, Interval(x, torch.zeros_like(x)), Context(sound=True), spec)
    clean_lower, _ = outward_ends(point.box)
    layers = {k: value for name, box in ctx.preactivations.items() for k, value in _layer_metrics(name, box).items()}
    numbers = dict(zip(layers, torch.stack(list(layers.values())).tolist(), strict=True)) if layers else {}
    return Bounds(lower, 2 * output.radius, point.center, clean_lower, numbers)


def _layer_metrics(layer: str, box: Box) -> dict[str, Tensor]:
    """Return the mean width of a pre-activation, and the percentages of values that are never or perhaps above 0."""
    low, high = outward_ends(box)
    return {
        names.layer_width(layer): 2 * box.radius.mean(),
        names.layer_inactive(layer): 100 * (high <= 0).double().mean(),
        names.layer_unstable(layer): 100 * ((low < 0) & (high > 0)).double().mean(),
    }
