"""What is inside trained networks: how bounds grow with depth, which ReLUs bounds decide."""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.analysis.depth import FAMILIES, depth_table
from harness.errors import InputError
from harness.figures.shown import Shown
from harness.figures.style import COLOURS, DASHES, INK, MARKERS, assigned, keys, panels, plain_ticks
from harness.storage import names
from harness.storage.files import DamagedFileError

_MOST_PANELS, _LONGEST = 12, 36  # characters of a title's line
_STATES = (("active", "#0072b2"), ("unstable", "#e69f00"), ("inactive", "#b9bfc6"))


def depth(shown: Shown) -> Figure | None:
    """Bound width against depth before and after training; networks without one, such as equilibria, as lines."""
    try:
        table = depth_table(shown.table.directory, shown.table)
    except DamagedFileError:
        raise
    except InputError:  # trials of older recipes alone
        return None
    table = table[table["profile"].isin(shown.rows["profile"]) & table["eps"].isin(shown.rows["eps"])]
    deep = table[table["family"].isin(FAMILIES)]
    if deep.groupby(["family", "method"])["depth"].nunique().max() in (1, np.nan):
        return None
    kinds = list(table[["family", "method", "initialisation"]].drop_duplicates().itertuples(index=False, name=None))
    colours, dashes = assigned([kind[0] for kind in kinds], COLOURS), assigned([kind[1:] for kind in kinds], DASHES)
    markers = assigned(colours, MARKERS)
    figure, axes = panels(1, 2, width=9, height=4.2)
    for place, column, title in zip(axes, ("initial_width", "final_width"), ("before", "after"), strict=True):
        for family, method, initialisation in kinds:
            alike = (table["method"] == method) & (table["initialisation"] == initialisation)
            part = table[(table["family"] == family) & alike].replace(np.inf, np.nan).dropna(subset=column)
            look = {"color": colours[family], "ls": dashes[method, initialisation], "lw": 1.2}
            with_depth = part.dropna(subset="depth").sort_values("depth")
            place.plot(with_depth["depth"].astype(float), with_depth[column], marker=markers[family], ms=5, **look)
            for width in part.loc[part["depth"].isna(), column]:
                place.axhline(width, **look)
        place.set(yscale="log", xlabel="depth, layers", xticks=sorted(deep["depth"].astype(int).unique()))
        plain_ticks(place.yaxis)
        place.set_title(f"{title} training", loc="left")
    axes[0].set_ylabel("width of the margins' bounds")
    told = {
        family: {"color": c, "marker": markers[family] if family in FAMILIES else ""} for family, c in colours.items()
    }
    alone = len({initialisation for _, initialisation in dashes}) == 1
    said = {kind: kind[0] if alone else f"{kind[0]}, initialisation {kind[1]}" for kind in dashes}
    keys(figure, told | {said[kind]: {"color": INK, "ls": dash} for kind, dash in dashes.items()})
    return figure


def relus(shown: Shown) -> Figure | None:
    """Which share of each pre-activation's values is above 0, below 0, or either, over the ball; means over seeds."""
    if not any(name.startswith(names.layer_unstable("")) for name in shown.trials):
        return None
    networks = list(shown.trials.groupby("label", sort=False))[:_MOST_PANELS]
    columns = min(3, len(networks))
    count = -(-len(networks) // columns)
    figure, axes = panels(count, columns, width=9, height=0.9 + 1.9 * count)
    for place, (label, part) in zip(axes, networks, strict=False):
        shares = _shares(part)
        left = pd.Series(0.0, shares.index)
        for state, colour in _STATES:
            place.bar(range(1, len(shares) + 1), shares[state], bottom=left, color=colour, width=0.8)
            left = left + shares[state]
        place.set_title(fill(str(label), _LONGEST), loc="left", fontsize=8)
        place.set_ylim(0, 100)
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        place.grid(axis="x", visible=False)
    for place in axes[len(networks) :]:
        place.set_axis_off()
    for place in axes[::columns]:
        place.set_ylabel("values, %")
    keys(figure, {state: {"color": c, "marker": "s", "linestyle": "", "ms": 8} for state, c in _STATES})
    return figure


def _shares(part: pd.DataFrame) -> pd.DataFrame:
    """A row a pre-activation of one network, a column a state, percent."""
    layers = part["layers"].iloc[0]
    unstable = part[[names.layer_unstable(layer) for layer in layers]].mean().to_numpy()
    inactive = part[[names.layer_inactive(layer) for layer in layers]].mean().to_numpy()
    return pd.DataFrame({"unstable": unstable, "inactive": inactive, "active": 100 - unstable - inactive}, index=layers)
