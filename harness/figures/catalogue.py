"""All figures of a section: one record each. A new one is a function in a file here and a record in FIGURES."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from harness.figures import errors, images, networks, searches, training
from harness.figures.shown import Shown
from harness.storage.files import DamagedFileError


@dataclass(frozen=True)
class Kind:
    """A figure that a section may have.

    name: of its files. title, caption: what a page says of it.
    draw: gives the figure, or None where the section has nothing to show in it.
    of_trials: whether it shows what training made, which certifying further leaves as it is.
    broad: whether it needs a page's whole width.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Shown], Figure | None]
    of_trials: bool = False
    broad: bool = False


FIGURES = (
    Kind(
        "tradeoff",
        "Certified against standard error",
        "Lower left is better; numbers are ranks. Bars: sample deviation over seeds. Published numbers stand here only "
        "beside networks of full size.",
        errors.tradeoff,
    ),
    Kind(
        "seeds",
        "Errors of each trained network",
        "The robust error lies on the bar between attack and certified error. Best row on top. "
        "At most the thirty best rows.",
        errors.by_seed,
    ),
    Kind(
        "stages",
        "What each stage decides",
        "Shares of all images. What no stage decides is open, and counts as an error. At most the thirty best rows.",
        errors.stages,
    ),
    Kind(
        "time",
        "What deciding takes",
        "A point after each stage that ran, in the order clean, attack, ibp and on; means over seeds. At most the "
        "eight best rows.",
        errors.time,
    ),
    Kind(
        "depth",
        "Bound width against depth",
        "Width of the margins' bounds by IBP at the sweep's eps; networks without a depth are horizontal lines.",
        networks.depth,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "layers",
        "Bound width, layer by layer",
        "IBP at the sweep's eps. Dotted: before training, on training images.",
        training.layer_widths,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "relus",
        "States of ReLUs",
        "By IBP at the sweep's eps, pre-activation by pre-activation: active is above 0 over the whole ball, inactive "
        "below, unstable is what bounds cannot tell. At most the twelve best rows.",
        networks.relus,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "curves",
        "Training",
        "Of training images, means over seeds: errors and loss at the eps of the epoch, widths at the sweep's. "
        "At most the eight best rows.",
        training.curves,
        of_trials=True,
        broad=True,
    ),
    Kind(
        "search",
        "What was searched",
        "Candidates as the validation images judged them, never test images; those that finished. Hypervolume is the "
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
        "Broken images",
        "Of the best row's first network: the image and its label, the point within eps that it is proved to get "
        "wrong, and their difference over eps, 0 being grey.",
        images.counterexamples,
        of_trials=True,
        broad=True,
    ),
)


def figures_of(shown: Shown) -> Iterator[tuple[Kind, Figure | str]]:
    """The figures that the section has something for, in order; in place of one that cannot be drawn, why."""
    for kind in FIGURES:
        try:
            figure = kind.draw(shown) if shown.of_trials or not kind.of_trials else None
        except DamagedFileError as error:
            yield kind, str(error)
            continue
        if figure is not None:
            yield kind, figure
