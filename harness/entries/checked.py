"""A network of an entry while it is checked: its table, its images, its adversarial images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load

from harness.common import names
from harness.common.radius import Radius
from harness.common.rounding import round_up
from harness.data import Split
from harness.entries.manifest import EntryNetwork
from harness.entries.network import LoadedNetwork
from harness.evaluation.attack import margins_at
from harness.storage.entry_check import NetworkCheck
from harness.storage.files import parse_file

SHARE = 0.9  # of the time of a step, after which a search ends with what it has
Outcome = tuple[bool | None, str]
"""Whether a step passed, None if it decided nothing; its message."""
Tensors = dict[str, np.ndarray]


@dataclass
class CheckedNetwork:
    """A network of an entry.

    files: the folder with the entry's files. record: is filled in. claims: the numbers of the certified images, in the
    random order in which they are attacked and drawn. network: from the step `accuracy` on. hits: adversarial images of
    claims, float64, by the image's number.
    """

    entry: EntryNetwork
    files: Path
    verdicts: pd.DataFrame
    images: Split
    eps: Radius
    record: NetworkCheck
    claims: list[int]
    network: LoadedNetwork = field(init=False)
    hits: Tensors = field(default_factory=dict)

    def numbers(self, verdict: str) -> list[int]:
        """Return the numbers of the images with a verdict."""
        return numbers_of(self.verdicts, verdict)

    def tensors(self, name: str | None) -> Tensors:
        """Return the tensors of a file of the entry; none if it has no such file."""
        return parse_file(self.files / name, load) if name else {}

    @property
    def wrong(self) -> int:
        """The number of images that are misclassified, or have an adversarial image."""
        return len(self.numbers(names.MISCLASSIFIED)) + len(self.numbers(names.FALSIFIED)) + len(self.hits)

    def percent(self, count: int) -> float:
        """Return a number of images as a percentage."""
        return 100 * count / len(self.images)

    def box(self, index: int) -> list[np.ndarray]:
        """Return the smallest and the largest float64 of each pixel in an image's box, [C, H, W] each."""
        return [ends[self.images.images[index].numpy()] for ends in box_ends(self.eps)]

    def why_not_adversarial(self, index: int, point: np.ndarray | None) -> str:
        """Return why a point is no adversarial image of an image, or "".

        It is one if all its numbers, exactly, lie in the box and a margin is proved to be negative there.
        """
        (low, high), label = self.box(index), self.images.labels[index : index + 1]
        if point is None:
            return "there is none"
        if point.dtype not in (np.float32, np.float64) or point.shape != low.shape:
            return f"found {point.dtype} {list(point.shape)}, allowed: float32 or float64 {list(low.shape)}"
        values = point.astype(np.float64)
        if not ((low <= values) & (values <= high)).all():
            beyond = float(np.fmax(low - values, values - high).max())
            return f"a pixel lies outside of the box, by {beyond:.3g}"
        margin = float(margins_at(self.network.prepared, torch.from_numpy(values)[None], label))
        return "" if margin < 0 else f"no margin is proved to be negative there: the smallest is {margin:.3g}"


def numbers_of(verdicts: pd.DataFrame, verdict: str) -> list[int]:
    """Return the numbers of the images with a verdict."""
    return verdicts["index"][verdicts["verdict"] == verdict].tolist()


@cache
def box_ends(eps: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest float64 within eps of each grey level / 255 and within [0, 1], [256] each."""
    levels = [Fraction(level, 255) for level in range(256)]
    low = [round_up(max(Fraction(0), level - eps), np.float64) for level in levels]
    return np.array(low), np.array([-round_up(-min(Fraction(1), level + eps), np.float64) for level in levels])


def describe_hits(networks: Sequence[CheckedNetwork]) -> str:
    """Return which claims are refuted, for a message; empty if none is."""
    keys = [f"{each.entry.seed}/{index}" for each in networks for index in each.hits]
    return f"{len(keys)} claimed images have an adversarial one, such as {keys[0]} (seed/image)" if keys else ""
