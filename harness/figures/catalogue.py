"""All figures of a section. To add one, write a function in a file of this package and add a record to FIGURES."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from harness.figures import error_figures, images, networks, searches, training_curves
from harness.figures.section_data import SectionData
from harness.storage.files import DamagedFileError


@dataclass(frozen=True)
class Kind:
    """A figure that a section may have.

    name: of its files. title, caption: on a page.
    draw: returns the figure, or None where the section has nothing to show in it.
    of_trials: whether it shows the training, which is the same in a section of certifications.
    broad: whether it needs a page's whole width.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[SectionData], Figure | None]
    of_trials: bool = False
    broad: bool = False


FIGURES = (
    Kind(
        "tradeoff",
        "Certified against standard error",
        "Lower left is better; numbers are ranks. Bars: sample deviation over seeds. Published numbers stand here only "
        "beside networks of full size.",
        error_figures.tradeoff,
    ),
    Kind(
        "seeds",
        "Errors of each trained network",
        "The robust error lies on the bar between attack and certified error. Best row on top. "
        "At most the thirty best rows.",
        error_figures.by_seed,
    ),
    Kind(
        "stages",
        "What each stage decides",
        "Shares of all images. What no stage decides is unknown, and counts as an error. At most the thirty best rows.",
        error_figures.stages,
    ),
    Kind(
        "time",
        "Time of each stage",
        "A point after each stage that ran, in the order clean, attack, ibp and on; means over seeds. At most the "
        "eight best rows.",
        error_figures.time,
    ),
    Kind(
        "depth",
        "Bound width against depth",
        "Width of the margins' bounds by IBP at the sweep's eps; equilibria are horizontal lines.",
        networks.depth,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "layers",
        "Bound width, layer by layer",
        "IBP at the sweep's eps. Dotted: before training, on training images.",
        training_curves.layer_widths,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "relus",
        "States of ReLUs",
        "By IBP at the sweep's eps, pre-activation by pre-activation: active is above 0 over the whole ball, inactive "
        "below, unstable is undecided by the bounds. At most the twelve best rows.",
        networks.relus,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "curves",
        "Training",
        "Of training images, means over seeds: errors and loss at the eps of the epoch, widths at the sweep's. "
        "At most the eight best rows.",
        training_curves.curves,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "search",
        "What was searched",
        "Finished candidates, evaluated on validation images, never on test images. Hypervolume is the "
        "share of all pairs of errors that the front so far is better than in both.",
        searches.fronts,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "importance",
        "Which settings matter",
        "fANOVA over finished candidates: the share of an objective's variance that a setting explains by itself, in "
        "the spaces that were searched.",
        searches.importance,
        of_trials=True,
    ),
    Kind(
        "counterexamples",
        "Adversarial examples",
        "Of the best row's first network: the image and its label, a point within eps that the network provably gets "
        "wrong with its prediction, and their difference over eps, 0 being grey.",
        images.counterexamples,
        of_trials=True,
        broad=True,
    ),
)


def figures_of(data: SectionData) -> Iterator[tuple[Kind, Figure | str]]:
    """Yield the figures that the section has something for, in order; for one that cannot be drawn, the reason."""
    for kind in FIGURES:
        try:
            figure = kind.draw(data) if data.is_of_trials or not kind.of_trials else None
        except DamagedFileError as error:
            yield kind, str(error)
            continue
        if figure is not None:
            yield kind, figure
