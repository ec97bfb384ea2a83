"""What training writes to a trial's folder while it runs: decisions, rows of epochs, warnings, devices, the log."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from harness.common import names
from harness.common.errors import shorten
from harness.common.masking import mask_secrets
from harness.common.models import LENIENT, Model, validate
from harness.settings import Precision
from harness.storage import folder
from harness.storage.files import append_line, load_json, parse_file, parse_json, write_json, write_text


class Decisions(Model):
    """What steps.json holds: whether steps are compiled, and the precision of their products on the device."""

    model_config = LENIENT

    compile: bool
    precision: Precision


def read_decisions(directory: Path) -> Decisions | None:
    """Read what was decided before the first step, None if there was none. Raises DamagedFileError."""
    path = directory / folder.STEPS
    return parse_json(path, partial(validate, Decisions)) if path.exists() else None


def write_decisions(directory: Path, decisions: Decisions) -> None:
    """Write steps.json."""
    write_json(directory / folder.STEPS, decisions.model_dump())


def read_epochs(directory: Path, after: int = -1) -> list[dict[str, Any]]:
    """Read the trial's rows of the epochs after `after` in order, numbers or None by name. Raises DamagedFileError.

    An epoch that was trained again replaces the rows from it on.
    """
    path = directory / folder.EPOCHS
    if not path.exists():
        return []

    def parse(content: bytes) -> list[dict[str, Any]]:
        rows, lines = list[dict[str, Any]](), content.splitlines()
        if len(lines) > 1 and not lines[-1].endswith(b"}"):
            del lines[-1]  # half a line of a killed process
        for line in reversed(lines):
            row = _check_row(load_json(line))
            if row[names.EPOCH] <= after:
                break
            if not rows or row[names.EPOCH] < rows[-1][names.EPOCH]:
                rows.append(row)
        return rows[::-1]

    return parse_file(path, parse)


def saved_epochs(directory: Path) -> int:
    """Return after how many epochs the checkpoint was saved, as noted beside it; 0 if there is no note of it."""
    try:
        return int((directory / folder.SAVED_EPOCHS).read_text()) if (directory / folder.CHECKPOINT).exists() else 0
    except (OSError, ValueError):  # an older code's checkpoint has none; training reads the checkpoint itself
        return 0


def _check_row(row: Any) -> dict[str, Any]:
    if type(row) is not dict or type(row.get(names.EPOCH)) is not int:
        raise ValueError(f"{shorten(row)} is not an epoch's row")
    return row


def cut_epochs(directory: Path, last: int) -> None:
    """Remove the rows after the epoch `last`, which are written again. Raises DamagedFileError."""
    rows = read_epochs(directory)
    shorter = [row for row in rows if row[names.EPOCH] <= last]
    if len(shorter) < len(rows):
        write_text(directory / folder.EPOCHS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in shorter))


def write_epoch(directory: Path, row: dict[str, Any]) -> None:
    """Append an epoch's row."""
    append_line(directory / folder.EPOCHS, json.dumps(row, allow_nan=False))


def read_lines(path: Path) -> list[str]:
    """Return the lines of TRAINING_WARNINGS or TRAINED_ON, each once; none if there is no file.

    Raises DamagedFileError.
    """
    if not path.exists():
        return []
    lines = parse_file(path, lambda content: content.decode().splitlines())
    return list(dict.fromkeys(filter(None, lines)))


def add_lines(path: Path, lines: list[str]) -> None:
    """Add lines to such a file; a line that is there is not added again."""
    before = read_lines(path)
    if added := [line for line in lines if line not in before]:
        write_text(path, "".join(line + "\n" for line in before + added))


class _Masked(logging.Formatter):
    """Format records without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        return mask_secrets(super().format(record))


@contextmanager
def log_to_folder(directory: Path) -> Iterator[None]:
    """Append this package's log records, Python's warnings and an error that ends the block to the folder's log."""
    ours = logging.getLogger("harness")
    loggers, level = (ours, logging.getLogger("py.warnings")), ours.level
    handler = logging.FileHandler(directory / folder.LOG, encoding="utf-8")
    handler.setFormatter(_Masked("%(asctime)s %(message)s"))
    logging.captureWarnings(True)
    ours.setLevel(logging.DEBUG)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    except Exception:
        ours.debug("stopped", exc_info=True)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        ours.setLevel(level)
        logging.captureWarnings(False)
        handler.close()
