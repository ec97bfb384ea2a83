"""The state of a trial, read from its folder."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.common import names
from harness.storage import folder
from harness.tune.progress import percent

FINISHED, FAILED, RUNNING, UNFINISHED, NOT_BEGUN = "finished", "failed", "running", "unfinished", "not begun"


@dataclass(frozen=True)
class State:
    """The state of a trial: one of the names above.

    description: the error, or how far the trial is. age: seconds since the last write, None before the first.
    """

    state: str
    description: str
    age: float | None


def state_of(trial_dir: Path, epochs: int, holder: dict[str, Any] | None) -> State:
    """Return the state of a trial of so many epochs, 0 for a network trained elsewhere. Raises DamagedFileError.

    holder: of the sweep's directory, from `lease.holder`. A trial counts as running if the holder has written to its
    folder since it began, also when its worker has just died.
    """
    written = folder.last_write(trial_dir)
    age = None if written is None else max(0.0, time.time() - written)
    if (result := folder.read_result(trial_dir)) is not None:
        return State(FINISHED, f"certified error {percent(result.metrics.get(names.CERTIFIED_ERROR))}", age)
    if (failure := folder.read_failure(trial_dir)) is not None:
        return State(FAILED, str(failure["error"]), age)
    if written is None:
        return State(NOT_BEGUN, "", age)
    done = folder.last_epoch(trial_dir)
    parts = [f"epoch {done} of {epochs}"] if epochs else []
    parts += ["being evaluated"] if (trial_dir / folder.SHARDS).exists() else []
    description = ", ".join(parts)
    return State(RUNNING if holder and written >= holder["since"] else UNFINISHED, description, age)
