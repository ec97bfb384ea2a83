"""The leaderboard's columns, and which of them stand in which format. To add a number, add a record to COLUMNS."""

import math
from dataclasses import dataclass

import pandas as pd

from harness.common import names
from harness.settings import STAGES

SECONDS_PER_IMAGE = "evaluation_seconds_per_image"

PERCENT, INTEGER, THREE_DIGITS = ".2f", ",.0f", "#.3g"
TABLES, PAGE, HIDDEN = "tables", "page", "hidden"
"""Where a column stands: in all tables; on the page; on the page behind a switch. CSV and JSON have all."""


@dataclass(frozen=True)
class Column:
    """A number of each finished trial; a row shows its mean and deviation over the seeds.

    name: of the metric, in CSV and JSON.
    title: in tables.
    format: how a number is written.
    is_required: whether every finished trial has the number; other columns are shown if some trial has it.
    where: TABLES, PAGE or HIDDEN.
    """

    name: str
    title: str
    format: str
    is_required: bool = False
    where: str = HIDDEN

    def text(self, value: float) -> str:
        """Return a number of this column as text."""
        return f"{value:{self.format}}".rstrip(".")

    def pair(self, mean: float, deviation: float) -> str:
        """Return a mean and its deviation to the same decimal, such as '4.09 ± 0.06'."""
        text = self.text(mean)
        digits, has_exponent, exponent = text.partition("e")
        decimals = len(digits.partition(".")[2])
        shown = f"{deviation / 10 ** int(exponent or 0):,.{decimals}f}"
        return f"{text} ± {shown}{has_exponent}{exponent}"

    def cells(self, rows: pd.DataFrame) -> list[str]:
        """Return this column's cells, such as '12.34 ± 0.56'; empty for rows without the number."""

        def cell(mean: float, std: float) -> str:
            if math.isnan(mean):
                return ""
            if math.isnan(std) or (self.format == INTEGER and std == 0):
                return self.text(mean)
            return self.pair(mean, std)

        return [cell(*pair) for pair in zip(rows[self.name], rows[f"{self.name}_std"], strict=True)]


ERRORS = (
    Column(names.CERTIFIED_ERROR, "certified error", PERCENT, True, TABLES),
    Column(names.ATTACK_ERROR, "attack error", PERCENT, True, TABLES),
    Column(names.STANDARD_ERROR, "standard error", PERCENT, True, TABLES),
    Column(names.UNDECIDED_ERROR, "undecided", PERCENT, where=TABLES),
)
COLUMNS = (
    *ERRORS,
    Column(names.BOUND_WIDTH, "bound width", THREE_DIGITS, True, PAGE),
    Column(names.BOUND_WIDTH_RELATIVE, "relative width", THREE_DIGITS, True),
    Column(names.PARAMETERS, "parameters", INTEGER, True, PAGE),
    Column(names.TRAIN_SECONDS, "train seconds", INTEGER, True, PAGE),
    Column(SECONDS_PER_IMAGE, "evaluation seconds per image", THREE_DIGITS),
    *(Column(names.certified_error_after(stage), f"certified error by {stage}", PERCENT) for stage in STAGES),
    Column(names.GAIN, "equilibrium gain", THREE_DIGITS),
    Column(names.MARGIN, "equilibrium margin", THREE_DIGITS),
    Column(names.RHO_BOUND, "rho bound", THREE_DIGITS),
    Column(names.ITERATIONS, "equilibrium iterations", THREE_DIGITS),
    Column(names.RESIDUAL, "equilibrium residual", THREE_DIGITS),
    Column(names.NOT_CONVERGED, "equilibria not converged", PERCENT),
    Column(names.STANDARD_ERROR_W0, "standard error, W = 0", PERCENT),
    Column(names.CERTIFIED_ERROR_W0, "certified error by ibp, W = 0", PERCENT),
)


REPORTED = ("reported certified error", "reported standard error", "reported as")
"""Columns of networks trained elsewhere: what their paper says."""
_RANK, _SEEDS = ("#", "row"), ("seeds",)


def titles_of(*places: str) -> list[str]:
    """Return the titles of a table with the columns that stand in these places, in order; it may lack some of them."""
    return [*_RANK, *(column.title for column in COLUMNS if column.where in places), *REPORTED[:2], *_SEEDS]
