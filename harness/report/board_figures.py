"""What a row of the board opens to: a histogram of margins, and undecided images as pictures."""

from base64 import b64encode
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd

from baselines.datasets import DATASETS
from harness.common import names
from harness.common.errors import InputError

CERTIFIED, FALSIFIED, UNDECIDED = "certified", "falsified", "undecided"
WIDTH, HEIGHT = 360, 110
_BINS, _MOST_PICTURES = 36, 20


@dataclass(frozen=True)
class Histogram:
    """Margins as bars in a box of WIDTH and HEIGHT. bars: kind, x, y, width and height. zero: where the margin is 0."""

    low: float
    high: float
    zero: float
    bars: list[tuple[Any, ...]]


_LARGEST = 1e30  # margins above are damaged, and would overflow


def histogram(verdicts: pd.DataFrame, outcome: "pd.Series[Any]") -> Histogram | None:
    """Return the margins of certified, undecided and falsified images; None if none are stored.

    outcome: of each row of `verdicts`. The lowest and the highest percent of the margins stand in the outer bars.
    """
    if "margin" not in verdicts:
        return None
    is_shown = (verdicts["margin"].abs() < _LARGEST) & outcome.isin([CERTIFIED, UNDECIDED, FALSIFIED])
    margins, kinds = verdicts.loc[is_shown, "margin"].to_numpy(float), outcome[is_shown].to_numpy()
    if not len(margins):
        return None
    ends = np.quantile(margins, [0.01, 0.99])
    size = max((max(ends[1], 0.0) - min(ends[0], 0.0)) / (_BINS - 1), 1e-9)
    first, last = int(np.floor(min(ends[0], 0.0) / size)), max(int(np.ceil(ends[1] / size)), 1)  # 0 is an edge
    edges, width = size * np.arange(first, last + 1), WIDTH / (last - first)
    clipped = np.clip(margins, edges[0], edges[-1])
    heights = {kind: np.histogram(clipped[kinds == kind], edges)[0] for kind in (CERTIFIED, UNDECIDED, FALSIFIED)}
    scale, top, bars = HEIGHT / np.sum(list(heights.values()), axis=0).max(), np.full(last - first, float(HEIGHT)), []
    for kind, counts in heights.items():
        top -= scale * counts
        bars += [(kind, n * width, top[n], width - 1, scale * counts[n]) for n in np.flatnonzero(counts)]
    return Histogram(float(edges[0]), float(edges[-1]), -first * width, bars)


@dataclass
class Pictures:
    """Images of data sets as PNG, each once. data_dir: where data sets lie, None for no pictures. urls: by key."""

    data_dir: str | None
    urls: dict[str, str] = field(default_factory=dict)
    _loaded: dict[str, Any] = field(default_factory=dict)

    def add(
        self, dataset: str, fingerprint: str | None, held_out: int, verdicts: pd.DataFrame
    ) -> list[tuple[str, str]]:
        """Return key and description of the first of these images; none if the data set is not here, or another one.

        fingerprint: of the data set, None for any. held_out: how many train images were, if these are of them.
        """
        data = self._load(dataset)
        if data is None or fingerprint not in (None, data.fingerprint):
            return []
        split, labels = data.held_out_images(held_out) or data.test, data.info.class_names
        pictures = []
        first = verdicts.drop_duplicates(names.INDEX).nsmallest(_MOST_PICTURES, names.INDEX)
        for index, label in first[[names.INDEX, names.LABEL]].itertuples(index=False):
            if 0 <= index < len(split):
                key = f"{dataset} {held_out} {index}"
                self.urls.setdefault(key, _png(split.images[index].numpy()))
                pictures.append((key, f"image {index}: {labels[label] if 0 <= label < len(labels) else label}"))
        return pictures

    def _load(self, dataset: str) -> Any:
        from harness.data import load  # imported late: it imports torch

        if self.data_dir is None or dataset not in DATASETS:
            return None
        if dataset not in self._loaded:
            try:
                self._loaded[dataset] = load(dataset, self.data_dir, writes=False)
            except InputError:  # the images are not here
                self._loaded[dataset] = None
        return self._loaded[dataset]


def _png(pixels: "np.ndarray[Any, Any]") -> str:
    """Return an image, uint8 [C, H, W], as a data URL."""
    from PIL import Image  # imported late, as images are

    stream = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"
