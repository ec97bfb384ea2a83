"""The attack of an evaluation: a search in float32, whose points count only where float64 proves them adversarial."""

import torch
from torch import Tensor

from cerdeq import margin_spec
from cerdeq.bounds import Context, Interval, Program, propagate
from cerdeq.bounds.batch_sizes import examples_in_cache
from cerdeq.boxes import outward_ends
from cerdeq.branch.attack import attack
from harness.attacks.counterexamples import corners, decode, encode, move_inside, pack
from harness.attacks.objectives import margins
from harness.attacks.pgd import worst_point
from harness.common import names
from harness.evaluation.batch import Batch
from harness.evaluation.ledger import Proofs, StageResult, verdict_where
from harness.evaluation.network import PreparedNetwork
from harness.settings import Evaluation


def attack_batch(batch: Batch, proved: Tensor) -> StageResult:
    """Attack the undecided examples.

    Args:
        proved: bool [B], the examples that IBP certifies. They get the weakest attack.
    """
    evaluation, undecided = batch.evaluation, batch.undecided
    weakest = evaluation.replace(attack="margin", attack_restarts=1)  # a check of the bound: it finds only bugs
    attack_margin, k_of = batch.nan(), torch.zeros_like(batch.images, dtype=torch.int16)
    for targets, settings in ((undecided & ~proved, evaluation), (undecided & proved, weakest)):

        def ask(examples: Tensor, settings: Evaluation = settings) -> tuple[Tensor, Tensor]:
            x, labels = batch.images[examples], batch.labels[examples]
            indices, model = batch.first + examples, batch.network.attack_model
            points = worst_point(model, x.float(), labels, evaluation.eps, settings, batch.seed, indices)
            return margins_as_stored(batch, examples, points)

        for examples, (margin, k) in batch.ledger.answers(names.ATTACK, ask, targets.nonzero()[:, 0]):
            attack_margin[examples], k_of[examples] = margin, k

    def diversify(example: Tensor) -> tuple[Tensor, Tensor] | None:
        network, (ball, spec) = batch.network, batch.query(example)
        point = attack(network.program, network.program_float32, Interval(ball.center, ball.radius), spec[0])
        return None if point is None else margins_as_stored(batch, example, point)

    if evaluation.attack == "diversified":
        for example in (undecided & ~proved & ~(attack_margin < 0)).nonzero():
            for _, found in batch.ledger.answers(names.ATTACK, diversify, example):
                if found is not None and found[0] < 0:
                    attack_margin[example], k_of[example] = found

    verdicts = verdict_where(attack_margin < 0, names.FALSIFIED)
    proofs = counterexamples(batch, names.ATTACK, [*verdicts], k_of)
    return StageResult(verdicts, batch.nan(), attack_margin, proofs=proofs)


def counterexamples(batch: Batch, stage: str, falsified: list[int], k_of: Tensor) -> Proofs:
    """Return the counterexamples to store of examples that a stage falsified, by their numbers.

    If the nearest corner of the ball is proved adversarial, too, it is stored: it takes a 16th of the bytes. Otherwise,
    and if corners cannot be tried, the stage's own point is, k_of: int16 [B, C, H, W].
    """

    def ask(examples: Tensor) -> Tensor:
        return prefer_corners(batch, examples, k_of[examples])

    stored, numbers = k_of.clone(), torch.tensor(falsified, dtype=torch.long).to(k_of.device, non_blocking=True)
    for examples, k in batch.ledger.answers(stage, ask, numbers):
        stored[examples] = k
    indices = [str(batch.first + number) for number in falsified]
    return dict(zip(indices, map(pack, stored[numbers].cpu()), strict=True))


def margins_as_stored(batch: Batch, examples: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the examples' smallest margins [n] at points [n, C, H, W], rounded to k, and these k, int16."""
    x, eps = batch.images[examples], batch.evaluation.eps
    k = encode(points, x, eps)
    return margins_at(batch.network, decode(k, x, eps), batch.labels[examples]), k


def margins_inside(batch: Batch, examples: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the examples' smallest margins [n] at points moved into the exact balls, and these points in float64."""
    inside = move_inside(points, batch.images[examples], batch.evaluation.eps)
    return margins_at(batch.network, inside, batch.labels[examples]), inside


def prefer_corners(batch: Batch, examples: Tensor, k: Tensor) -> Tensor:
    """Return k of examples, int16 [n, C, H, W], replaced by the nearest corner where that is proved adversarial."""
    x, eps = batch.images[examples], batch.evaluation.eps
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
