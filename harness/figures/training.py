"""What happens while networks train."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.figures.shown import OTHERS, Shown
from harness.figures.style import COLOURS, INK, assigned, keys, panels, plain_ticks
from harness.storage import names

_BOUND_WIDTH, _RELATIVE = names.in_training(names.BOUND_WIDTH), names.in_training(names.BOUND_WIDTH_RELATIVE)
_WATCHED = {
    names.TRAIN_CERTIFIED_ERROR: "certified error, %",
    names.TRAIN_STANDARD_ERROR: "standard error, %",
    names.TRAIN_LOSS: "loss",
    names.TRAIN_EPS: "eps",
    _BOUND_WIDTH: "bound width",
    _RELATIVE: "relative width",
    names.in_training(names.RHO_BOUND): "bound on rho(|W|)",
    names.in_training(names.GAIN): "learned gain",
    names.in_training(names.MISSED_RADIUS): "missed radius, %",
}


def curves(shown: Shown) -> Figure | None:
    """Errors, loss, eps, widths and what recurrences learn, epoch by epoch; means over the seeds."""
    best = shown.rows["label"].head(len(COLOURS))
    epochs = shown.epochs[shown.epochs["label"].isin(best)] if len(shown.epochs) else shown.epochs
    watched = [name for name in _WATCHED if name in epochs and epochs[name].nunique() > 1]
    if not watched:
        return None
    count = -(-len(watched) // 3)
    figure, axes = panels(count, 3, width=9, height=0.6 + 2.2 * count)
    for place, name in zip(axes, watched, strict=False):
        for label, part in epochs.dropna(subset=name).groupby("label", sort=False):
            line = part.groupby(names.EPOCH)[name].mean()
            place.plot(line.index, line, **shown.looks[str(label)], ms=3, lw=1.2)
        place.set_title(_WATCHED[name], loc="left")
        if name in (_BOUND_WIDTH, _RELATIVE, names.TRAIN_LOSS):
            place.set_yscale("log")
            plain_ticks(place.yaxis)
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
    for place in axes[len(watched) :]:
        place.set_axis_off()
    for place in axes[max(0, len(watched) - 3) : len(watched)]:
        place.set_xlabel("epoch; 0 is untrained")
    keys(figure, {label: shown.looks[label] for label in dict.fromkeys(epochs["label"])})
    return figure


def layer_widths(shown: Shown) -> Figure | None:
    """The mean width of each pre-activation's bounds, before and after training; means over the seeds."""
    if shown.epochs.empty or shown.trials.empty:
        return None
    before = shown.epochs[shown.epochs[names.EPOCH] == 0].rename(columns=lambda name: name.removeprefix("train/"))
    models, layers = list(dict.fromkeys(shown.trials["model"])), dict(shown.trials[["label", "layers"]].to_numpy())
    count = -(-len(models) // 3)
    figure, axes = panels(count, min(3, len(models)), width=9, height=0.9 + 2.4 * count)
    kinds = {label: _kind(label, model) for label, model in shown.trials[["label", "model"]].to_numpy()}
    best = list(dict.fromkeys(kinds.values()))[: len(COLOURS)]  # the others are grey
    colours = assigned(best, COLOURS)
    for place, model in zip(axes, models, strict=False):
        for frame, dash in ((before, ":"), (shown.trials, "-")):
            of_model = frame[frame["model"] == model]
            for label, part in of_model.groupby("label", sort=False):
                line = _widths(part, layers[label])
                colour = colours.get(kinds[label], OTHERS["color"])
                place.plot(range(1, len(line) + 1), line, dash, marker=".", color=colour, lw=1.2)
        place.set_title(model, loc="left")
        place.set_yscale("log")
        plain_ticks(place.yaxis)
        place.set_xlabel("pre-activation, first to last")
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
    for place in axes[len(models) :]:
        place.set_axis_off()
    axes[0].set_ylabel("mean bound width")
    ends = np.array([place.get_ylim() for place in axes[: len(models)]])
    for place in axes[: len(models)]:
        place.set_ylim(ends.min(), ends.max())
    entries = {kind: {"color": colour} for kind, colour in colours.items()}
    entries |= {} if set(kinds.values()) == set(best) else {"other rows": {"color": OTHERS["color"]}}
    keys(figure, entries | {"trained": {"color": INK}, "before training": {"color": INK, "ls": ":"}})
    return figure


def _kind(label: str, model: str) -> str:
    """What sets a row apart from others of its network."""
    return label.removeprefix(model).strip()


def _widths(part: pd.DataFrame, layers: list[str]) -> np.ndarray:
    return part[[names.layer_width(layer) for layer in layers]].astype(float).mean().to_numpy()
