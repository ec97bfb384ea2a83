"""The files of an evaluation that is under way, in ranges/<hash>/.

    <first>-<stop>.pt   a range of images
    <index>.search      branch and bound's answer about an image, until its range is saved

They lie in the evaluation's folder until its result is written. The hash is of all that the
verdicts follow from: ranges of other weights, settings, devices or versions lie in another folder, and are not used.
"""

import re
import shutil
from pathlib import Path

RANGES = "ranges"
"""A folder of an evaluation."""


def ranges_dir(directory: Path, digest: str) -> Path:
    """Return the folder of the ranges with this hash."""
    return directory / RANGES / digest


def range_path(ranges_dir: Path, images: range) -> Path:
    """Return the file of a range of images, which are counted from 0."""
    return ranges_dir / f"{images.start:05}-{images.stop:05}.pt"


def search_path(ranges_dir: Path, image: int) -> Path:
    """Return the file of branch and bound's answer about an image, until its range is saved."""
    return ranges_dir / f"{image:05}.search"


def saved_ranges(ranges_dir: Path) -> list[range]:
    """Return the ranges in a folder, by their first image."""
    matches = filter(None, (re.fullmatch(r"(\d+)-(\d+)\.pt", path.name) for path in ranges_dir.glob("*.pt")))
    return sorted((range(int(match[1]), int(match[2])) for match in matches), key=lambda images: images.start)


def count_saved_images(directory: Path) -> int:
    """Return how many images of an unfinished evaluation are evaluated."""
    return max((sum(map(len, saved_ranges(path))) for path in directory.glob(f"{RANGES}/*")), default=0)


def remove_ranges(directory: Path) -> None:
    """Remove all ranges of an evaluation."""
    shutil.rmtree(directory / RANGES, ignore_errors=True)
