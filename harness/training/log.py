"""A trial's log file: what happened when, in lines, with tracebacks; another start adds to it.

What is for the file alone is logged as DEBUG.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.masking import mask_secrets
from harness.storage import folder


class _Masked(logging.Formatter):
    """Lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as text."""
        return mask_secrets(super().format(record))


@contextmanager
def logged(directory: Path) -> Iterator[None]:
    """Within, what this package logs and Python warns of is added to the folder's log; so is an error that ends it."""
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
