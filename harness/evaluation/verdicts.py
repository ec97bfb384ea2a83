"""Verdicts: one row a test example, decided by the first stage that can."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from baselines import DATASETS
from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import BOUNDS, Context, Interval, Program, lower_bounds, propagate, trace
from cerdeq.bounds.memory import examples_in_cache
from cerdeq.bounds.narrow import in_float32
from cerdeq.boxes import outward_ends
from cerdeq.equilibrium import follow
from harness.attacks.counterexamples import decode, encode
from harness.attacks.objectives import margins
from harness.attacks.pgd import worst_point
from harness.config.settings import EvaluationSettings
from harness.config.trial import TrialConfig
from harness.evaluation.kept import KeptBatches
from harness.storage import names

IBP = "ibp"
CLEAN, ATTACK, NO_STAGE = "clean", "attack", "none"  # stages beside the verifier's


class SoundnessError(AssertionError):
    """An example is certified and yet misclassified or broken: a bound is wrong, and no number here can be trusted."""


@dataclass(frozen=True)
class Bounds:
    """IBP of B examples: of the margins, [B, K - 1] over the other classes in order, and of the layers before them.

    lower, width, clean: the margins' lower bounds, the widths of their intervals, and their clean values.
    clean_lower: proved lower bounds of the clean values, which a solver finds with an error.
    layers: the mean width of each pre-activation.
    """

    lower: Tensor
    width: Tensor
    clean: Tensor
    clean_lower: Tensor
    layers: dict[str, float]

    def prediction(self, labels: Tensor) -> Tensor:
        """The predicted class [B]: the label where all clean margins are proved positive, else the least one's."""
        least, other = self.clean_lower.min(1)
        return torch.where(least > 0, labels, other + (other >= labels))


@dataclass(frozen=True)
class Judgement:
    """What a network was found to do.

    verdicts: a row an example, columns as in harness.storage.names.
    layers: mean width of each pre-activation over all examples.
    clean_spread: standard deviation of all clean margins.
    counterexamples: int16 [C, H, W] of each falsified example, by its index, for harness.attacks.counterexamples.
    """

    verdicts: pd.DataFrame
    layers: dict[str, float]
    clean_spread: float
    counterexamples: dict[int, Tensor]


@torch.no_grad()
def bound_margins(program: Program, x: Tensor, labels: Tensor, classes: int, eps: Fraction) -> Bounds:
    """Sound IBP bounds and the clean values of the margins for x [B, C, H, W], pixels in [0, 1]."""
    size = examples_in_cache(program, Interval(x, torch.zeros_like(x)))
    parts = [
        _bound_margins(program, *part, classes, eps) for part in zip(x.split(size), labels.split(size), strict=True)
    ]
    lower, width, clean, clean_lower, layers = zip(*parts, strict=True)
    shares = [len(part) / len(x) for part in lower]
    return Bounds(torch.cat(lower), torch.cat(width), torch.cat(clean), torch.cat(clean_lower), _mean(layers, shares))


def _bound_margins(
    program: Program, x: Tensor, labels: Tensor, classes: int, eps: Fraction
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
    """The fields of `Bounds`, all examples at once. The clean value is the centre of a point's proved box."""
    ball = LinfBall(x, eps)
    ctx = Context(sound=True)
    spec = margin_spec(labels, classes)
    output = propagate(program, Interval(ball.center, ball.radius), ctx, spec)
    lower, _ = outward_ends(output.box)
    point = propagate(program, Interval(x, torch.zeros_like(x)), Context(sound=True), spec)
    clean_lower, _ = outward_ends(point.box)
    layers = {name: 2 * float(box.radius.mean()) for name, box in ctx.preactivations.items()}
    return lower, 2 * output.radius, point.center, clean_lower, layers


def _mean(rows: Sequence[dict[str, float]], shares: Sequence[float]) -> dict[str, float]:
    """The mean of each entry over rows, which count by their shares of all examples."""
    return {name: sum(share * row[name] for share, row in zip(shares, rows, strict=True)) for name in rows[0]}


def judge(
    model: nn.Module, images: Tensor, labels: Tensor, config: TrialConfig, kept: KeptBatches | None = None
) -> Judgement:
    """Judge the network on images (uint8 [N, C, H, W]) with labels [N], going on from the batches that are kept.

    model: float64, in evaluation mode. Predictions and bounds are float64, bounds rounded outwards; the attack
    searches in float32, and a point counts as adversarial only where it is proved to be. Raises SoundnessError.
    """
    stages = config.evaluation.stages
    linear = any(BOUNDS[stage].linear for stage in stages)
    program, narrow = trace(model, linear), in_float32(model, linear)
    follower = searcher(model)
    tables, known, found = ([], [], {}) if kept is None else kept.restored()
    bounds = [Bounds(**fields) for fields in known]
    for start, x, y in _batches(images, labels, config, sum(map(len, tables))):
        batch = bound_margins(program, x, y, DATASETS[config.dataset].classes, config.eps)
        prediction = batch.prediction(y)
        right = prediction == y
        least = {IBP: batch.lower.amin(1)}
        attacked = torch.full(y.shape, torch.nan, dtype=x.dtype, device=x.device)
        proved, indices = least[IBP] > 0, torch.arange(start, start + len(y), device=x.device)
        for rows, settings in ((right & ~proved, config.evaluation), (right & proved, _least_attack(config))):
            if bool(rows.any()):
                points = _attacked(follower, x[rows], y[rows], indices[rows], config, settings)
                point = decode(points, x[rows], config.eps)
                attacked[rows] = _margins_at(model, program, point, y[rows], DATASETS[config.dataset].classes)
                broken = attacked[rows] < 0
                kept_points = [k.clone() for k in points[broken].cpu()]  # files hold no views
                found |= dict(zip(indices[rows][broken].tolist(), kept_points, strict=True))
        unbroken = right & ~(attacked < 0)
        least |= _later_stages(program, narrow, x, y, config, unbroken & ~(least[IBP] > 0))
        examples = pd.DataFrame(
            {
                names.INDEX: range(start, start + len(y)),
                names.LABEL: y.cpu().numpy(),
                names.PREDICTION: prediction.cpu().numpy(),
                **{names.margin_column(stage): margin.cpu().numpy() for stage, margin in least.items()},
                names.ATTACK_MARGIN: attacked.cpu().numpy(),
                names.WIDTH: batch.width.mean(1).cpu().numpy(),
            }
        )
        tables.append(_with_verdicts(examples, stages))
        bounds.append(batch)
        if kept is not None:
            kept.after_batch(tables, bounds, found)
    verdicts = pd.concat(tables, ignore_index=True)
    _refuse_contradictions(verdicts, stages)
    shares = [len(batch.lower) / len(images) for batch in bounds]
    layers = _mean([batch.layers for batch in bounds], shares)
    return Judgement(verdicts, layers, float(torch.cat([batch.clean for batch in bounds]).std()), found)


def errors_without_attack(model: nn.Module, images: Tensor, labels: Tensor, config: TrialConfig) -> tuple[float, float]:
    """Standard and IBP certified error of a float64 network, in percent."""
    program = trace(model)
    right = certified = 0
    for _, x, y in _batches(images, labels, config):
        batch = bound_margins(program, x, y, DATASETS[config.dataset].classes, config.eps)
        right += int((batch.prediction(y) == y).sum())
        certified += int((batch.lower > 0).all(1).sum())
    return 100 * (1 - right / len(images)), 100 * (1 - certified / len(images))


def _batches(
    images: Tensor, labels: Tensor, config: TrialConfig, first: int = 0
) -> Iterator[tuple[int, Tensor, Tensor]]:
    size = config.evaluation.batch_size
    for start in range(first, len(images), size):
        yield start, images[start : start + size].double() / 255, labels[start : start + size]


def searcher(model: nn.Module) -> nn.Module:
    """The network as the attack searches with it: float32, its equilibria to a few digits."""
    follower = copy.deepcopy(model)
    follow(follower)
    return follower.float().requires_grad_(False)


def _least_attack(config: TrialConfig) -> EvaluationSettings:
    """The attack on what IBP proved: a check of the bound, that can find nothing but an error."""
    return dataclasses.replace(config.evaluation, attack="margin", attack_restarts=1)


def _attacked(
    follower: nn.Module, x: Tensor, labels: Tensor, indices: Tensor, config: TrialConfig, settings: EvaluationSettings
) -> Tensor:
    """The worst points that the float32 search found, as they are kept."""
    points = worst_point(follower, x.float(), labels, config.eps, settings, config.seed, indices)
    return encode(points, x, config.eps)


@torch.no_grad()
def _margins_at(model: nn.Module, program: Program, points: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The least margins [B] of the float64 network at points; where they are below 0, their proved upper bounds."""
    least = margins(model(points), labels)
    below = (least < 0).nonzero()[:, 0]
    if len(below):
        size = examples_in_cache(program, Interval(points, torch.zeros_like(points)))
        least[below] = torch.cat(
            [upper_margins(program, points[part], labels[part], classes) for part in below.split(size)]
        )
    return least


@torch.no_grad()
def upper_margins(program: Program, points: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Proved upper bounds [B] of the least margins at points [B, C, H, W], rounding and equilibria's errors counted."""
    exactly = Interval(points, torch.zeros_like(points))
    output = propagate(program, exactly, Context(sound=True), margin_spec(labels, classes))
    return outward_ends(output.box)[1].amin(1)


def _later_stages(
    program: Program, narrow: Program | None, x: Tensor, labels: Tensor, config: TrialConfig, unproved: Tensor
) -> dict[str, Tensor]:
    """The least margin's lower bound [B] by each stage after IBP, of the examples that it and those before left open.

    unproved: [B], which IBP left open. Not a number where a stage was not asked.
    """
    least = {}
    for stage in config.evaluation.stages[1:]:
        least[stage] = torch.full(x.shape[:1], torch.nan, dtype=x.dtype, device=x.device)
        if bool(unproved.any()):
            ball = LinfBall(x[unproved], config.eps)
            spec = margin_spec(labels[unproved], DATASETS[config.dataset].classes).to(x)
            region = Interval(ball.center, ball.radius)
            least[stage][unproved] = lower_bounds(program, region, spec, stage, 0.0, narrow=narrow).amin(1)
        unproved = unproved & ~(least[stage] > 0)
    return least


def _with_verdicts(examples: pd.DataFrame, stages: tuple[str, ...]) -> pd.DataFrame:
    """The examples with their verdicts: each has that of the first line here that holds."""
    decisions = [
        (names.MISCLASSIFIED, CLEAN, examples[names.PREDICTION] != examples[names.LABEL]),
        (names.FALSIFIED, ATTACK, examples[names.ATTACK_MARGIN] < 0),
        *((names.CERTIFIED, stage, examples[names.margin_column(stage)] > 0) for stage in stages),
        (names.UNKNOWN, NO_STAGE, pd.Series(True, examples.index)),
    ]
    verdicts, deciding, holds = zip(*decisions, strict=True)
    return examples.assign(
        **{names.VERDICT: np.select(holds, verdicts, ""), names.STAGE: np.select(holds, deciding, "")}
    )


def _refuse_contradictions(verdicts: pd.DataFrame, stages: tuple[str, ...]) -> None:
    refuted = verdicts[names.VERDICT].isin([names.MISCLASSIFIED, names.FALSIFIED])
    proofs = [names.margin_column(stage) for stage in stages]
    contradicted = refuted & (verdicts[proofs] > 0).any(axis=1)
    if contradicted.any():
        examples = verdicts.loc[contradicted, names.INDEX].tolist()
        raise SoundnessError(
            f"certified and refuted all the same: test examples {examples[:10]}, {len(examples)} in all"
        )
