"""The evaluation of a network: one verdict for each example, from the first stage that can decide it."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cerdeq import LinfBall
from cerdeq.bounds import refuse_another_function
from cerdeq.equilibrium import NotConvergedError
from harness.common import names
from harness.evaluation.attack import attack_batch
from harness.evaluation.batch import Batch
from harness.evaluation.equilibria import Recurrence, observe_recurrence
from harness.evaluation.ibp import bound_batch
from harness.evaluation.ledger import Ledger, Proofs, SoundnessError, StageResult, verdict_where
from harness.evaluation.network import PreparedNetwork
from harness.evaluation.stages import FUNCTIONS
from harness.evaluation.taken_over import Answers, TakenOver, answers_taken_over, find_contradictions
from harness.settings import Evaluation


@dataclass(frozen=True)
class EvaluationResult:
    """The verdicts on a network and what they rest on.

    verdicts: a row for each example, columns as in harness.common.names.
    layers: as in Bounds, over all examples.
    clean_mean, clean_spread: mean and standard deviation of all clean margins.
    seconds: the seconds of each stage.
    proofs: counterexamples, as harness.attacks.counterexamples says, and certificates.
    recurrence: what equilibria do.
    """

    verdicts: pd.DataFrame
    layers: dict[str, float]
    clean_mean: float
    clean_spread: float
    seconds: dict[str, float]
    proofs: Proofs
    recurrence: Recurrence = field(default_factory=Recurrence)


def evaluate_images(
    network: PreparedNetwork,
    images: Tensor,
    labels: Tensor,
    first: int,
    evaluation: Evaluation,
    seed: int = 0,
    others: Sequence[Answers] = (),
    share: float = 1.0,
    ranges_dir: Path | None = None,
) -> EvaluationResult:
    """Evaluate consecutive images (uint8 [N, C, H, W]) with labels [N]; the result depends on these alone.

    Predictions and bounds are float64, bounds rounded outwards. The attack searches in float32, and a point counts as
    adversarial only if it is proved to be.

    Args:
        first: the index of the first image.
        seed: of the attack's starts.
        others: other evaluations of the network, whose answers are taken over where they hold here, too.
        share: of `bab_total_seconds` that these images have.
        ranges_dir: the folder in which answers of branch and bound are saved, image by image; None saves none.

    Raises:
        SoundnessError: an example is both certified and falsified, or branch and bound contradicts its own bound.
        UnsupportedOperator: torch.fx saw another function than the network is.
    """
    x = images.double() / 255
    with suppress(NotConvergedError):  # then there is nothing to compare: the network has no output, but bounds
        refuse_another_function(network.model, network.program, LinfBall(x[:2], evaluation.eps))
    ledger = Ledger(len(labels), evaluation.stage_seconds or math.inf)
    bounds, bounded = bound_batch(network, x, labels, evaluation.eps, ledger)
    batch = Batch(network, x, labels, first, evaluation, seed, ledger, bounded, share, ranges_dir)
    prediction = torch.where(bounded, bounds.prediction(labels), names.NO_PREDICTION)
    ledger.record_without_prediction()
    ledger.record(names.CLEAN, verdict_where(bounded & (prediction != labels), names.MISCLASSIFIED))
    ibp_lower = bounds.lower.amin(1)
    certified = ibp_lower > 0
    attack_margin, proofs, further_columns = batch.nan(), Proofs(), dict[str, Tensor]()
    lower, source = dict[str, Tensor](), np.full(len(labels), "", dtype=object)
    for stage in (names.ATTACK, *evaluation.stages):
        undecided = batch.undecided.cpu().numpy()
        if stage == names.IBP:
            result = StageResult(verdict_where(certified, names.CERTIFIED), ibp_lower, batch.nan())
            source[undecided] = ""
        else:
            taken_over = answers_taken_over(stage, batch, others)
            rest = replace(batch, asked=batch.asked & ~taken_over.mask)
            own = attack_batch(rest, certified) if stage == names.ATTACK else FUNCTIONS[stage](rest)
            result = _join(taken_over, own)
            source = np.where(undecided, taken_over.source, source)
        ledger.record(stage, result.verdicts)
        ledger.note_unproved(stage, result.unproved)
        lower[stage] = result.lower
        further_columns |= result.columns
        proofs |= result.proofs
        attack_margin = torch.where(result.counterexample_margin.isnan(), attack_margin, result.counterexample_margin)
    columns = {
        **{names.margin_column(stage): lower[stage] for stage in evaluation.stages},
        **further_columns,
        names.ATTACK_MARGIN: attack_margin,
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
            names.TAKEN_FROM: source,
        }
    )
    refuse_contradictions(
        find_contradictions(evaluation, table, others) | {first + each for each in ledger.contradicted}
    )
    clean = bounds.clean[~bounds.clean.isnan()]
    spread = float(clean.std()) if len(clean) else 0.0
    recurrence = observe_recurrence(network.model, x, labels, first, evaluation.eps, network.classes)
    return EvaluationResult(table, bounds.layers, float(clean.mean()), spread, ledger.seconds, proofs, recurrence)


def refuse_contradictions(contradicted: set[int]) -> None:
    """Raise SoundnessError if there is a contradiction about any image, by its index."""
    if contradicted:
        examples = sorted(contradicted)
        raise SoundnessError(
            f"images both certified and falsified: {examples[:10]}, {len(examples)} in all; a bound is wrong"
        )


def _join(taken_over: TakenOver, own: StageResult) -> StageResult:
    """Return the answers that are taken over, with those of a stage about all other examples."""
    mask, others = taken_over.mask, taken_over.result
    return StageResult(
        verdicts=others.verdicts | own.verdicts,
        lower=torch.where(mask, others.lower, own.lower),
        counterexample_margin=torch.where(mask, others.counterexample_margin, own.counterexample_margin),
        columns={
            name: torch.where(mask, others.columns.get(name, column), column) for name, column in own.columns.items()
        },
        proofs=others.proofs | own.proofs,
        unproved=others.unproved + own.unproved,
    )
