"""The attack of an evaluation: a search in float32, whose points count only where float64 proves them adversarial."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq import margin_spec
from cerdeq.bounds import Context, Interval, Program, propagate
from cerdeq.bounds.batch_sizes import examples_in_cache
from cerdeq.boxes import outward_ends
from harness.attacks.counterexamples import corners, decode, encode, move_inside, pack
from harness.attacks.objectives import margins
from harness.attacks.pgd import worst_point
from harness.common import names
from harness.common.names import Verdict
from harness.evaluation.batch import Batch, Proofs, StageResult, verdict_where
from harness.evaluation.network import PreparedNetwork
from harness.settings import Evaluation


@dataclass(frozen=True)
class ProvedPoints:
    """Points of the exact balls of n examples.

    margins: the smallest margin at each, [n]; below 0, a proved upper bound. levels: int16 [n, C, H, W], the points'
    short forms. as_they_are: by the example's place among the n, points in float64, of which the short form proves
    nothing.
    """

    margins: Tensor
    levels: Tensor
    as_they_are: dict[int, Tensor]


def attack_batch(batch: Batch, proved: Tensor) -> StageResult:
    """Attack the undecided examples.

    Args:
        proved: bool [B], the examples that IBP certifies. They get the weakest attack.
    """
    config, undecided = batch.config, batch.undecided
    weakest = config.evaluation.replace(attack="margin", attack_restarts=1)  # a check of the bound: it finds only bugs
    attack_margin, levels = batch.nan(), torch.zeros_like(batch.images, dtype=torch.int16)
    as_they_are = dict[int, Tensor]()
    for targets, settings in ((undecided & ~proved, config.evaluation), (undecided & proved, weakest)):

        def ask(examples: Tensor, settings: Evaluation = settings) -> ProvedPoints:
            x, labels = batch.images[examples], batch.labels[examples]
            indices, model = batch.first + examples, batch.network.attack_model
            points = worst_point(model, x.float(), labels, config.eps, settings, config.seed, indices)
            return prove_points(batch, examples, points)

        for examples, found in batch.ledger.answers(names.ATTACK, ask, targets.nonzero()[:, 0]):
            attack_margin[examples], levels[examples] = found.margins, found.levels
            as_they_are |= {int(examples[place]): point for place, point in found.as_they_are.items()}

    verdicts = verdict_where(attack_margin < 0, Verdict.FALSIFIED)
    proofs = counterexamples(batch, names.ATTACK, [*verdicts], levels, as_they_are)
    return StageResult(verdicts, batch.nan(), attack_margin, proofs=proofs)


def counterexamples(
    batch: Batch, stage: str, falsified: list[int], levels: Tensor, as_they_are: dict[int, Tensor]
) -> Proofs:  # fmt: skip
    """Return the counterexamples to store of the examples that a stage falsified, by their numbers.

    If the nearest corner of the ball is proved adversarial, too, it is stored: it takes a 16th of the bytes. Otherwise,
    and if corners cannot be tried, the stage's own point is.

    levels, as_they_are: as in `ProvedPoints`, of all examples.
    """

    def ask(examples: Tensor) -> Tensor:
        return prefer_corners(batch, examples, levels[examples])

    short = torch.tensor([example for example in falsified if example not in as_they_are], device=levels.device).long()
    stored = levels.clone()
    for examples, k in batch.ledger.answers(stage, ask, short):
        stored[examples] = k
    forms = {example: point.cpu() for example, point in as_they_are.items()}
    forms |= dict(zip(short.tolist(), map(pack, stored[short].cpu()), strict=True))
    return {str(batch.first + example): forms[example] for example in falsified}


def prove_points(batch: Batch, examples: Tensor, points: Tensor) -> ProvedPoints:
    """Return the points [n, C, H, W] of these examples [n], moved into their exact balls, in a form that proves most.

    That is the short form, if it falsifies the example or nothing does.
    """
    x, labels, eps = batch.images[examples], batch.labels[examples], batch.config.eps
    levels = encode(points, x, eps)
    smallest = margins_at(batch.network, decode(levels, x, eps), labels)
    left = (~(smallest < 0)).nonzero()[:, 0]
    if not len(left):
        return ProvedPoints(smallest, levels, {})
    inside = move_inside(points[left], x[left], eps)
    at_points = margins_at(batch.network, inside, labels[left])
    smallest[left] = torch.where(at_points < 0, at_points, smallest[left])
    kept = zip(left.tolist(), inside, at_points.tolist(), strict=True)
    return ProvedPoints(smallest, levels, {place: point.clone() for place, point, margin in kept if margin < 0})


def prefer_corners(batch: Batch, examples: Tensor, k: Tensor) -> Tensor:
    """Return k of examples, int16 [n, C, H, W], replaced by the nearest corner where that is proved adversarial."""
    x, eps = batch.images[examples], batch.config.eps
    at_corners = corners(k, x, eps)
    proved = margins_at(batch.network, decode(at_corners, x, eps), batch.labels[examples]) < 0
    return torch.where(proved.view(-1, 1, 1, 1), at_corners, k)


@torch.no_grad()
def margins_at(network: PreparedNetwork, points: Tensor, labels: Tensor) -> Tensor:
    """Return the smallest margins [B] at points [B, C, H, W] in float64; below 0, their proved upper bounds."""
    logits = network.model(points)
    smallest, classes = margins(logits, labels), logits.shape[1]
    below = (smallest < 0).nonzero()[:, 0]
    if len(below):
        size = examples_in_cache(network.program, Interval(points, torch.zeros_like(points)))
        smallest[below] = torch.cat(
            [upper_margins(network.program, points[part], labels[part], classes) for part in below.split(size)]
        )
    return smallest


@torch.no_grad()
def upper_margins(program: Program, points: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return proved upper bounds [B] of the smallest margins at points, with rounding and solvers' errors counted."""
    exactly = Interval(points, torch.zeros_like(points))
    output = propagate(program, exactly, Context(sound=True), margin_spec(labels, classes))
    return outward_ends(output.box)[1].amin(1)
