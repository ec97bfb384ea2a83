"""The evaluation of a network: one verdict for each example, from the first stage that can decide it."""

import math
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from cerdeq import LinfBall
from cerdeq.bounds import refuse_another_function
from cerdeq.equilibrium import NotConvergedError
from harness.common import names
from harness.config.trial import Trial
from harness.evaluation.attack import attack_batch
from harness.evaluation.batch import Batch
from harness.evaluation.ibp import bound_batch
from harness.evaluation.ledger import Ledger, Proofs, SoundnessError, StageResult, verdict_where
from harness.evaluation.network import PreparedNetwork, prepare_network
from harness.evaluation.stages import FUNCTIONS


@dataclass(frozen=True)
class EvaluationResult:
    """The verdicts on a network and what they rest on.

    verdicts: a row for each example, columns as in harness.common.names.
    layers: as in Bounds, over all examples.
    clean_mean, clean_spread: mean and standard deviation of all clean margins.
    seconds: the seconds of each stage.
    proofs: counterexamples, as harness.attacks.counterexamples says, and certificates.
    """

    verdicts: pd.DataFrame
    layers: dict[str, float]
    clean_mean: float
    clean_spread: float
    seconds: dict[str, float]
    proofs: Proofs


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, config: Trial) -> EvaluationResult:
    """Evaluate a float64 network in evaluation mode, as `evaluate_images` does."""
    return evaluate_images(prepare_network(model, config.evaluation.stages), images, labels, 0, config)


def evaluate_images(
    network: PreparedNetwork, images: Tensor, labels: Tensor, first: int, config: Trial
) -> EvaluationResult:
    """Evaluate consecutive images (uint8 [N, C, H, W]) with labels [N]; the result depends on these alone.

    Predictions and bounds are float64, bounds rounded outwards. The attack searches in float32, and a point counts as
    adversarial only if it is proved to be. first: the index of the first image.

    Raises:
        SoundnessError: an example is both certified and falsified.
        UnsupportedOperator: torch.fx saw another function than the network is.
    """
    x = images.double() / 255
    with suppress(NotConvergedError):  # then there is nothing to compare: the network has no output, but bounds
        refuse_another_function(network.model, network.program, LinfBall(x[:2], config.eps))
    ledger = Ledger(len(labels), config.evaluation.stage_seconds or math.inf)
    bounds, bounded = bound_batch(network.program, x, labels, config, ledger)
    batch = Batch(network, x, labels, first, config, ledger, bounded)
    prediction = torch.where(bounded, bounds.prediction(labels), names.NO_PREDICTION)
    ledger.record(names.CLEAN, verdict_where(bounded & (prediction != labels), names.MISCLASSIFIED))
    ibp_lower = bounds.lower.amin(1)
    certified = ibp_lower > 0
    results = {
        names.ATTACK: attack_batch(batch, certified),
        names.IBP: StageResult(verdict_where(certified, names.CERTIFIED), ibp_lower, batch.nan()),
    }
    attack_margin, proofs, further_columns = batch.nan(), Proofs(), dict[str, Tensor]()
    for stage in (names.ATTACK, *config.evaluation.stages):
        if stage not in results:
            results[stage] = FUNCTIONS[stage](batch)
        result = results[stage]
        ledger.record(stage, result.verdicts)
        ledger.note_unproved(stage, result.unproved)
        further_columns |= result.columns
        proofs |= result.proofs
        attack_margin = torch.where(result.counterexample_margin.isnan(), attack_margin, result.counterexample_margin)
    columns = {
        **{names.margin_column(stage): results[stage].lower for stage in config.evaluation.stages},
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
        }
    )
    if ledger.contradicted:
        examples = [first + example for example in sorted(ledger.contradicted)]
        raise SoundnessError(
            f"test images both certified and falsified: {examples[:10]}, {len(examples)} in all; a bound is wrong"
        )
    clean = bounds.clean[~bounds.clean.isnan()]
    spread = float(clean.std()) if len(clean) else 0.0
    return EvaluationResult(table, bounds.layers, float(clean.mean()), spread, ledger.seconds, proofs)
