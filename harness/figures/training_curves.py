"""What happens while networks train."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.figures.section_data import OTHERS, SectionData
from harness.figures.style import COLOURS, INK, add_legend, assign, panels, plain_ticks
from harness.storage import names

_BOUND_WIDTH, _RELATIVE = names.in_training(names.BOUND_WIDTH), names.in_training(names.BOUND_WIDTH_RELATIVE)
_TITLES = {
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


def curves(data: SectionData) -> Figure | None:
    """Errors, loss, eps, widths and what recurrences learn, epoch by epoch; means over the seeds."""
    best = data.rows["label"].head(len(COLOURS))
    epochs = data.epochs[data.epochs["label"].isin(best)] if len(data.epochs) else data.epochs
    metrics = [name for name in _TITLES if name in epochs and epochs[name].nunique() > 1]
    if not metrics:
        return None
    count = -(-len(metrics) // 3)
    figure, axes = panels(count, 3, width=9, height=0.6 + 2.2 * count)
    for panel, name in zip(axes, metrics, strict=False):
        for label, part in epochs.dropna(subset=name).groupby("label", sort=False):
            line = part.groupby(names.EPOCH)[name].mean()
            panel.plot(line.index, line, **data.looks[str(label)], ms=3, lw=1.2)
        panel.set_title(_TITLES[name], loc="left")
        if name in (_BOUND_WIDTH, _RELATIVE, names.TRAIN_LOSS):
            panel.set_yscale("log")
            plain_ticks(panel.yaxis)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes[len(metrics) :]:
        panel.set_axis_off()
    for panel in axes[max(0, len(metrics) - 3) : len(metrics)]:
        panel.set_xlabel("epoch; 0 is untrained")
    add_legend(figure, {label: data.looks[label] for label in dict.fromkeys(epochs["label"])})
    return figure


def layer_widths(data: SectionData) -> Figure | None:
    """The mean width of each pre-activation's bounds, before and after training; means over the seeds."""
    if data.epochs.empty or data.trials.empty:
        return None
    trials = data.trials
    models, layers = list(dict.fromkeys(trials["model"])), dict(trials[["label", "layers"]].to_numpy())
    count = -(-len(models) // 3)
    figure, axes = panels(count, min(3, len(models)), width=9, height=0.9 + 2.4 * count)
    settings = {label: label.removeprefix(model).strip() for label, model in trials[["label", "model"]].to_numpy()}
    best = list(dict.fromkeys(settings.values()))[: len(COLOURS)]  # the others are grey
    colours = assign(best, COLOURS)
    for panel, model in zip(axes, models, strict=False):
        for frame, dash in ((data.untrained, ":"), (trials, "-")):
            for label, part in frame[frame["model"] == model].groupby("label", sort=False):
                line = _mean_widths(part, layers[label])
                colour = colours.get(settings[label], OTHERS["color"])
                panel.plot(range(1, len(line) + 1), line, dash, marker=".", color=colour, lw=1.2)
        panel.set_title(model, loc="left")
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
        panel.set_xlabel("pre-activation, first to last")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes[len(models) :]:
        panel.set_axis_off()
    axes[0].set_ylabel("mean bound width")
    limits = np.array([panel.get_ylim() for panel in axes[: len(models)]])
    for panel in axes[: len(models)]:
        panel.set_ylim(limits.min(), limits.max())
    entries = {words: {"color": colour} for words, colour in colours.items()}
    entries |= {} if set(settings.values()) == set(best) else {"other rows": {"color": OTHERS["color"]}}
    add_legend(figure, entries | {"trained": {"color": INK}, "before training": {"color": INK, "ls": ":"}})
    return figure


def _mean_widths(part: pd.DataFrame, layers: list[str]) -> np.ndarray:
    return part[[names.layer_width(layer) for layer in layers]].astype(float).mean().to_numpy()
