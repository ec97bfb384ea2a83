"""Errors of networks: one against another, by seed, by the stage that decides, and by the length of training."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from harness.common import names
from harness.leaderboard.evaluations import LABEL
from harness.leaderboard.fronts import front_of
from harness.leaderboard.section import Section
from harness.report.figures.section_data import OTHERS, SectionData
from harness.report.figures.style import COLOURS, GREY, INK, add_legend, label_bars, panels, squares
from harness.settings import STAGES

_LONGEST = 32  # characters of a line
_MOST_BARS = 30
_FEWEST_RADII = 3
_ERRORS = [names.STANDARD_ERROR, names.CERTIFIED_ERROR]
_EPOCHS = "train.epochs"
_SCHEDULE = (_EPOCHS, "train.ramp_start", "train.ramp_epochs", "train.decay_epochs")  # they change with the length
_MARKERS = {names.STANDARD_ERROR: "o", names.ATTACK_ERROR: "|", names.CERTIFIED_ERROR: "D"}
_TITLES = {names.CERTIFIED_ERROR: "certified error, %", names.STANDARD_ERROR: "standard error, %"}
_STAGES = (names.CLEAN, names.ATTACK, *STAGES)
_DECISIONS = {names.CLEAN: names.MISCLASSIFIED, names.ATTACK: names.FALSIFIED}  # others are called like their stages
_UNDECIDED = "undecided"
_COLOURS = {
    names.MISCLASSIFIED: "#b9bfc6",
    names.FALSIFIED: "#9b1b30",
    names.IBP: "#33226b",
    names.CROWN_IBP: "#5c4a9e",
    names.CROWN: "#8272bd",
    names.ALPHA_CROWN: "#ab9fd9",
    names.BAB: "#d5cdf0",
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
    entries = data.legend(rows["label"], linestyle="")
    line: dict[str, Any] = {"color": INK, "lw": 0.8, "ls": ":"}
    best = rows.iloc[front_of(rows[_ERRORS].to_numpy(dtype=float))]
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
    colours = [data.looks[label]["color"] for label in trials["label"]]
    for error, marker in _MARKERS.items():
        axes.scatter(trials[error], heights, c=colours, marker=marker, s=30, zorder=3)
    label_bars(axes, labels, _LONGEST)
    axes.set_xlabel("error, %; one line per seed")
    entries = {
        error.removesuffix("_error"): {"color": INK, "marker": marker, "linestyle": ""}
        for error, marker in _MARKERS.items()
    }
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
    for name, share in shares.items():
        axes.barh(range(len(counts)), share, left=left, color=_COLOURS[name], height=0.7)
        left = left + share
    label_bars(axes, list(counts.index), 2 * _LONGEST)
    axes.set(xlim=(0, 100), xlabel="images, %")
    add_legend(figure, squares({name: _COLOURS[name] for name in shares}))
    return figure


def length(data: SectionData) -> Figure | None:
    """Errors after training of different lengths, each with its own schedule.

    Bars: sample deviation over seeds; rows of one seed have none. At most the eight best networks, in the colour of
    their best row. Points without a line: schedules of one length differ.
    """
    rows = data.section.own.dropna(subset=[_EPOCHS, *_ERRORS])  # networks trained elsewhere have no length
    texts = data.section.cells.loc[rows.index]
    settings = [name for name in data.section.differing if name not in _SCHEDULE]
    others = [name for name in settings if texts[name].nunique() > 1]
    lines = rows.assign(line=[_line(row, others) for row in texts.to_dict("records")])
    if lines.groupby("line")[_EPOCHS].nunique().le(1).all():
        return None
    looks = {name: data.looks[label] for name, label in lines.drop_duplicates("line")[["line", "label"]].to_numpy()}
    looks = dict(list(looks.items())[: len(COLOURS)])
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


def radii(data: SectionData) -> Figure | None:
    """Over all sections that differ in eps alone. Bars: sample deviation over seeds."""
    alike = [section for section in data.sections if _but_eps(section) == _but_eps(data.section)]
    sections = [section for section in alike if len(section.own)]
    if len(sections) < _FEWEST_RADII or data.section is not sections[0]:
        return None
    points = pd.concat([_points(section) for section in sections])
    figure, (axes,) = panels(height=3.6)
    labels = []
    for _, line in points.groupby("training", sort=False):  # a section of fewer rows has shorter labels
        labels.append(line["label"].iloc[0])
        line = line.sort_values("eps")
        errors, deviations = line[names.CERTIFIED_ERROR], line[f"{names.CERTIFIED_ERROR}_std"]
        axes.errorbar(line["eps"].astype(float), errors, yerr=deviations, **data.looks[labels[-1]], ms=5, lw=1.2)
    axes.set_xticks([float(section.eps) for section in sections], [str(section.eps) for section in sections])
    axes.set(xlabel="eps of the evaluation", ylabel=_TITLES[names.CERTIFIED_ERROR])
    add_legend(figure, data.legend(labels))
    return figure


def _points(section: Section) -> pd.DataFrame:
    """Return the rows of a section that have a certified error, with their eps and `training`."""
    trainings = section.finished.drop_duplicates("row").set_index("row")["training"]
    return section.own.join(trainings).dropna(subset=names.CERTIFIED_ERROR).assign(eps=section.eps)


def _but_eps(section: Section) -> tuple[Any, ...]:
    """Return all that decides which rows a section has, and their numbers, but eps."""
    return section.dataset, section.profile, section.evaluation.model_dump(exclude={"eps"}), section.held_out


def _line(row: dict[Any, str], settings: list[str]) -> str:
    """Return the legend entry of a row: its label without the schedule."""
    return " ".join([*(row[name] for name in LABEL if row[name]), *(f"{name}={row[name]}" for name in settings)])
