"""Errors of networks: one against another, by seed, by the stage that decides, and what deciding takes."""

from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.analysis.leaderboard import Leaderboard
from harness.config.settings import STAGES
from harness.figures.section_data import OTHERS, SectionData
from harness.figures.style import COLOURS, DASHES, INK, MARKERS, add_legend, assign, panels, plain_ticks
from harness.storage import names

_BAR, _LONGEST = 0.36, 32  # inches of a row, characters of a line
_MOST_BARS = 30
_DECISIONS = {
    "clean": ("misclassified", "#b9bfc6"),
    "attack": ("falsified", "#d55e00"),
    "ibp": ("ibp", "#7b5ea7"),
    "crown-ibp": ("crown-ibp", "#0072b2"),
    "crown": ("crown", "#4c97d0"),
    "alpha-crown": ("alpha-crown", "#56b4e9"),
    "bab": ("bab", "#a6dcff"),
}
_UNKNOWN = ("unknown", "#f0e442")
_RADII = ("sweep", "eps", "train.eps")  # settings that are no part of a recipe


def tradeoff(data: SectionData) -> Figure | None:
    """Certified against standard error, with the front of rows that no other beats in both."""
    rows = data.rows.dropna(subset=[names.STANDARD_ERROR, names.CERTIFIED_ERROR])
    if rows.empty:
        return None
    figure, (axes,) = panels(height=4.6)
    entries = _entries(data, list(rows["label"]))
    front = _front(rows)
    axes.step(front[names.STANDARD_ERROR], front[names.CERTIFIED_ERROR], where="post", color=INK, lw=0.8, ls=":")
    if len(front) > 1:
        entries["no row is better in both"] = {"color": INK, "lw": 0.8, "ls": ":"}
    for rank, row in enumerate(rows.to_dict("records"), start=1):
        deviations = [row[f"{name}_std"] for name in (names.STANDARD_ERROR, names.CERTIFIED_ERROR)]
        point = row[names.STANDARD_ERROR], row[names.CERTIFIED_ERROR]
        axes.errorbar(*point, *reversed(np.nan_to_num(deviations)), **data.looks[row["label"]], ms=7, lw=1)
        if data.looks[row["label"]] is not OTHERS:
            axes.annotate(str(rank), point, (5, 5), textcoords="offset points", fontsize=7, color=INK)
    if data.section.is_full_size and len(published := data.published.dropna(subset=[names.STANDARD_ERROR])):
        axes.plot(
            published[names.STANDARD_ERROR], published[names.CERTIFIED_ERROR], "*", ms=9, mfc="none", mec=INK, mew=0.8
        )
        entries["published"] = {"marker": "*", "linestyle": "", "mfc": "none", "mec": INK}
    axes.set(xlabel="standard error, %", ylabel="certified error, %")
    add_legend(figure, entries)
    return figure


def _entries(data: SectionData, labels: list[str]) -> dict[str, dict[str, Any]]:
    """Return the legend's entries for these rows, one for all that are grey."""
    entries = {label: data.looks[label] | {"linestyle": ""} for label in labels if data.looks[label] is not OTHERS}
    return entries | ({"other rows": OTHERS | {"linestyle": ""}} if len(data.looks) > len(COLOURS) else {})


def _front(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows by standard error, each with a lower certified error than those before it."""
    rows = rows.sort_values([names.STANDARD_ERROR, names.CERTIFIED_ERROR])
    best = rows[names.CERTIFIED_ERROR].cummin()
    return rows[best < best.shift(fill_value=np.inf)]


def by_seed(data: SectionData) -> Figure | None:
    """The three errors of each trained network; the bar between attack and certified error is unknown."""
    if data.trials.empty:
        return None
    labels = list(dict.fromkeys(data.trials["label"]))[:_MOST_BARS]
    trials = data.trials[data.trials["label"].isin(labels)]
    figure, (axes,) = panels(height=1.3 + _BAR * len(labels))
    looks = {
        names.STANDARD_ERROR: ("standard", COLOURS[2], "o"),
        names.ATTACK_ERROR: ("attack", COLOURS[1], "|"),
        names.CERTIFIED_ERROR: ("certified", COLOURS[0], "D"),
    }
    seeds = trials.groupby("label")["seed"].rank(method="first") - 1
    most = seeds.max() + 1
    heights = trials["label"].map(labels.index) + (seeds - (most - 1) / 2) * 0.7 / most
    axes.hlines(heights, trials[names.ATTACK_ERROR], trials[names.CERTIFIED_ERROR], color="#8a929b", lw=2, alpha=0.6)
    for name, (_, colour, marker) in looks.items():
        axes.plot(
            trials[name], heights, marker, color=colour, ms=8 if marker == "|" else 5, mew=2 if marker == "|" else 1
        )
    _label_rows(axes, labels)
    axes.set_xlabel("error, %; a line a seed")
    entries = {title: {"color": c, "marker": m, "linestyle": ""} for title, c, m in looks.values()}
    add_legend(figure, entries | {"unknown": {"color": "#8a929b", "lw": 2}})
    return figure


def _label_rows(axes: Axes, labels: list[str]) -> None:
    """Label the rows of bars, the best on top."""
    axes.set_yticks(range(len(labels)), [fill(label, _LONGEST) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def stages(data: SectionData) -> Figure | None:
    """Which share of the images each stage decides, in the order in which they run."""
    trials = data.trials
    ran = [stage for stage in ("clean", "attack", *STAGES) if names.decided_by(stage) in trials]
    if not ran:
        return None
    images = names.examples_at("clean")
    counts = trials.groupby("label", sort=False)[[images, *map(names.decided_by, ran)]].sum().head(_MOST_BARS)
    figure, (axes,) = panels(height=1.3 + _BAR * len(counts))
    left = pd.Series(0.0, counts.index)
    parts = {_DECISIONS[stage]: 100 * counts[names.decided_by(stage)] / counts[images] for stage in ran}
    parts[_UNKNOWN] = 100 - sum(parts.values())
    for (_, colour), share in parts.items():
        axes.barh(range(len(counts)), share, left=left, color=colour, height=0.7)
        left = left + share
    _label_rows(axes, list(counts.index))
    axes.set(xlim=(0, 100), xlabel="images, %")
    add_legend(figure, {name: {"color": colour, "marker": "s", "linestyle": "", "ms": 8} for name, colour in parts})
    return figure


def time(data: SectionData) -> Figure | None:
    """How many images are decided in how many seconds an image, a point after each stage."""
    trials = data.trials[data.trials["label"].isin(data.rows["label"].head(len(COLOURS)))]
    stages = [stage for stage in ("clean", "attack", *STAGES) if names.seconds_of(stage) in trials]
    if not stages:
        return None
    figure, (axes,) = panels(height=4.6)
    means = trials.groupby("label", sort=False).mean(numeric_only=True).reset_index()
    for row in means.to_dict("records"):
        images = row[names.examples_at("clean")]
        seconds = np.cumsum([row[names.seconds_of(stage)] for stage in stages]) / images
        decided = 100 * np.cumsum([row[names.decided_by(stage)] for stage in stages]) / images
        axes.plot(seconds, decided, **data.looks[row["label"]], ms=5, lw=1.2)
    axes.set(xscale="log", xlabel="seconds an image, all stages so far", ylabel="decided, % of the images")
    plain_ticks(axes.xaxis)
    add_legend(figure, {label: data.looks[label] for label in means["label"]})
    return figure


def against_eps(leaderboards: list[Leaderboard]) -> Figure | None:
    """Certified error against the radius over the sweeps of a data set, where there are two radii or more.

    A line joins rows of one network, method, recipe and list of stages, the best at each radius. Dashes stand for
    recipes and lists of stages.
    """
    rows = pd.DataFrame([row for leaderboard in leaderboards for row in _by_radius(leaderboard)])
    radii = rows.groupby("dataset")["eps"].nunique() if len(rows) else pd.Series(dtype=int)
    datasets = [name for name, count in radii.items() if count > 1]
    if not datasets:
        return None
    rows = rows[rows["dataset"].isin(datasets)]
    figure, axes = panels(1, len(datasets), width=max(5.0, 4.0 * len(datasets)), height=4)
    models = sorted(set(rows["model"]))
    hollow = dict.fromkeys(models[len(COLOURS) :], "none")
    colours, markers = assign(models, COLOURS), assign(rows["method"], MARKERS)
    dashes = assign(rows["how"], DASHES)
    for panel, dataset in zip(axes, datasets, strict=True):
        for (model, method, how), part in rows[rows["dataset"] == dataset].groupby(["model", "method", "how"]):
            line = part.groupby("eps")[names.CERTIFIED_ERROR].min()
            look = {"color": colours[model], "mfc": hollow.get(model, colours[model]), "ls": dashes[how]}
            panel.plot(line.index, line, marker=markers[method], ms=5, lw=1, **look)
        panel.set_title(str(dataset), loc="left")
        panel.set_xlabel("eps")
    axes[0].set_ylabel("certified error, %")
    entries = {
        model: {"color": colour, "marker": "o", "linestyle": "", "mfc": hollow.get(model, colour)}
        for model, colour in colours.items()
    }
    add_legend(figure, entries | {name: {"color": INK, "marker": m, "linestyle": ""} for name, m in markers.items()})
    return figure


def _by_radius(leaderboard: Leaderboard) -> list[dict[str, Any]]:
    """Return the sweep's own rows with their radii, and how they were trained and evaluated."""
    rows = []
    for section in (section for section in leaderboard.sections if not section.is_stale):
        own = section.own.dropna(subset=names.CERTIFIED_ERROR)
        how = section.heading.split(", ", 2)[2]
        recipe = [name for name in section.settings if name not in _RADII]
        for row in own.to_dict("records"):
            values = {name: row[name] for name in ("model", "method", names.CERTIFIED_ERROR)}
            trained = str([row["options"], row["width"], *(row[name] for name in recipe)])
            rows.append(values | {"dataset": section.dataset, "eps": float(section.eps), "how": f"{how} {trained}"})
    return rows
