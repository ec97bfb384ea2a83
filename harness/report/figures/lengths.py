"""Errors against the length of training."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from harness.common import names
from harness.leaderboard.rows import LABEL
from harness.report.figures.section_data import SectionData
from harness.report.figures.style import COLOURS, MARKERS, add_legend, panels

_EPOCHS = "train.epochs"
_SCHEDULE = (_EPOCHS, "train.ramp_start", "train.ramp_epochs", "train.decay_epochs")  # they change with the length
_ERRORS = {names.CERTIFIED_ERROR: "certified error, %", names.STANDARD_ERROR: "standard error, %"}


def length(data: SectionData) -> Figure | None:
    """Errors after training of different lengths, each with its own schedule.

    Bars: sample deviation over seeds; rows of one seed have none. At most the eight best networks. Points without a
    line: schedules of one length differ.
    """
    rows = data.section.own.dropna(subset=[_EPOCHS, *_ERRORS])  # networks trained elsewhere have no length
    texts = data.section.cells.loc[rows.index]
    settings = [name for name in data.section.differing if name not in _SCHEDULE]
    others = [name for name in settings if texts[name].nunique() > 1]
    lines = rows.assign(line=[_line(row, others) for row in texts.to_dict("records")])
    if lines.groupby("line")[_EPOCHS].nunique().le(1).all():
        return None
    looks: dict[str, dict[str, Any]] = {
        name: {"color": colour, "marker": marker}
        for name, colour, marker in zip(dict.fromkeys(lines["line"]), COLOURS, MARKERS, strict=False)
    }
    figure, axes = panels(2, 2, width=9)
    for panel, (error, title) in zip(axes, _ERRORS.items(), strict=True):
        for name, look in looks.items():
            line = lines[lines["line"] == name].sort_values(_EPOCHS)
            look = look | {"ls": "-" if line[_EPOCHS].is_unique else "", "ms": 5, "lw": 1.2}
            panel.errorbar(line[_EPOCHS].astype(float), line[error], yerr=line[f"{error}_std"], **look)
        lengths = sorted(lines[_EPOCHS].unique())
        panel.set_xscale("log")
        panel.set_xticks(lengths, map(str, lengths))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set(xlabel="epochs of training")
        panel.set_title(title, loc="left")
    add_legend(figure, looks)
    return figure


def _line(row: dict[Any, str], settings: list[str]) -> str:
    """Return the legend entry of a row: its label without the schedule."""
    return " ".join([*(row[name] for name in LABEL if row[name]), *(f"{name}={row[name]}" for name in settings)])
