"""Errors of networks: one against another, by seed, by the stage that decides, and what deciding takes."""

from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.analysis.leaderboard import Table
from harness.config.settings import STAGES
from harness.figures.shown import OTHERS, Shown
from harness.figures.style import COLOURS, DASHES, INK, MARKERS, assigned, keys, panels, plain_ticks
from harness.storage import names

_BAR, _LONGEST = 0.36, 32  # inches of a row, characters of a line
_MOST_BARS = 30
_DECIDED = {
    "clean": ("misclassified", "#b9bfc6"),
    "attack": ("attacked", "#d55e00"),
    "ibp": ("ibp", "#7b5ea7"),
    "crown-ibp": ("crown-ibp", "#0072b2"),
    "crown": ("crown", "#4c97d0"),
    "alpha-crown": ("alpha-crown", "#56b4e9"),
    "bab": ("bab", "#a6dcff"),
}
_OPEN = ("open", "#f0e442")
_RADII = ("sweep", "eps", "train.eps")  # settings that tell radii apart, not recipes


def tradeoff(shown: Shown) -> Figure | None:
    """Certified against standard error, with the front of rows that no other beats in both."""
    rows = shown.rows.dropna(subset=[names.STANDARD_ERROR, names.CERTIFIED_ERROR])
    if rows.empty:
        return None
    figure, (axes,) = panels(height=4.6)
    entries = _entries(shown, list(rows["label"]))
    front = _front(rows)
    axes.step(front[names.STANDARD_ERROR], front[names.CERTIFIED_ERROR], where="post", color=INK, lw=0.8, ls=":")
    if len(front) > 1:
        entries["not beaten in both"] = {"color": INK, "lw": 0.8, "ls": ":"}
    for rank, row in enumerate(rows.to_dict("records"), start=1):
        deviations = [row[f"{name}_std"] for name in (names.STANDARD_ERROR, names.CERTIFIED_ERROR)]
        place = row[names.STANDARD_ERROR], row[names.CERTIFIED_ERROR]
        axes.errorbar(*place, *reversed(np.nan_to_num(deviations)), **shown.looks[row["label"]], ms=7, lw=1)
        if shown.looks[row["label"]] is not OTHERS:
            axes.annotate(str(rank), place, (5, 5), textcoords="offset points", fontsize=7, color=INK)
    if shown.section.whole and len(published := shown.published.dropna(subset=[names.STANDARD_ERROR])):
        axes.plot(
            published[names.STANDARD_ERROR], published[names.CERTIFIED_ERROR], "*", ms=9, mfc="none", mec=INK, mew=0.8
        )
        entries["published"] = {"marker": "*", "linestyle": "", "mfc": "none", "mec": INK}
    axes.set(xlabel="standard error, %", ylabel="certified error, %")
    keys(figure, entries)
    return figure


def _entries(shown: Shown, labels: list[str]) -> dict[str, dict[str, Any]]:
    """The legend's entries for these rows, those that are grey as one."""
    entries = {label: shown.looks[label] | {"linestyle": ""} for label in labels if shown.looks[label] is not OTHERS}
    return entries | ({"other rows": OTHERS | {"linestyle": ""}} if shown.others else {})


def _front(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in order of their standard errors, each with a lower certified error than those before it."""
    rows = rows.sort_values([names.STANDARD_ERROR, names.CERTIFIED_ERROR])
    best = rows[names.CERTIFIED_ERROR].cummin()
    return rows[best < best.shift(fill_value=np.inf)]


def by_seed(shown: Shown) -> Figure | None:
    """The three errors of each trained network; the bar between attack and certified error is what is open."""
    if shown.trials.empty:
        return None
    labels = list(dict.fromkeys(shown.trials["label"]))[:_MOST_BARS]
    trials = shown.trials[shown.trials["label"].isin(labels)]
    figure, (axes,) = panels(height=1.3 + _BAR * len(labels))
    looks = {
        names.STANDARD_ERROR: ("standard", COLOURS[2], "o"),
        names.ATTACK_ERROR: ("attack", COLOURS[1], "|"),
        names.CERTIFIED_ERROR: ("certified", COLOURS[0], "D"),
    }
    seeds = trials.groupby("label")["seed"].rank(method="first") - 1
    most = seeds.max() + 1
    places = trials["label"].map(labels.index) + (seeds - (most - 1) / 2) * 0.7 / most
    axes.hlines(places, trials[names.ATTACK_ERROR], trials[names.CERTIFIED_ERROR], color="#8a929b", lw=2, alpha=0.6)
    for name, (_, colour, marker) in looks.items():
        axes.plot(
            trials[name], places, marker, color=colour, ms=8 if marker == "|" else 5, mew=2 if marker == "|" else 1
        )
    _named_rows(axes, labels)
    axes.set_xlabel("error, %; a line a seed")
    entries = {title: {"color": c, "marker": m, "linestyle": ""} for title, c, m in looks.values()}
    keys(figure, entries | {"open": {"color": "#8a929b", "lw": 2}})
    return figure


def _named_rows(axes: Axes, labels: list[str]) -> None:
    """The best row on top, each with its label."""
    axes.set_yticks(range(len(labels)), [fill(label, _LONGEST) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def stages(shown: Shown) -> Figure | None:
    """Which share of the images each stage decides, in the order in which they are asked."""
    trials = shown.trials
    asked = [stage for stage in ("clean", "attack", *STAGES) if names.decided_by(stage) in trials]
    if not asked:
        return None
    images = names.examples_at("clean")
    counts = trials.groupby("label", sort=False)[[images, *map(names.decided_by, asked)]].sum().head(_MOST_BARS)
    figure, (axes,) = panels(height=1.3 + _BAR * len(counts))
    left = pd.Series(0.0, counts.index)
    parts = {_DECIDED[stage]: 100 * counts[names.decided_by(stage)] / counts[images] for stage in asked}
    parts[_OPEN] = 100 - sum(parts.values())
    for (_, colour), share in parts.items():
        axes.barh(range(len(counts)), share, left=left, color=colour, height=0.7)
        left = left + share
    _named_rows(axes, list(counts.index))
    axes.set(xlim=(0, 100), xlabel="images, %")
    keys(figure, {name: {"color": colour, "marker": "s", "linestyle": "", "ms": 8} for name, colour in parts})
    return figure


def time(shown: Shown) -> Figure | None:
    """How many images are decided in how many seconds an image, a point after each stage."""
    trials = shown.trials[shown.trials["label"].isin(shown.rows["label"].head(len(COLOURS)))]
    stages = [stage for stage in ("clean", "attack", *STAGES) if names.seconds_of(stage) in trials]
    if not stages:
        return None
    figure, (axes,) = panels(height=4.6)
    means = trials.groupby("label", sort=False).mean(numeric_only=True).reset_index()
    for row in means.to_dict("records"):
        images = row[names.examples_at("clean")]
        seconds = np.cumsum([row[names.seconds_of(stage)] for stage in stages]) / images
        decided = 100 * np.cumsum([row[names.decided_by(stage)] for stage in stages]) / images
        axes.plot(seconds, decided, **shown.looks[row["label"]], ms=5, lw=1.2)
    axes.set(xscale="log", xlabel="seconds an image, all stages so far", ylabel="decided, % of the images")
    plain_ticks(axes.xaxis)
    keys(figure, {label: shown.looks[label] for label in means["label"]})
    return figure


def against_eps(tables: list[Table]) -> Figure | None:
    """Certified error against the radius over the sweeps of a data set, where two or more radii were looked at.

    Rows of one network, method, recipe and list of stages are joined, the best of each radius; a dash tells recipes and
    lists of stages apart.
    """
    rows = pd.DataFrame([row for table in tables for row in _by_radius(table)])
    radii = rows.groupby("dataset")["eps"].nunique() if len(rows) else pd.Series(dtype=int)
    datasets = [name for name, count in radii.items() if count > 1]
    if not datasets:
        return None
    rows = rows[rows["dataset"].isin(datasets)]
    figure, axes = panels(1, len(datasets), width=max(5.0, 4.0 * len(datasets)), height=4)
    models = sorted(set(rows["model"]))
    hollow = dict.fromkeys(models[len(COLOURS) :], "none")
    colours, markers = assigned(models, COLOURS), assigned(rows["method"], MARKERS)
    dashes = assigned(rows["how"], DASHES)
    for place, dataset in zip(axes, datasets, strict=True):
        for (model, method, how), part in rows[rows["dataset"] == dataset].groupby(["model", "method", "how"]):
            line = part.groupby("eps")[names.CERTIFIED_ERROR].min()
            look = {"color": colours[model], "mfc": hollow.get(model, colours[model]), "ls": dashes[how]}
            place.plot(line.index, line, marker=markers[method], ms=5, lw=1, **look)
        place.set_title(str(dataset), loc="left")
        place.set_xlabel("eps")
    axes[0].set_ylabel("certified error, %")
    entries = {
        model: {"color": colour, "marker": "o", "linestyle": "", "mfc": hollow.get(model, colour)}
        for model, colour in colours.items()
    }
    keys(figure, entries | {name: {"color": INK, "marker": m, "linestyle": ""} for name, m in markers.items()})
    return figure


def _by_radius(table: Table) -> list[dict[str, Any]]:
    """The sweep's own rows with their radii, and how they were trained and judged."""
    found = []
    for section in (section for section in table.sections if not section.stale):
        own = section.own.dropna(subset=names.CERTIFIED_ERROR)
        how = section.heading.split(", ", 2)[2]
        recipe = [name for name in section.settings if name not in _RADII]
        for row in own.to_dict("records"):
            told = {name: row[name] for name in ("model", "method", names.CERTIFIED_ERROR)}
            trained = str([row["options"], row["width"], *(row[name] for name in recipe)])
            found.append(told | {"dataset": section.dataset, "eps": float(section.eps), "how": f"{how} {trained}"})
    return found
