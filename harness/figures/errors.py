"""Errors of networks: one against another, by seed, by the stage that decides, and what deciding takes."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.analysis.leaderboard import Table
from harness.config.settings import STAGES
from harness.figures.shown import Shown
from harness.figures.style import COLOURS, INK, MARKERS, assigned, keys, panels, plain_ticks
from harness.storage import names

_BAR = 0.32  # inches of a row
_DECIDED = {
    "clean": ("misclassified", "#b9bfc6"),
    "attack": ("attacked", "#d55e00"),
    "ibp": ("ibp", "#0b3c5d"),
    "crown-ibp": ("crown-ibp", "#0072b2"),
    "crown": ("crown", "#4c97d0"),
    "alpha-crown": ("alpha-crown", "#56b4e9"),
    "bab": ("bab", "#a6dcff"),
}
_OPEN = ("open", "#f0e442")


def tradeoff(shown: Shown) -> Figure | None:
    """Certified against standard error, with the front of rows that no other beats in both."""
    rows = shown.rows.dropna(subset=[names.STANDARD_ERROR, names.CERTIFIED_ERROR])
    if rows.empty:
        return None
    figure, (axes,) = panels(height=4.2)
    colours, markers = assigned(rows["model"], COLOURS), assigned(rows["method"], MARKERS)
    entries = {model: {"color": colour, "lw": 4} for model, colour in colours.items()}
    entries |= {method: {"color": INK, "marker": marker, "linestyle": ""} for method, marker in markers.items()}
    front = _front(rows)
    axes.step(front[names.STANDARD_ERROR], front[names.CERTIFIED_ERROR], where="post", color=INK, lw=0.8, ls=":")
    if len(front) > 1:
        entries["not beaten in both"] = {"color": INK, "lw": 0.8, "ls": ":"}
    for rank, row in enumerate(rows.to_dict("records"), start=1):
        deviations = [row[f"{name}_std"] for name in (names.STANDARD_ERROR, names.CERTIFIED_ERROR)]
        axes.errorbar(
            row[names.STANDARD_ERROR], row[names.CERTIFIED_ERROR], *reversed(np.nan_to_num(deviations)),
            color=colours[row["model"]], marker=markers[row["method"]], ms=7, lw=1,
        )  # fmt: skip
        place = row[names.STANDARD_ERROR], row[names.CERTIFIED_ERROR]
        axes.annotate(str(rank), place, (5, 5), textcoords="offset points", fontsize=7)
    if shown.section.whole and len(published := shown.published.dropna(subset=[names.STANDARD_ERROR])):
        axes.plot(
            published[names.STANDARD_ERROR], published[names.CERTIFIED_ERROR], "*", ms=9, mfc="none", mec=INK, mew=0.8
        )
        entries["published"] = {"marker": "*", "linestyle": "", "mfc": "none", "mec": INK}
    axes.set(xlabel="standard error, %", ylabel="certified error, %")
    keys(figure, entries)
    return figure


def _front(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in order of their standard errors, each with a lower certified error than those before it."""
    rows = rows.sort_values([names.STANDARD_ERROR, names.CERTIFIED_ERROR])
    best = rows[names.CERTIFIED_ERROR].cummin()
    return rows[best < best.shift(fill_value=np.inf)]


def by_seed(shown: Shown) -> Figure | None:
    """The three errors of each trained network; the bar between attack and certified error is what is open."""
    trials = shown.trials
    if trials.empty:
        return None
    labels = list(dict.fromkeys(trials["label"]))
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
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def stages(shown: Shown) -> Figure | None:
    """Which share of the images each stage decides, in the order in which they are asked."""
    trials = shown.trials
    asked = [stage for stage in ("clean", "attack", *STAGES) if names.decided_by(stage) in trials]
    if not asked:
        return None
    images = names.examples_at("clean")
    counts = trials.groupby("label", sort=False)[[images, *map(names.decided_by, asked)]].sum()
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
    figure, (axes,) = panels(height=4.2)
    means = trials.groupby(["label", "model", "method"], sort=False).mean(numeric_only=True).reset_index()
    colours, markers = assigned(means["model"], COLOURS), assigned(means["method"], MARKERS)
    for row in means.to_dict("records"):
        images = row[names.examples_at("clean")]
        seconds = np.cumsum([row[names.seconds_of(stage)] for stage in stages]) / images
        decided = 100 * np.cumsum([row[names.decided_by(stage)] for stage in stages]) / images
        axes.plot(seconds, decided, marker=markers[row["method"]], color=colours[row["model"]], ms=5, lw=1.2)
    axes.set(xscale="log", xlabel="seconds an image, all stages so far", ylabel="decided, % of the images")
    plain_ticks(axes.xaxis)
    entries = {model: {"color": colour, "lw": 4} for model, colour in colours.items()}
    keys(figure, entries | {name: {"color": INK, "marker": m, "linestyle": ""} for name, m in markers.items()})
    return figure


def against_eps(tables: list[Table]) -> Figure | None:
    """Certified error against the radius over the sweeps of a data set, where two or more radii were looked at.

    Rows of one network, method, profile and list of stages are joined, the best of each radius.
    """
    rows = pd.DataFrame([row for table in tables for row in _by_radius(table)])
    radii = rows.groupby("dataset")["eps"].nunique() if len(rows) else pd.Series(dtype=int)
    datasets = [name for name, count in radii.items() if count > 1]
    if not datasets:
        return None
    rows = rows[rows["dataset"].isin(datasets)]
    figure, axes = panels(1, len(datasets), width=max(5.0, 4.0 * len(datasets)), height=4)
    colours, markers = assigned(rows["model"], COLOURS), assigned(rows["method"], MARKERS)
    for place, dataset in zip(axes, datasets, strict=True):
        for (model, method, *_), part in rows[rows["dataset"] == dataset].groupby(["model", "method", "how"]):
            line = part.groupby("eps")[names.CERTIFIED_ERROR].min()
            place.plot(line.index, line, marker=markers[method], color=colours[model], ms=5, lw=1)
        place.set_title(str(dataset), loc="left")
        place.set_xlabel("eps")
    axes[0].set_ylabel("certified error, %")
    entries = {model: {"color": colour, "lw": 4} for model, colour in colours.items()}
    keys(figure, entries | {name: {"color": INK, "marker": m, "linestyle": ""} for name, m in markers.items()})
    return figure


def _by_radius(table: Table) -> list[dict[str, Any]]:
    """The sweep's own rows with their radii, and how they were trained and judged."""
    found = []
    for section in (section for section in table.sections if not section.stale):
        own = section.own.dropna(subset=names.CERTIFIED_ERROR)
        how = section.heading.split(", ", 2)[2]
        told = own[["model", "method", names.CERTIFIED_ERROR]].to_dict("records")
        found += [row | {"dataset": section.dataset, "eps": float(section.eps), "how": how} for row in told]
    return found
