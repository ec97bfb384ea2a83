"""A trial's log file: dated lines and tracebacks. A further start of the trial appends to it.

DEBUG messages go to this file alone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.common.masking import mask_secrets
from harness.storage import folder
from harness.storage.files import DamagedFileError


class _Masked(logging.Formatter):
    """Format records without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        return mask_secrets(super().format(record))


@contextmanager
def log_to_folder(directory: Path) -> Iterator[None]:
    """Append this package's log records, Python's warnings and an error that ends the block to the folder's log."""
    ours = logging.getLogger("harness")
    if (path := directory / folder.LOG).exists() and not path.is_file():  # a handler would wait at a pipe
        raise DamagedFileError(f"{path} cannot be written: found no file, allowed: a file; remove it")
    loggers, level = (ours, logging.getLogger("py.warnings")), ours.level
    handler = logging.FileHandler(path, encoding="utf-8")
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
