"""The leaderboard's columns of numbers. To add one, add a record to COLUMNS."""

from collections.abc import Callable
from dataclasses import dataclass

from harness.config.settings import STAGES
from harness.storage import names
from harness.storage.folder import TrialResult


@dataclass(frozen=True)
class Column:
    """A number of each finished trial; a row shows its mean and deviation over the seeds.

    name: in CSV and JSON, and the metric's unless `of` is given.
    title: in tables.
    format: a number as text.
    group: every trial has the metrics of 'error', 'width' and 'cost'; other groups are shown where a trial has them.
    of: the number, from a trial's result.
    """

    name: str
    title: str
    format: Callable[[float], str]
    group: str
    of: Callable[[TrialResult], float | None] | None = None

    @property
    def is_required(self) -> bool:
        """Whether every finished trial has the number."""
        return self.of is None and self.group in ("error", "width", "cost")

    def value(self, result: TrialResult) -> float | None:
        """Return the number, None where it is missing or was not finite."""
        return result.metrics.get(self.name) if self.of is None else self.of(result)


def three_digits(value: float) -> str:
    """Return three significant digits."""
    return f"{value:#.3g}".rstrip(".")


def percent(value: float) -> str:
    """Return two decimals."""
    return f"{value:.2f}"


def integer(value: float) -> str:
    """Return no decimals."""
    return f"{value:,.0f}"


def _per_image(result: TrialResult) -> float | None:
    """Return the seconds that evaluating one image took, attack and all stages."""
    seconds, images = (result.metrics.get(name) for name in (names.EVALUATION_SECONDS, names.examples_at("clean")))
    return seconds / images if seconds is not None and images else None


COLUMNS = (
    Column(names.CERTIFIED_ERROR, "certified error", percent, "error"),
    Column(names.ATTACK_ERROR, "attack error", percent, "error"),
    Column(names.STANDARD_ERROR, "standard error", percent, "error"),
    Column(names.UNDECIDED_ERROR, "undecided", percent, "undecided"),
    Column(names.BOUND_WIDTH, "bound width", three_digits, "width"),
    Column(names.BOUND_WIDTH_RELATIVE, "relative width", three_digits, "width"),
    Column(names.PARAMETERS, "parameters", integer, "cost"),
    Column(names.TRAIN_SECONDS, "train seconds", integer, "cost"),
    Column("evaluation_seconds_per_image", "evaluation seconds an image", three_digits, "evaluation", _per_image),
    *(Column(names.certified_by(stage), f"certified error by {stage}", percent, "stage") for stage in STAGES),
    Column(names.GAIN, "gain", three_digits, "equilibrium"),
    Column(names.MARGIN, "margin", three_digits, "equilibrium"),
    Column(names.RHO_BOUND, "rho bound", three_digits, "equilibrium"),
    Column(names.ITERATIONS, "iterations", three_digits, "equilibrium"),
    Column(names.RESIDUAL, "residual", three_digits, "equilibrium"),
    Column(names.NOT_CONVERGED, "not converged", percent, "equilibrium"),
    Column(names.STANDARD_ERROR_W0, "standard error, W = 0", percent, "equilibrium"),
    Column(names.CERTIFIED_ERROR_W0, "certified error by ibp, W = 0", percent, "equilibrium"),
)


def columns_of(*groups: str) -> list[Column]:
    """Return the columns of these groups, in the table's order."""
    return [column for column in COLUMNS if column.group in groups]
