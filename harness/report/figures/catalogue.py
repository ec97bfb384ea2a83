"""All figures of a section. To add one, write a function in a file of this package and add a record to FIGURES."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from harness.report.figures import error_figures, images, networks, searches, training
from harness.report.figures.section_data import SectionData
from harness.storage import folder
from harness.storage.files import DamagedFileError


@dataclass(frozen=True)
class FigureKind:
    """A figure that a section may have.

    title: on a page.
    draw: returns the figure, or None where the section has nothing to show in it. Its name is that of the files, its
        docstring the caption.
    of_training: whether it shows the training, which is the same in the sections of all evaluations.
    broad: whether it needs a page's whole width.
    """

    title: str
    draw: Callable[[SectionData], Figure | None]
    of_training: bool = False
    broad: bool = False

    @property
    def name(self) -> str:
        """The name of the figure's files."""
        return self.draw.__name__

    @property
    def caption(self) -> str:
        """The text below the figure; the figure's own label, on what not all of its kind show, follows it."""
        return " ".join((inspect.getdoc(self.draw) or "").split())


FIGURES = (
    FigureKind("Certified against standard error", error_figures.tradeoff),
    FigureKind("Errors of each trained network", error_figures.seeds),
    FigureKind("What each stage decides", error_figures.stages, broad=True),
    FigureKind("Certified error against eps", error_figures.radii),
    FigureKind("Errors against the length of training", error_figures.length, broad=True),
    FigureKind("Bound width against depth", networks.depth, of_training=True, broad=True),
    FigureKind("Bound width, layer by layer", networks.layers, of_training=True, broad=True),
    FigureKind("States of ReLUs", networks.relus, of_training=True, broad=True),
    FigureKind("Training", training.curves, of_training=True, broad=True),
    FigureKind("Fronts of searches", searches.fronts, broad=True),
    FigureKind("What was searched", searches.search, of_training=True, broad=True),
    FigureKind("Which settings matter", searches.importance, of_training=True),
    FigureKind("Adversarial examples", images.counterexamples, of_training=True, broad=True),
)


def figures_of(data: SectionData) -> Iterator[tuple[FigureKind, Figure | str]]:
    """Yield the figures that the section has something for, in order; for one that cannot be drawn, the reason."""
    for kind in FIGURES:
        try:
            figure = kind.draw(data) if data.is_main or not kind.of_training else None
        except DamagedFileError as error:
            yield kind, str(error)
            continue
        except KeyError as error:  # a number is missing in every result.json or epochs.jsonl
            yield kind, f"{folder.RESULT} or {folder.EPOCHS} of every network in {data.sweep_dir} lacks {error.args[0]}"
            continue
        if figure is not None:
            yield kind, figure
