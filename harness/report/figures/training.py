"""What happens while networks train: errors, losses, widths."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.common import names
from harness.report.figures.section_data import SectionData
from harness.report.figures.style import COLOURS, add_legend, panels, plain_ticks

_BOUND_WIDTH, _RELATIVE = names.in_training(names.BOUND_WIDTH), names.in_training(names.BOUND_WIDTH_RELATIVE)
_MISSED, _LEAST_MISSED = names.in_training(names.MISSED_RADIUS), 0.01
_EXPLAINED = "Missed radius: the share of the radius at the fixed point that the solve in training leaves out."
_TITLES = {
    names.TRAIN_CERTIFIED_ERROR: "certified error, %",
    names.TRAIN_STANDARD_ERROR: "standard error, %",
    names.TRAIN_LOSS: "loss",
    names.TRAIN_EPS: "eps",
    _BOUND_WIDTH: "bound width",
    _RELATIVE: "relative width",
    names.in_training(names.RHO_BOUND): "bound on rho(|W|)",
    names.in_training(names.GAIN): "learned gain",
    _MISSED: "missed radius, %",
}


def curves(data: SectionData) -> Figure | None:
    """Training images, means over seeds: errors and loss at the eps of the epoch, widths at that of the last one.

    At most the eight best rows.
    """
    if data.epochs.empty:
        return None
    labels = data.section.own["label"]
    best = labels[labels.isin(data.epochs["label"])].head(len(COLOURS))  # networks trained elsewhere have no epochs
    epochs = data.epochs[data.epochs["label"].isin(best)]
    metrics = [name for name in _TITLES if name in epochs and epochs[name].nunique() > 1]
    if _MISSED in metrics and not epochs[_MISSED].max() > _LEAST_MISSED:
        metrics.remove(_MISSED)  # rounding of the solve
    figure, axes = panels(len(metrics), 3, width=9, height=0.6 + 2.2 * -(-len(metrics) // 3))
    figure.set_label(_EXPLAINED if _MISSED in metrics else "")
    for panel, name in zip(axes, metrics, strict=True):
        for label, part in epochs.dropna(subset=name).groupby("label", sort=False):
            line = part.groupby(names.EPOCH)[name].mean()
            panel.plot(line.index, line, **data.looks[str(label)], ms=3, lw=1.2)
        panel.set_title(_TITLES[name], loc="left")
        if name in (_BOUND_WIDTH, _RELATIVE, names.TRAIN_LOSS):
            panel.set_yscale("log")
            plain_ticks(panel.yaxis)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for panel in axes[-3:]:
        panel.set_xlabel("epoch; 0 is untrained")
    add_legend(figure, {label: data.looks[label] for label in dict.fromkeys(epochs["label"])})
    return figure
