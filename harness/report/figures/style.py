"""How all figures look, and how they are written.

COLOURS are of rows alone, those of Okabe and Ito (2008), which colour-blind readers can distinguish; a marker, dash or
label repeats what a colour says. Texts and lines are drawn in INK, which a page replaces by its own text colour, light
or dark.
"""

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from harness.storage.files import write_atomically

INK, GREY = "#24292f", "#8a929b"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_HANDLE, _CHARACTER, _LINE, _BAR = 0.65, 0.075, 0.16, 0.36
"""Inches, about: a legend's line beside its text, a character, a line of text, a bar."""
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # texts stay texts: found, selected, read aloud
    "svg.hashsalt": "figures",
    "pdf.fonttype": 42,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
    ),
}


def panels(count: int = 1, columns: int = 1, width: float = 5.6, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Return a figure of this size in inches with so many axes, row by row."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


class _PlainNumbers(LogFormatter):
    """Numbers, not formulas, which are slow to draw; between powers of ten only where an axis has few of them."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of a tick."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers."""
    axis.set_major_formatter(_PlainNumbers())
    axis.set_minor_formatter(_PlainNumbers(minor_thresholds=(1.5, 0.4)))


def assign(values: Iterable[Any], choices: Sequence[Any]) -> dict[Any, Any]:
    """Return a colour, marker or dash for each different value; the same whatever their order, in all figures."""
    return dict(zip(sorted(set(values)), cycle(choices), strict=False))


def add_legend(figure: Figure, entries: dict[str, dict[str, Any]]) -> None:
    """Add a legend below the figure, which grows by it. entries: how the line of each name looks."""
    names = [fill(name, int((figure.get_figwidth() - _HANDLE) / _CHARACTER)) for name in entries]
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = min(len(names), max(1, int(figure.get_figwidth() / (_HANDLE + _CHARACTER * longest))))
    lines = -(-sum(name.count("\n") + 1 for name in names) // columns)
    figure.set_figheight(figure.get_figheight() + _LINE * (lines + 1))
    handles = [Line2D([], [], **look, label=name) for name, look in zip(names, entries.values(), strict=True)]
    with rc_context(_STYLE):
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def label_bars(axes: Axes, labels: Sequence[str], characters: int) -> None:
    """Label the rows of bars, the first on top, in lines of so many characters; the figure grows by them."""
    texts = [fill(label, characters) for label in labels]
    lines = max(text.count("\n") for text in texts) + 1
    figure = axes.get_figure(root=True)
    figure.set_figheight(figure.get_figheight() + len(labels) * max(_BAR, _LINE * (lines + 0.5)))  # type: ignore[union-attr]
    axes.set_yticks(range(len(labels)), texts)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def squares(colours: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the legend's entries for parts of bars, by their names."""
    return {name: {"color": colour, "marker": "s", "linestyle": "", "ms": 8} for name, colour in colours.items()}


def svg(figure: Figure, name: str, title: str) -> str:
    """Return a figure as an SVG element for a page: of any width, in the page's text colour, with ids of its own.

    name: begins its ids. title: read aloud.
    """
    stream = io.StringIO()
    with rc_context(_STYLE):
        _fix_layout(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = re.sub(r'\bid="', f'id="{name}-', text[text.index("<svg") :])
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text).replace(INK, "currentColor")
    head, rest = text.split(">", 1)
    width = head.split('viewBox="0 0 ')[1].split(" ")[0]
    head = re.sub(r' (width|height)="[\d.]+pt"', "", head)
    return f'{head} role="img" aria-label="{escape(title)}" style="max-width: {1.3 * float(width):g}pt">{rest}'


def write_pdf(figure: Figure, path: Path) -> None:
    """Write a figure as PDF, the same bytes for the same figure."""
    dates = {"CreationDate": None, "Creator": None}
    with rc_context(_STYLE):
        _fix_layout(figure)
        write_atomically(path, lambda to: figure.savefig(to, format="pdf", metadata=dates))


def _fix_layout(figure: Figure) -> None:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # keep the layout
