"""How far trials are, as far as their folders tell."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.storage import folder, names

FINISHED, FAILED, RUNNING, UNFINISHED, WAITING = "finished", "failed", "running", "unfinished", "not begun"
_WRITTEN = (folder.LOG, folder.EPOCHS, folder.CHECKPOINT, folder.SHARDS, folder.WEIGHTS, folder.RESULT, folder.FAILURE)


@dataclass(frozen=True)
class State:
    """What a trial's folder says. state: one of the names above. told: more of it, in words. age: seconds since
    anything was written for it, None where nothing was."""

    state: str
    told: str
    age: float | None


def state_of(place: Path, epochs: int, held: dict[str, Any] | None) -> State:
    """How far a trial is. held: as `files.holder` has it, of the sweep's directory.

    A trial runs where a run holds the directory and has written for it since it began: so much a folder can tell; one
    whose worker has just died, or that the run is done with for now, looks the same until then.
    Raises DamagedFileError.
    """
    times = [(place / name).stat().st_mtime for name in _WRITTEN if (place / name).exists()]
    age = max(0.0, time.time() - max(times)) if times else None
    if (result := folder.read_result(place)) is not None:
        return State(FINISHED, f"certified error {_percent(result.metrics.get(names.CERTIFIED_ERROR))}", age)
    if (failure := folder.read_failure(place)) is not None:
        return State(FAILED, str(failure["error"]), age)
    if age is None:
        return State(WAITING, "", age)
    done = max((row[names.EPOCH] for row in folder.read_epochs(place)), default=0)
    told = f"epoch {done} of {epochs}" + (", being evaluated" if (place / folder.SHARDS).exists() else "")
    return State(RUNNING if held and max(times) >= held["since"] else UNFINISHED, told, age)


def _percent(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f} %"
