"""Every name that is written to a file or to MLflow, in one place.

Errors and rates are percentages. Widths are in logit units (margins) or pre-activation units (layers).
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

Report = Callable[[dict[str, Any]], None]
"""Takes numbers of work that goes on, by the names below."""

# Final metrics of a trial, measured on test images (or on the validation slice).
CERTIFIED_ERROR = "certified_error"
ATTACK_ERROR = "attack_error"
STANDARD_ERROR = "standard_error"
UNDECIDED_ERROR = "undecided"  # certified minus attack error: the verdicts of UNDECIDED
BOUND_WIDTH = "bound_width"
BOUND_WIDTH_RELATIVE = "bound_width_relative"
PARAMETERS = "parameters"
TRAIN_SECONDS = "train_seconds"
EVALUATION_SECONDS = "evaluation_seconds"
EPS = "eps"  # of the evaluation, in MLflow

# Of networks with an equilibrium only.
GAIN = "equilibrium/gain"
MARGIN = "equilibrium/margin"
RHO_BOUND = "equilibrium/rho_bound"
ITERATIONS = "equilibrium/iterations"
RESIDUAL = "equilibrium/residual"
NOT_CONVERGED = "equilibrium/not_converged"
STANDARD_ERROR_W0 = "equilibrium/standard_error_w0"
CERTIFIED_ERROR_W0 = "equilibrium/certified_error_w0"
MISSED_RADIUS = "equilibrium/missed_radius"  # of an epoch alone: what the training solve leaves out, in percent

# Metrics of an epoch, measured on training images.
EPOCH = "epoch"
TRAIN_LOSS = "train/loss"
TRAIN_EPS = "train/eps"
TRAIN_LEARNING_RATE = "train/learning_rate"
TRAIN_STANDARD_ERROR = "train/standard_error"
TRAIN_CERTIFIED_ERROR = "train/certified_error"
TRAIN_EPOCH_SECONDS = "train/seconds"
TRAIN_EXAMPLES_PER_SECOND = "train/examples_per_second"

# What a trial reports besides; not written to files.
ACTIVITY = "activity"  # what it does from now on, in words
EVALUATED = "evaluated"
IMAGES = "images"
EVALUATION_EPS = "evaluation_eps"


# Columns of verdicts.parquet, one row an example.
INDEX = "index"
LABEL = "label"
PREDICTION = "prediction"
VERDICT = "verdict"
STAGE = "stage"
REASON = "reason"  # why an example failed, ran out of memory, or lacks a counterexample or certificate; else empty
ATTACK_MARGIN = "attack_margin"
WIDTH = "width"
TAKEN_FROM = "taken_from"  # the key of the other evaluation whose answer it is; else empty
BRANCHES = "branches"  # of branch and bound, where it was asked

# Stages of an evaluation, values of the column STAGE. The verifier's are those of STAGES in harness/settings.py.
CLEAN, ATTACK = "clean", "attack"
IBP, CROWN_IBP, CROWN, ALPHA_CROWN, BAB = "ibp", "crown-ibp", "crown", "alpha-crown", "bab"


class Verdict(StrEnum):
    """The values of the column VERDICT; each image has one, made by the stage that decides, as `cerdeq.verify` says it.

    MISCLASSIFIED and FAILED are of evaluations alone. The others are written again, since cerdeq loads torch.
    """

    MISCLASSIFIED = "misclassified"
    FALSIFIED = "falsified"
    CERTIFIED = "certified"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


VERDICTS = tuple(Verdict)
MISCLASSIFIED, FALSIFIED, CERTIFIED, UNKNOWN, TIMEOUT, OUT_OF_MEMORY, FAILED = VERDICTS
UNDECIDED = (UNKNOWN, TIMEOUT, OUT_OF_MEMORY, FAILED)  # neither certified nor falsified
NO_CERTIFICATE = "no certificate was found"  # a REASON
NO_PREDICTION = -1
"""The prediction of an example whose clean margins cannot be computed."""

# Names with a part that varies.
margin_column = "margin_{}".format  # column: a stage's lower bound of the margin
certified_error_after = f"{CERTIFIED_ERROR}/{{}}".format  # what the stages up to this one leave
examples_at = "stage_examples/{}".format  # how many examples no stage before this one had decided
decided_by = "stage_decided/{}".format  # how many examples a stage decided
seconds_of = "stage_seconds/{}".format  # that a stage took, all examples together
layer_width = f"{BOUND_WIDTH}/{{}}".format  # mean bound width of a pre-activation
layer_inactive = "inactive/{}".format  # percentage of a pre-activation's values whose upper bound is at most 0
layer_unstable = "unstable/{}".format  # percentage of its values whose bounds contain 0
in_training = "train/{}".format  # the name of a final metric in an epoch's row


def share_of(verdict: str) -> str:
    """Return the metric name of the share of examples with an undecided verdict, in percent."""
    return f"{UNDECIDED_ERROR}/{verdict.replace(' ', '_')}"


def layers(metrics: dict[str, Any]) -> list[str]:
    """Return the pre-activations that have a width, first to last."""
    return [name.removeprefix(layer_width("")) for name in metrics if name.startswith(layer_width(""))]
