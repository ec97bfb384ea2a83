"""The leaderboard's columns of numbers: one record each. A new one is one record here."""

from collections.abc import Callable
from dataclasses import dataclass

from harness.config.settings import STAGES
from harness.storage import names
from harness.storage.folder import TrialResult


@dataclass(frozen=True)
class Column:
    """A number of each finished trial; rows show its mean and deviation over seeds.

    name: in CSV and JSON, and the metric's unless `of` is given.
    title: in tables.
    write: a number as text.
    group: what it belongs to; every trial has the metrics of 'error', 'width' and 'cost'.
    of: the number, from a trial's result.
    """

    name: str
    title: str
    write: Callable[[float], str]
    group: str
    of: Callable[[TrialResult], float | None] | None = None

    @property
    def everywhere(self) -> bool:
        """Whether every finished trial has it."""
        return self.of is None and self.group in ("error", "width", "cost")

    def value(self, result: TrialResult) -> float | None:
        """The number, None where it is missing or was not finite."""
        return result.metrics.get(self.name) if self.of is None else self.of(result)


def digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".")


def percent(value: float) -> str:
    """Two decimals."""
    return f"{value:.2f}"


def whole(value: float) -> str:
    """No decimals."""
    return f"{value:,.0f}"


def _per_image(result: TrialResult) -> float | None:
    """Seconds of judging an image, all stages and the attack."""
    seconds, images = (result.metrics.get(name) for name in (names.EVALUATION_SECONDS, names.examples_at("clean")))
    return seconds / images if seconds is not None and images else None


COLUMNS = (
    Column(names.CERTIFIED_ERROR, "certified error", percent, "error"),
    Column(names.ATTACK_ERROR, "attack error", percent, "error"),
    Column(names.STANDARD_ERROR, "standard error", percent, "error"),
    Column(names.OPEN_ERROR, "open", percent, "open"),
    Column(names.BOUND_WIDTH, "bound width", digits, "width"),
    Column(names.BOUND_WIDTH_RELATIVE, "relative width", digits, "width"),
    Column(names.PARAMETERS, "parameters", whole, "cost"),
    Column(names.TRAIN_SECONDS, "train seconds", whole, "cost"),
    Column("evaluation_seconds_per_image", "evaluation seconds an image", digits, "evaluation", of=_per_image),
    *(Column(names.certified_by(stage), f"certified error by {stage}", percent, "stage") for stage in STAGES),
    Column(names.GAIN, "gain", digits, "equilibrium"),
    Column(names.MARGIN, "margin", digits, "equilibrium"),
    Column(names.RHO_BOUND, "rho bound", digits, "equilibrium"),
    Column(names.ITERATIONS, "iterations", digits, "equilibrium"),
    Column(names.RESIDUAL, "residual", digits, "equilibrium"),
    Column(names.NOT_CONVERGED, "not converged", percent, "equilibrium"),
    Column(names.STANDARD_ERROR_W0, "standard error, W = 0", percent, "equilibrium"),
    Column(names.CERTIFIED_ERROR_W0, "certified error by ibp, W = 0", percent, "equilibrium"),
)


def of_group(*groups: str) -> list[Column]:
    """The columns of these groups, in the table's order."""
    return [column for column in COLUMNS if column.group in groups]
