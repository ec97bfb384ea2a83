"""When a network was trained and evaluated, by its folder: MLflow may be told long after that."""

import time
from pathlib import Path
from typing import Any

from harness.common import names
from harness.storage import folder, training_progress
from harness.storage.state import read_state_or_raise


def modified(file: Path) -> float:
    """Return when a file was written, in seconds since 1970."""
    return file.stat().st_mtime


def ends_of_epochs(network_dir: Path, rows: list[dict[str, Any]]) -> dict[int, float]:
    """Return when each of the last epochs ended, in seconds since 1970: its row was written then."""
    ended, times = modified(network_dir / folder.EPOCHS) if rows else 0.0, dict[int, float]()
    for row in reversed(rows):
        times[row[names.EPOCH]] = ended
        ended -= row.get(names.TRAIN_EPOCH_SECONDS) or 0
    return times


def start_of(network_dir: Path) -> float:
    """Return when training began, or the first evaluation of a network trained elsewhere; now if neither has."""
    if rows := training_progress.read_epochs(network_dir):
        return min(ends_of_epochs(network_dir, rows).values()) - (rows[0].get(names.TRAIN_EPOCH_SECONDS) or 0)
    states = {path: read_state_or_raise(path) for path in folder.evaluation_folders(network_dir)}
    starts = [
        modified(path / folder.RESULT) - (state.result.metrics.get(names.EVALUATION_SECONDS) or 0)
        for path, state in states.items()
        if state.result
    ]
    return min([time.time(), *starts])
