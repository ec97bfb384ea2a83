"""Decide whether a sweep's page and figures must be drawn again.

This compares the sizes and times of files, as `make` does, and the versions of the code.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from harness.leaderboard.literature import literature_files
from harness.machine.environment import data_directory, source_digest
from harness.storage import folder
from harness.storage.files import digest_of_states, read_text, write_text

_MADE_FROM = ".made-from"  # beside the page: a digest


def is_up_to_date(sweep_dir: Path, data_dir: str | None) -> bool:
    """Return True if nothing has changed since `mark_up_to_date`: results, code, page and figures."""
    mark = sweep_dir / _MADE_FROM
    return mark.exists() and read_text(mark) == _digest(sweep_dir, data_dir)


def mark_up_to_date(sweep_dir: Path, data_dir: str | None) -> None:
    """Record the files and versions that the page and the figures were made from."""
    write_text(sweep_dir / _MADE_FROM, _digest(sweep_dir, data_dir))


def _digest(sweep_dir: Path, data_dir: str | None) -> str:
    # the page shows paths relative to the working directory, and images of the data set
    made_by = (source_digest(), version("matplotlib"), version("pandas"), Path.cwd(), data_directory(data_dir))
    return digest_of_states(made_by, _files(sweep_dir))


def _files(sweep_dir: Path) -> Iterator[Path]:
    """Yield the files that the page and the figures are made from, and themselves."""
    for name in ("trials", "search"):
        yield from (sweep_dir / name).rglob("*")
    yield from (sweep_dir / folder.FIGURES).glob("[!.]*")
    yield sweep_dir / folder.REPORT
    yield from literature_files(sweep_dir)
