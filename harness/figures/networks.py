"""What is inside trained networks: how bounds grow with depth, which ReLUs bounds decide."""

from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.figures.section_data import SectionData
from harness.figures.style import COLOURS, DASHES, INK, MARKERS, add_legend, assign, panels, plain_ticks
from harness.storage import folder, names

_MOST_PANELS, _LONGEST = 12, 36  # characters of a title's line
_STATES = (("active", "#0072b2"), ("unstable", "#e69f00"), ("inactive", "#b9bfc6"))


def depth(data: SectionData) -> Figure | None:
    """Bound width against depth before and after training; equilibria, which have no depth, as horizontal lines."""
    if data.trials.empty or data.epochs.empty:
        return None
    trials = data.trials.merge(data.untrained[["label", "seed", names.BOUND_WIDTH]], on=["label", "seed"])
    trials["depth"] = [_depth(trial) for trial in trials.to_dict("records")]
    if trials["depth"].nunique() < 2:
        return None
    initialisations = data.rows.set_index("label")["train.initialisation"]
    single = initialisations.nunique() == 1
    trials["kind"] = trials["method"] + ("" if single else ", initialisation " + trials["label"].map(initialisations))
    colours, dashes = assign(trials["model"], COLOURS), assign(trials["kind"], DASHES)
    markers = assign(colours, MARKERS)
    figure, axes = panels(1, 2, width=9, height=4.2)
    for panel, column, title in zip(axes, ("bound_width_y", "bound_width_x"), ("before", "after"), strict=True):
        for (model, kind), part in trials.dropna(subset=column).groupby(["model", "kind"]):
            look = {"color": colours[model], "ls": dashes[kind], "lw": 1.2}
            line = part.groupby("depth")[column].mean()
            panel.plot(line.index, line, marker=markers[model], ms=5, **look)
            for width in part[part["depth"].isna()].groupby("label")[column].mean():
                panel.axhline(width, **look)
        panel.set(yscale="log", xlabel="depth, layers", xticks=sorted(trials["depth"].dropna().unique()))
        plain_ticks(panel.yaxis)
        panel.set_title(f"{title} training", loc="left")
    axes[0].set_ylabel("width of the margins' bounds")
    explicit = set(trials.loc[trials["depth"].notna(), "model"])
    entries = {m: {"color": c, "marker": markers[m] if m in explicit else ""} for m, c in colours.items()}
    add_legend(figure, entries | {kind: {"color": INK, "ls": dash} for kind, dash in dashes.items()})
    return figure


def _depth(trial: dict[str, Any]) -> int | None:
    """Return a network's option `depth`, else its recorded pre-activations and its last layer; None of equilibria."""
    if names.RHO_BOUND in trial and not pd.isna(trial[names.RHO_BOUND]):
        return None
    options = folder.read_trial(trial["trial_dir"] / folder.TRIAL).config.options
    return options.get("depth", len(trial["layers"]) + 1)


def relus(data: SectionData) -> Figure | None:
    """Which share of each pre-activation's values is above 0, below 0, or either, over the ball; means over seeds."""
    if not any(name.startswith(names.layer_unstable("")) for name in data.trials):
        return None
    networks = list(data.trials.groupby("label", sort=False))[:_MOST_PANELS]
    columns = min(3, len(networks))
    count = -(-len(networks) // columns)
    figure, axes = panels(count, columns, width=9, height=0.9 + 1.9 * count)
    for panel, (label, trials) in zip(axes, networks, strict=False):
        shares = _shares(trials)
        left = pd.Series(0.0, shares.index)
        for state, colour in _STATES:
            panel.bar(range(1, len(shares) + 1), shares[state], bottom=left, color=colour, width=0.8)
            left = left + shares[state]
        panel.set_title(fill(str(label), _LONGEST), loc="left", fontsize=8)
        panel.set_ylim(0, 100)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(axis="x", visible=False)
    for panel in axes[len(networks) :]:
        panel.set_axis_off()
    for panel in axes[::columns]:
        panel.set_ylabel("values, %")
    add_legend(figure, {state: {"color": c, "marker": "s", "linestyle": "", "ms": 8} for state, c in _STATES})
    return figure


def _shares(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each pre-activation of one network, a column for each state, percent."""
    layers = trials["layers"].iloc[0]
    unstable = trials[[names.layer_unstable(layer) for layer in layers]].mean().to_numpy()
    inactive = trials[[names.layer_inactive(layer) for layer in layers]].mean().to_numpy()
    return pd.DataFrame({"unstable": unstable, "inactive": inactive, "active": 100 - unstable - inactive}, index=layers)
