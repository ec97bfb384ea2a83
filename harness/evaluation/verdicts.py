"""Verdicts: one row a test example, from the cheapest stage that decides it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import pandas as pd
import torch
from torch import Tensor, nn

from baselines import DATASETS
from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import Context, Interval, Program, lower_bounds, propagate, trace
from cerdeq.boxes import outward_ends
from harness import names
from harness.evaluation.attack import attack, margins
from harness.settings import TrialConfig, parse_eps

IBP = "ibp"


class SoundnessError(AssertionError):
    """An example is certified and yet misclassified or broken: a bound is wrong, and no number here can be trusted."""


@dataclass(frozen=True)
class Bounds:
    """Of B examples: the margins' lower bounds, widths and clean values, [B, K - 1] over the other classes in order.

    clean_lower: proved lower bounds of the clean values, which a solver finds with an error. layers: the mean width of
    each pre-activation.
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
    """verdicts: a row an example, columns as in harness.names. layers: mean width of each pre-activation over all
    examples. clean_spread: standard deviation of all clean margins."""

    verdicts: pd.DataFrame
    layers: dict[str, float]
    clean_spread: float


@torch.no_grad()
def bound_margins(program: Program, x: Tensor, labels: Tensor, classes: int, eps: Fraction) -> Bounds:
    """Sound IBP bounds and the clean values of the margins for x [B, C, H, W], pixels in [0, 1]."""
    ball = LinfBall(x, eps)
    ctx = Context(sound=True)
    spec = margin_spec(labels, classes)
    output = propagate(program, Interval(ball.center, ball.radius, x), ctx, spec)
    lower, _ = outward_ends(output.box)
    point = propagate(program, Interval(x, torch.zeros_like(x)), Context(sound=True), spec)
    clean_lower, _ = outward_ends(point.box)
    layers = {name: 2 * float(box.radius.mean()) for name, box in ctx.preactivations.items()}
    return Bounds(lower, 2 * output.radius, output.clean_value(), clean_lower, layers)


def judge(model: nn.Module, images: Tensor, labels: Tensor, config: TrialConfig) -> Judgement:
    """Judge the network on images (uint8 [N, C, H, W]) with labels [N].

    model: float64, in evaluation mode. Predictions and bounds are float64, bounds rounded outwards; the attack
    searches in float32, and a point counts as adversarial only where the float64 network agrees. Raises SoundnessError.
    """
    methods = config.evaluation.methods
    program, searcher = trace(model, linear=methods != (IBP,)), copy.deepcopy(model).float()
    generator = torch.Generator().manual_seed(config.seed)
    tables, bounds = [], []
    for start, x, y in _batches(images, labels, config):
        batch = bound_margins(program, x, y, DATASETS[config.dataset].classes, parse_eps(config.eps))
        prediction = batch.prediction(y)
        attacked = torch.full(y.shape, torch.nan, dtype=x.dtype, device=x.device)
        right = prediction == y
        if bool(right.any()):
            attacked[right] = _attacked_margins(model, searcher, x[right], y[right], config, generator)
        least = {IBP: batch.lower.amin(1)} | _proofs(program, x, y, config, batch.lower.amin(1), attacked)
        tables.append(_table(start, y, prediction, attacked, least, batch.width))
        bounds.append(batch)
    verdicts = pd.concat(tables, ignore_index=True)
    _refuse_contradictions(verdicts)
    shares = [len(batch.lower) / len(images) for batch in bounds]
    layers = {
        name: sum(share * batch.layers[name] for share, batch in zip(shares, bounds, strict=True))
        for name in bounds[0].layers
    }
    return Judgement(verdicts, layers, float(torch.cat([batch.clean for batch in bounds]).std()))


def errors_without_attack(model: nn.Module, images: Tensor, labels: Tensor, config: TrialConfig) -> tuple[float, float]:
    """Standard and IBP certified error of a float64 network, in percent."""
    program = trace(model)
    right = certified = 0
    for _, x, y in _batches(images, labels, config):
        batch = bound_margins(program, x, y, DATASETS[config.dataset].classes, parse_eps(config.eps))
        right += int((batch.prediction(y) == y).sum())
        certified += int((batch.lower > 0).all(1).sum())
    return 100 * (1 - right / len(images)), 100 * (1 - certified / len(images))


def _batches(images: Tensor, labels: Tensor, config: TrialConfig) -> Iterator[tuple[int, Tensor, Tensor]]:
    size = config.evaluation.batch_size
    for start in range(0, len(images), size):
        yield start, images[start : start + size].double() / 255, labels[start : start + size]


def _attacked_margins(
    model: nn.Module, searcher: nn.Module, x: Tensor, labels: Tensor, config: TrialConfig, generator: torch.Generator
) -> Tensor:
    """The float64 network's margin at the worst point that the float32 search found, moved into the exact ball."""
    eps, settings = parse_eps(config.eps), config.evaluation
    steps, restarts = settings.attack_steps, settings.attack_restarts
    point = attack(searcher, x.float(), labels, eps, steps, restarts, generator).double()
    point = torch.minimum(torch.maximum(point, x - float(eps)), x + float(eps)).clamp(0, 1)
    with torch.no_grad():
        return margins(model(point), labels)


def _proofs(
    program: Program, x: Tensor, labels: Tensor, config: TrialConfig, lower: Tensor, attacked: Tensor
) -> dict[str, Tensor]:
    """The least margin's lower bound [B] by each method after IBP, where right, not broken and not proved before.

    lower: by IBP. Not a number where the method was not asked.
    """
    eps, classes = parse_eps(config.eps), DATASETS[config.dataset].classes
    found, unproved = {}, (attacked >= 0) & ~(lower > 0)
    for method in config.evaluation.methods[1:]:
        least = torch.full_like(lower, torch.nan)
        if bool(unproved.any()):
            ball = LinfBall(x[unproved], eps)
            spec = margin_spec(labels[unproved], classes).to(x)
            region = Interval(ball.center, ball.radius)
            least[unproved] = lower_bounds(program, region, spec, method, target=0.0).amin(1)
        unproved = unproved & ~(least > 0)
        found[method] = least
    return found


def _table(
    start: int, labels: Tensor, prediction: Tensor, attacked: Tensor, least: dict[str, Tensor], width: Tensor
) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            names.INDEX: range(start, start + len(labels)),
            names.LABEL: labels.cpu().numpy(),
            names.PREDICTION: prediction.cpu().numpy(),
            **{names.margin_column(method): margin.cpu().numpy() for method, margin in least.items()},
            names.ATTACK_MARGIN: attacked.cpu().numpy(),
            names.WIDTH: width.mean(1).cpu().numpy(),
        }
    )
    wrong = frame[names.PREDICTION] != frame[names.LABEL]
    broken = frame[names.ATTACK_MARGIN] < 0
    proved = [(frame[names.margin_column(method)] > 0, names.CERTIFIED, method) for method in least]
    stages = [(wrong, names.MISCLASSIFIED, "clean"), (broken, names.FALSIFIED, "attack"), *proved]
    frame[names.VERDICT], frame[names.STAGE] = names.UNKNOWN, "none"
    for where, verdict, stage in reversed(stages):
        frame.loc[where, [names.VERDICT, names.STAGE]] = verdict, stage
    return frame


def _refuse_contradictions(verdicts: pd.DataFrame) -> None:
    refuted = verdicts[names.VERDICT].isin([names.MISCLASSIFIED, names.FALSIFIED])
    proofs = [column for column in verdicts if column.startswith(names.margin_column(""))]
    contradicted = refuted & (verdicts[proofs] > 0).any(axis=1)
    if contradicted.any():
        examples = verdicts.loc[contradicted, names.INDEX].tolist()
        raise SoundnessError(
            f"certified and refuted all the same: test examples {examples[:10]}, {len(examples)} in all"
        )
