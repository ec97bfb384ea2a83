"""Verdicts: one row a test example, decided by the first stage that can."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from baselines import DATASETS
from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import Context, Interval, Program, lower_bounds, propagate, trace
from cerdeq.bounds.memory import examples_in_cache
from cerdeq.bounds.narrow import in_float32
from cerdeq.boxes import Box, outward_ends
from cerdeq.equilibrium import follow
from harness.attacks.counterexamples import decode, encode
from harness.attacks.objectives import margins
from harness.attacks.pgd import worst_point
from harness.config.buildable import needs_linear
from harness.config.settings import BAB, CERTIFIED_BY_SEARCH, EvaluationSettings
from harness.config.trial import TrialConfig
from harness.evaluation.branching import branch_and_bound, certificates
from harness.evaluation.evidence import Evidence
from harness.evaluation.ledger import Ledger, SoundnessError, timed
from harness.storage import names

IBP = "ibp"
CLEAN, ATTACK = "clean", "attack"  # stages before the verifier's
NOT_KNOWN = -1  # the prediction of an example whose clean margins cannot be computed
_TENSORS = ("lower", "width", "clean", "clean_lower")  # fields of Bounds
_BRANCHED_AT_ONCE = 20  # images, where each may take a minute: what is kept is kept after a batch


@dataclass(frozen=True)
class Bounds:
    """IBP of B examples: of the margins, [B, K - 1] over the other classes in order, and of the layers before them.

    lower, width, clean: the margins' lower bounds, the widths of their intervals, and their clean values.
    clean_lower: proved lower bounds of the clean values, which a solver finds with an error.
    layers: what the bounds of each pre-activation are, by metrics' names: mean width, inactive and unstable values.
    seconds: what each stage took.
    """

    lower: Tensor
    width: Tensor
    clean: Tensor
    clean_lower: Tensor
    layers: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)

    def prediction(self, labels: Tensor) -> Tensor:
        """The predicted class [B]: the label where all clean margins are proved positive, else the least one's."""
        least, other = self.clean_lower.min(1)
        return torch.where(least > 0, labels, other + (other >= labels))


@dataclass(frozen=True)
class Judgement:
    """What a network was found to do.

    verdicts: a row an example, columns as in harness.storage.names.
    layers: as in Bounds, over all examples.
    clean_mean, clean_spread: mean and standard deviation of all clean margins.
    seconds: what each stage took.
    evidence: counterexamples, int16 [C, H, W] for harness.attacks.counterexamples, and certificates.
    """

    verdicts: pd.DataFrame
    layers: dict[str, float]
    clean_mean: float
    clean_spread: float
    seconds: dict[str, float]
    evidence: Evidence


@dataclass(frozen=True)
class Ready:
    """A network as judging needs it: float64, in evaluation mode; its program; that in float32; what attacks search."""

    model: nn.Module
    program: Program
    narrow: Program | None
    follower: nn.Module


def ready(model: nn.Module, stages: tuple[str, ...]) -> Ready:
    """The network made ready for the verifier's stages. model: float64, in evaluation mode."""
    linear = needs_linear(stages)
    return Ready(model, trace(model, linear), in_float32(model, linear), searcher(model))


@torch.no_grad()
def bound_margins(program: Program, x: Tensor, labels: Tensor, classes: int, eps: Fraction) -> Bounds:
    """Sound IBP bounds and the clean values of the margins for x [B, C, H, W], pixels in [0, 1]."""
    size = examples_in_cache(program, Interval(x, torch.zeros_like(x)))
    return _joined(
        [_bound_margins(program, *part, classes, eps) for part in zip(x.split(size), labels.split(size), strict=True)]
    )


def _bound_margins(program: Program, x: Tensor, labels: Tensor, classes: int, eps: Fraction) -> Bounds:
    """`bound_margins` of all examples at once. The clean value is the centre of a point's proved box."""
    ball, ctx = LinfBall(x, eps), Context(sound=True)
    seconds: dict[str, float] = {}
    spec = margin_spec(labels, classes)
    with timed(seconds, IBP, x.device):
        output = propagate(program, Interval(ball.center, ball.radius), ctx, spec)
        lower, _ = outward_ends(output.box)
    with timed(seconds, CLEAN, x.device):
        point = propagate(program, Interval(x, torch.zeros_like(x)), Context(sound=True), spec)
        clean_lower, _ = outward_ends(point.box)
    layers = {k: value for name, box in ctx.preactivations.items() for k, value in _of_layer(name, box).items()}
    numbers = dict(zip(layers, torch.stack(list(layers.values())).tolist(), strict=True)) if layers else {}
    return Bounds(lower, 2 * output.radius, point.center, clean_lower, numbers, seconds)


def _of_layer(layer: str, box: Box) -> dict[str, Tensor]:
    """The mean width of a pre-activation, and the percentages of its values that are never, or perhaps, above 0."""
    low, high = outward_ends(box)
    return {
        names.layer_width(layer): 2 * box.radius.mean(),
        names.layer_inactive(layer): 100 * (high <= 0).double().mean(),
        names.layer_unstable(layer): 100 * ((low < 0) & (high > 0)).double().mean(),
    }


def _joined(parts: Sequence[Bounds]) -> Bounds:
    """The bounds of examples that were bounded in parts."""
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    layers = mean([part.layers for part in parts], [len(part.lower) for part in parts])
    return Bounds(**tensors, layers=layers, seconds=total(part.seconds for part in parts))


def mean(rows: Sequence[dict[str, float]], images: Sequence[int]) -> dict[str, float]:
    """The mean of each entry over rows, each of which stands for so many images; those without entries do not count."""
    known = [(row, count) for row, count in zip(rows, images, strict=True) if row]
    number = sum(count for _, count in known)
    return {name: sum(count / number * row[name] for row, count in known) for name in (known[0][0] if known else ())}


def total(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sum of each entry over rows, some of which may lack it."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums.update(row)
    return dict(sums)


def judge(model: nn.Module, images: Tensor, labels: Tensor, config: TrialConfig) -> Judgement:
    """Judge the network on images (uint8 [N, C, H, W]) with labels [N].

    model: float64, in evaluation mode. Predictions and bounds are float64, bounds rounded outwards; the attack
    searches in float32, and a point counts as adversarial only where it is proved to be. Raises SoundnessError.
    """
    return judge_part(ready(model, config.evaluation.stages), images, labels, 0, config)


def judge_part(network: Ready, images: Tensor, labels: Tensor, first: int, config: TrialConfig) -> Judgement:
    """`judge` of a part of the images, of which the first is number `first`. Raises SoundnessError.

    What comes out depends on these images alone.
    """
    batches = _batches(images, labels, config)
    parts = [_judged(network, x, y, first + start, config) for start, x, y in batches]
    tables, bounds, evidence = zip(*parts, strict=True)
    found = {name: tensor for each in evidence for name, tensor in each.items()}
    return _judgement(list(tables), list(bounds), found, config.evaluation.stages)


def _judgement(tables: list[pd.DataFrame], bounds: list[Bounds], found: Evidence, stages: tuple[str, ...]) -> Judgement:
    verdicts = pd.concat(tables, ignore_index=True)
    _refuse_contradictions(verdicts, stages)
    all_of_them = _joined(bounds)
    clean = all_of_them.clean[~all_of_them.clean.isnan()]
    spread = float(clean.std()) if len(clean) else 0.0
    return Judgement(verdicts, all_of_them.layers, float(clean.mean()), spread, all_of_them.seconds, found)


def _judged(
    network: Ready, x: Tensor, labels: Tensor, first: int, config: TrialConfig
) -> tuple[pd.DataFrame, Bounds, Evidence]:
    """A batch's rows of the table of verdicts, its bounds by IBP, and the evidence found."""
    stages, ledger = config.evaluation.stages, Ledger(len(labels))
    bounds, known = _clean_and_ibp(network, x, labels, config, ledger)
    prediction = torch.where(known, bounds.prediction(labels), NOT_KNOWN)
    ledger.decide(CLEAN, names.MISCLASSIFIED, known & (prediction != labels))
    given = x, labels, config, ledger, known
    least = {IBP: bounds.lower.amin(1)}
    attacked, evidence = _attack(network, first, least[IBP] > 0, *given)
    ledger.decide(ATTACK, names.ATTACKED, attacked < 0)
    ledger.decide(IBP, names.CERTIFIED, least[IBP] > 0)
    for stage in (stage for stage in stages if stage not in (IBP, BAB)):
        asked = ledger.open
        least[stage] = _least_margins(network, stage, *given)
        ledger.decide(stage, names.CERTIFIED, least[stage] > 0)
        if config.evaluation.certificates and stage in CERTIFIED_BY_SEARCH:
            evidence |= certificates(network.model, first, asked & ~ledger.open, *given[:4])
    branches = {}
    if BAB in stages:
        found = branch_and_bound(network.model, partial(_margins_at, network), first, *given)
        least[BAB], branches[names.BRANCHES] = found.least, found.branches
        attacked = torch.where(found.attacked.isnan(), attacked, found.attacked)
        evidence |= found.evidence
    columns = {
        **{names.margin_column(stage): margin for stage, margin in least.items()},
        **branches,
        names.ATTACK_MARGIN: attacked,
        names.WIDTH: bounds.width.mean(1),
    }
    numbers = torch.stack(list(columns.values())).cpu().numpy()  # at once: each copy makes the host of a GPU wait
    table = pd.DataFrame(
        {
            names.INDEX: range(first, first + len(labels)),
            names.LABEL: labels.cpu().numpy(),
            names.PREDICTION: prediction.cpu().numpy(),
            **dict(zip(columns, numbers, strict=True)),
            **ledger.columns(),
        }
    )
    return table, replace(bounds, seconds=total([bounds.seconds, ledger.seconds])), evidence


def _clean_and_ibp(
    network: Ready, x: Tensor, labels: Tensor, config: TrialConfig, ledger: Ledger
) -> tuple[Bounds, Tensor]:
    """IBP of the batch, and which examples [B] could be bounded: the others' are not numbers.

    Raises RuntimeError where none can be.
    """
    classes = DATASETS[config.dataset].classes

    def ask(of: Tensor) -> Bounds:
        return bound_margins(network.program, x[of], labels[of], classes, config.eps)

    found = ledger.answers(CLEAN, ask, torch.arange(len(labels), device=x.device))
    ledger.seconds.clear()  # the bounds tell IBP's from the clean solve's
    if not found and len(labels) > 1:
        raise RuntimeError(f"none of {len(labels)} images can be judged: {ledger.reason[0]}")
    known = torch.zeros_like(labels, dtype=torch.bool)
    tensors = {name: x.new_full((len(labels), classes - 1), torch.nan) for name in _TENSORS}
    for part, answer in found:
        known[part] = True
        for name, tensor in tensors.items():
            tensor[part] = getattr(answer, name)
    layers = mean([answer.layers for _, answer in found], [len(part) for part, _ in found])
    return Bounds(**tensors, layers=layers, seconds=total(answer.seconds for _, answer in found)), known


def errors_without_attack(model: nn.Module, images: Tensor, labels: Tensor, config: TrialConfig) -> tuple[float, float]:
    """Standard and IBP certified error of a float64 network, in percent."""
    program = trace(model)
    right = certified = 0
    for _, x, y in _batches(images, labels, config):
        batch = bound_margins(program, x, y, DATASETS[config.dataset].classes, config.eps)
        right += int((batch.prediction(y) == y).sum())
        certified += int((batch.lower > 0).all(1).sum())
    return 100 * (1 - right / len(images)), 100 * (1 - certified / len(images))


def images_at_once(settings: EvaluationSettings) -> int:
    """How many images are judged at a time."""
    return min(settings.batch_size, _BRANCHED_AT_ONCE) if BAB in settings.stages else settings.batch_size


def _batches(images: Tensor, labels: Tensor, config: TrialConfig) -> Iterator[tuple[int, Tensor, Tensor]]:
    size = images_at_once(config.evaluation)
    for start in range(0, len(images), size):
        yield start, images[start : start + size].double() / 255, labels[start : start + size]


def searcher(model: nn.Module) -> nn.Module:
    """The network as the attack searches with it: float32, its equilibria to a few digits."""
    follower = copy.deepcopy(model)
    follow(follower)
    return follower.float().requires_grad_(False)


def _attack(
    network: Ready, first: int, proved: Tensor, x: Tensor, labels: Tensor, config: TrialConfig, ledger: Ledger,
    known: Tensor,
) -> tuple[Tensor, Evidence]:  # fmt: skip
    """The margins [B] at the worst points found, and those points that are proved to be adversarial.

    first: the number of the first example. proved: [B], by IBP, which are attacked least. known: [B], which are to be
    asked at all. Not a number where the attack was not asked.
    """
    attacked = torch.full(labels.shape, torch.nan, dtype=torch.float64, device=x.device)
    found: Evidence = {}
    open_ = known & ledger.open.to(x.device, non_blocking=True)
    for rows, settings in ((open_ & ~proved, config.evaluation), (open_ & proved, _least_attack(config))):

        def ask(of: Tensor, settings: EvaluationSettings = settings) -> tuple[Tensor, Tensor]:
            points = _attacked(network.follower, x[of], labels[of], first + of, config, settings)
            return _margins_at(network, decode(points, x[of], config.eps), labels[of]), points

        for part, (margin, points) in ledger.answers(ATTACK, ask, rows.nonzero()[:, 0]):
            attacked[part] = margin
            broken = (margin < 0).nonzero()[:, 0]
            if len(broken):
                kept_points = [k.clone() for k in points[broken].cpu()]  # files hold no views
                found |= dict(zip(map(str, (first + part[broken]).tolist()), kept_points, strict=True))
    return attacked, found


def _least_attack(config: TrialConfig) -> EvaluationSettings:
    """The attack on what IBP proved: a check of the bound, that can find nothing but an error."""
    return replace(config.evaluation, attack="margin", attack_restarts=1)


def _attacked(
    follower: nn.Module, x: Tensor, labels: Tensor, indices: Tensor, config: TrialConfig, settings: EvaluationSettings
) -> Tensor:
    """The worst points that the float32 search found, as they are kept."""
    points = worst_point(follower, x.float(), labels, config.eps, settings, config.seed, indices)
    return encode(points, x, config.eps)


@torch.no_grad()
def _margins_at(network: Ready, points: Tensor, labels: Tensor) -> Tensor:
    """The least margins [B] of the float64 network at points; where they are below 0, their proved upper bounds."""
    logits = network.model(points)
    least, classes = margins(logits, labels), logits.shape[1]
    below = (least < 0).nonzero()[:, 0]
    if len(below):
        size = examples_in_cache(network.program, Interval(points, torch.zeros_like(points)))
        least[below] = torch.cat(
            [upper_margins(network.program, points[part], labels[part], classes) for part in below.split(size)]
        )
    return least


@torch.no_grad()
def upper_margins(program: Program, points: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Proved upper bounds [B] of the least margins at points [B, C, H, W], rounding and equilibria's errors counted."""
    exactly = Interval(points, torch.zeros_like(points))
    output = propagate(program, exactly, Context(sound=True), margin_spec(labels, classes))
    return outward_ends(output.box)[1].amin(1)


def _least_margins(
    network: Ready, stage: str, x: Tensor, labels: Tensor, config: TrialConfig, ledger: Ledger, known: Tensor
) -> Tensor:
    """The least margin's lower bound [B] by a stage, of the examples that it and those before left open.

    known: [B], which are to be asked at all. Not a number where the stage was not asked.
    """

    def ask(of: Tensor) -> Tensor:
        ball = LinfBall(x[of], config.eps)
        spec = margin_spec(labels[of], DATASETS[config.dataset].classes).to(x)
        region = Interval(ball.center, ball.radius)
        return lower_bounds(network.program, region, spec, stage, 0.0, narrow=network.narrow).amin(1)

    return ledger.figures(stage, ask, known & ledger.open.to(x.device, non_blocking=True))


def _refuse_contradictions(verdicts: pd.DataFrame, stages: tuple[str, ...]) -> None:
    refuted = (verdicts[names.VERDICT] == names.MISCLASSIFIED) | (verdicts[names.ATTACK_MARGIN] < 0)
    proofs = [names.margin_column(stage) for stage in stages]
    contradicted = refuted & (verdicts[proofs] > 0).any(axis=1)
    if contradicted.any():
        examples = verdicts.loc[contradicted, names.INDEX].tolist()
        raise SoundnessError(
            f"certified and refuted all the same: test examples {examples[:10]}, {len(examples)} in all"
        )
