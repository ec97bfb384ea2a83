"""Errors of networks: one against another, by seed, by the stage that decides, and by the length of training."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from harness.common import names
from harness.leaderboard.rows import LABEL
from harness.report.figures.section_data import OTHERS, SectionData
from harness.report.figures.style import COLOURS, GREY, INK, MARKERS, add_legend, label_bars, panels, squares
from harness.settings import STAGES

_LONGEST = 32  # characters of a line
_MOST_BARS = 30
_ERRORS = [names.STANDARD_ERROR, names.CERTIFIED_ERROR]
_EPOCHS = "train.epochs"
_SCHEDULE = (_EPOCHS, "train.ramp_start", "train.ramp_epochs", "train.decay_epochs")  # they change with the length
_TITLES = {names.CERTIFIED_ERROR: "certified error, %", names.STANDARD_ERROR: "standard error, %"}
_STAGES = (names.CLEAN, names.ATTACK, *STAGES)
_DECISIONS = {names.CLEAN: names.MISCLASSIFIED, names.ATTACK: names.FALSIFIED}  # others are called like their stages
_UNDECIDED = "undecided"
_OTHER = "#44aa99"  # a stage that has no colour of its own
_COLOURS = {
    names.MISCLASSIFIED: "#b9bfc6",
    names.FALSIFIED: "#d55e00",
    names.IBP: "#7b5ea7",
    names.CROWN_IBP: "#0072b2",
    names.CROWN: "#4c97d0",
    names.ALPHA_CROWN: "#56b4e9",
    names.BAB: "#a6dcff",
    _UNDECIDED: "#f0e442",
}


def tradeoff(data: SectionData) -> Figure | None:
    """Lower left is better; numbers are ranks. Bars: sample deviation over seeds.

    Numbers from papers stand here only beside networks of full size.
    """
    rows = data.section.own.dropna(subset=_ERRORS)
    if rows.empty:
        return None
    figure, (axes,) = panels(height=3.6)
    entries = {label: data.looks[label] | {"linestyle": ""} for label in rows["label"]}
    entries = {label: look for label, look in entries.items() if data.looks[label] is not OTHERS}
    if len(data.looks) > len(COLOURS):
        entries["other rows"] = OTHERS | {"linestyle": ""}
    line: dict[str, Any] = {"color": INK, "lw": 0.8, "ls": ":"}
    best = front(rows)
    axes.step(best[names.STANDARD_ERROR], best[names.CERTIFIED_ERROR], where="post", **line)
    if len(best) > 1:
        entries["no row is better in both"] = line
    for rank, row in enumerate(rows.to_dict("records"), start=1):
        look, point = data.looks[row["label"]], (row[names.STANDARD_ERROR], row[names.CERTIFIED_ERROR])
        x_deviation, y_deviation = np.nan_to_num([row[f"{name}_std"] for name in _ERRORS])
        axes.errorbar(*point, yerr=y_deviation, xerr=x_deviation, **look, ms=7, lw=1)
        if look is not OTHERS:
            axes.annotate(str(rank), point, (5, 5), textcoords="offset points", fontsize=7, color=INK)
    literature = data.section.rows[data.section.is_literature].dropna(subset=_ERRORS)
    if data.section.is_full_size and len(literature):
        star: dict[str, Any] = {"marker": "*", "linestyle": "", "mfc": "none", "mec": INK}
        axes.plot(*literature[_ERRORS].to_numpy().T, **star, ms=9, mew=0.8)
        entries["from papers"] = star
    axes.set(xlabel="standard error, %", ylabel="certified error, %")
    add_legend(figure, entries)
    return figure


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows by standard error, each with a lower certified error than those before it."""
    rows = rows.sort_values(_ERRORS)
    best = rows[names.CERTIFIED_ERROR].cummin()
    return rows[best < best.shift(fill_value=np.inf)]


def seeds(data: SectionData) -> Figure | None:
    """The robust error lies on the bar between attack and certified error.

    Best row on top. At most the thirty best rows.
    """
    labels = list(data.section.own["label"])[:_MOST_BARS]
    trials = data.trials[data.trials["label"].isin(labels)]
    figure, (axes,) = panels(height=0.6)
    numbers = trials.groupby("label")["seed"].rank(method="first") - 1
    most = numbers.max() + 1
    heights = trials["label"].map(labels.index) + (numbers - (most - 1) / 2) * 0.7 / most
    axes.hlines(heights, trials[names.ATTACK_ERROR], trials[names.CERTIFIED_ERROR], color=GREY, lw=2, alpha=0.6)
    axes.plot(trials[names.STANDARD_ERROR], heights, "o", color=COLOURS[2], ms=5, mew=1)
    axes.plot(trials[names.ATTACK_ERROR], heights, "|", color=COLOURS[1], ms=8, mew=2)
    axes.plot(trials[names.CERTIFIED_ERROR], heights, "D", color=COLOURS[0], ms=5, mew=1)
    label_bars(axes, labels, _LONGEST)
    axes.set_xlabel("error, %; one line per seed")
    colours = {"standard": COLOURS[2], "attack": COLOURS[1], "certified": COLOURS[0]}
    markers = {"standard": "o", "attack": "|", "certified": "D"}
    entries = {name: {"color": colours[name], "marker": markers[name], "linestyle": ""} for name in colours}
    add_legend(figure, entries | {"undecided": {"color": GREY, "lw": 2}})
    return figure


def stages(data: SectionData) -> Figure | None:
    """Shares of all images, of at most the thirty best rows. Undecided images count as errors."""
    ran = [stage for stage in _STAGES if names.decided_by(stage) in data.trials]
    if not ran:
        return None
    images = names.examples_at(names.CLEAN)
    counts = data.trials.groupby("label", sort=False)[[images, *map(names.decided_by, ran)]].sum().head(_MOST_BARS)
    figure, (axes,) = panels(width=9, height=0.6)
    left = pd.Series(0.0, counts.index)
    shares = {_DECISIONS.get(stage, stage): 100 * counts[names.decided_by(stage)] / counts[images] for stage in ran}
    shares[_UNDECIDED] = 100 - sum(shares.values())
    colours = {name: _COLOURS.get(name, _OTHER) for name in shares}
    for name, share in shares.items():
        axes.barh(range(len(counts)), share, left=left, color=colours[name], height=0.7)
        left = left + share
    label_bars(axes, list(counts.index), 2 * _LONGEST)
    axes.set(xlim=(0, 100), xlabel="images, %")
    add_legend(figure, squares(colours))
    return figure


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
    for panel, (error, title) in zip(axes, _TITLES.items(), strict=True):
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
