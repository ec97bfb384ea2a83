"""What is inside networks: bounds and ReLUs."""

from collections.abc import Callable
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.common import names
from harness.report.figures.section_data import SectionData
from harness.report.figures.style import DASHES, GREY, INK, add_legend, assign, panels, plain_ticks, squares
from harness.storage import folder

_MOST_PANELS, _LONGEST = 12, 36  # characters of a title's line
_STATES = {"active": "#1b4d3e", "unstable": "#f4a58a", "inactive": "#d9dde2"}
_FEWEST_DEPTHS = 3


def depth(data: SectionData) -> Figure | None:
    """Width of the margins' bounds by IBP: before training at its eps, after it at that of the evaluation.

    Means over seeds. Equilibria are horizontal lines. A line joins the rows of one network and method, unless two of
    them have one depth.
    """
    if data.epochs.empty:
        return None
    trials = data.trials.merge(data.untrained[["label", "seed", names.BOUND_WIDTH]], on=["label", "seed"])
    trials["depth"] = [_depth(trial) for trial in trials.to_dict("records")]
    if trials["depth"].nunique() < _FEWEST_DEPTHS:
        return None
    initialisations = data.section.own.set_index("label")["train.initialisation"]
    single = initialisations.nunique() == 1
    trials["kind"] = trials["method"] + ("" if single else ", initialisation " + trials["label"].map(initialisations))
    dashes = assign(trials["kind"], DASHES)
    figure, axes = panels(2, 2, width=9, height=4.2)
    for panel, column, title in zip(axes, ("bound_width_y", "bound_width_x"), ("before", "after"), strict=True):
        for (_, kind), part in trials.dropna(subset=column).groupby(["model", "kind"]):
            dash: dict[str, Any] = {"ls": dashes[kind], "lw": 1.2}
            rows = part.groupby("label")[["depth", column]].mean().sort_values("depth")
            explicit = rows.dropna()
            if explicit["depth"].is_unique:
                panel.plot(explicit["depth"], explicit[column], color=GREY, **dash)
            for label, (layers, width) in rows.iterrows():
                look = data.looks[str(label)]
                if pd.isna(layers):
                    panel.axhline(width, color=look["color"], **dash)
                else:
                    panel.plot(layers, width, **look, ms=5, ls="")
        panel.set(yscale="log", xlabel="depth, layers", xticks=sorted(trials["depth"].dropna().unique()))
        plain_ticks(panel.yaxis)
        panel.set_title(f"{title} training", loc="left")
    axes[0].set_ylabel("width of the margins' bounds")
    entries = data.legend(trials.loc[trials["depth"].notna(), "label"], ls="")
    entries |= data.legend(trials.loc[trials["depth"].isna(), "label"], marker="")
    add_legend(figure, entries | {kind: {"color": GREY, "ls": dash} for kind, dash in dashes.items()})
    return figure


def _depth(trial: dict[str, Any]) -> int | None:
    """Return a network's option `depth`, else its recorded pre-activations and its last layer; None of equilibria."""
    if pd.notna(trial.get(names.RHO_BOUND)):
        return None
    options = folder.read_training(folder.network_of(trial["evaluation_dir"]) / folder.TRAINING).config.options
    return options.get("depth", len(names.layers(trial["result"].metrics)) + 1)


def layers(data: SectionData) -> Figure | None:
    """By IBP at the eps of the evaluation. Dotted: before training, on training images, at the eps of training."""
    if data.epochs.empty:
        return None
    trials = data.trials
    models = list(dict.fromkeys(trials["model"]))
    rows = -(-len(models) // 3)
    figure, axes = panels(len(models), min(3, len(models)), width=9, height=0.6 + 2.4 * rows)
    for panel, model in zip(axes, models, strict=True):
        for frame, dash in ((data.untrained, ":"), (trials, "-")):
            for label, part in frame[frame["model"] == model].groupby("label", sort=False):
                line = _means(part, names.layer_width, _layers(trials, label))
                colour = data.looks[str(label)]["color"]
                panel.plot(range(1, len(line) + 1), line, dash, marker=".", color=colour, lw=1.2)
        panel.set_title(model, loc="left")
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
        panel.set_xlabel("pre-activation, first to last")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes[0].set_ylabel("mean bound width")
    limits = np.array([panel.get_ylim() for panel in axes])
    for panel in axes:
        panel.set_ylim(limits.min(), limits.max())
    entries = data.legend(trials["label"], marker="")
    add_legend(figure, entries | {"trained": {"color": INK}, "before training": {"color": INK, "ls": ":"}})
    return figure


def relus(data: SectionData) -> Figure | None:
    """By IBP at the eps of the evaluation, pre-activation by pre-activation.

    Active is above 0 over the whole ball, inactive below, unstable is undecided by the bounds. At most the twelve
    best rows.
    """
    if not any(name.startswith(names.layer_unstable("")) for name in data.trials):
        return None
    networks = list(data.trials.groupby("label", sort=False))[:_MOST_PANELS]
    columns = min(3, len(networks))
    figure, axes = panels(len(networks), columns, width=9, height=0.6 + 1.9 * -(-len(networks) // columns))
    for panel, (label, trials) in zip(axes, networks, strict=True):
        layers = _layers(trials, label)
        unstable, inactive = (_means(trials, name, layers) for name in (names.layer_unstable, names.layer_inactive))
        shares = {"active": 100 - unstable - inactive, "unstable": unstable, "inactive": inactive}
        left = np.zeros(len(layers))
        for state, colour in _STATES.items():
            panel.bar(range(1, len(layers) + 1), shares[state], bottom=left, color=colour, width=0.8)
            left = left + shares[state]
        panel.set_title(fill(str(label), _LONGEST), loc="left", fontsize=8)
        panel.set_ylim(0, 100)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(axis="x", visible=False)
    for panel in axes[::columns]:
        panel.set_ylabel("values, %")
    add_legend(figure, squares(_STATES))
    return figure


def _layers(trials: pd.DataFrame, label: Any) -> list[str]:
    """Return the pre-activations of a row's network, first to last; columns of several networks are in no order."""
    return names.layers(trials.loc[trials["label"] == label, "result"].iloc[0].metrics)


def _means(trials: pd.DataFrame, name: Callable[[str], str], layers: list[str]) -> np.ndarray:
    """Return a metric's mean over the trials for each pre-activation."""
    return trials[[name(layer) for layer in layers]].astype(float).mean().to_numpy()
