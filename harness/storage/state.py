"""The state of a trial or of a certification: decided here alone, from the files of its folder."""

from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from harness.common import names
from harness.common.errors import shorten
from harness.common.terminal import percent
from harness.config.trial import RECIPE_VERSION
from harness.storage import certification, folder, ranges, training_record
from harness.storage.files import DamagedFileError, parse_json
from harness.storage.folder import Chosen, Failure, TrialRecord, TrialResult


class State(StrEnum):
    """OLDER: of another recipe version, finished or not. DAMAGED: a file cannot be read."""

    FINISHED = "finished"
    RUNNING = "running"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    NOT_BEGUN = "not begun"
    OLDER = "older"
    DAMAGED = "cannot be read"


@dataclass(frozen=True)
class TrialState:
    """What a folder says of its trial or certification.

    description: a finished one's certified error, the error of one that failed or cannot be read, how far an unfinished
    one is, of which recipe an older one is.
    trial: None if its file is missing or cannot be read.
    failure: why it failed; None unless it did. chosen: how a search chose the trial, if one did.
    epochs: how many are trained; of a trial that does not run, those of its checkpoint, after which it goes on.
    written: when training or evaluation last wrote a file, in seconds since 1970; None before they begin, and for
    OLDER and DAMAGED.
    """

    state: State
    description: str = ""
    trial: TrialRecord | None = None
    result: TrialResult | None = None
    failure: Failure | None = None
    chosen: Chosen | None = None
    epochs: int = 0
    written: float | None = None

    @property
    def text(self) -> str:
        """The state and its description, such as 'failed: loss is not finite'."""
        is_in_description = self.state in (State.OLDER, State.DAMAGED)
        return self.description if is_in_description else ": ".join(filter(None, [self.state, self.description]))

    @property
    def fails_again(self) -> bool:
        """True if a trial has failed, and would end with the same error on any machine."""
        return self.failure is not None and self.failure.repeats


def read_state(directory: Path, run_began: float | None = None) -> TrialState:
    """Return the state of the trial or certification in a folder; a damaged file is a state, not an error.

    run_began: when the run that holds the sweep's directory began (`lock.holder`); None if nobody holds it. What is
    unfinished counts as running if it wrote since then, also when its worker has just died.
    """
    path, state = certification.record_path(directory), TrialState(State.NOT_BEGUN)
    try:
        if not path.exists():
            return state
        if (version := parse_json(path, lambda content: content["recipe_version"])) != RECIPE_VERSION:
            with suppress(DamagedFileError):
                state = replace(state, trial=certification.read_record(directory))
                state = replace(state, result=folder.read_result(directory), failure=folder.read_failure(directory))
            return replace(state, state=State.OLDER, description=_describe_older(version))
        trial, written = certification.read_record(directory), folder.last_write(directory)
        state = replace(state, trial=trial, written=written)
        state = replace(state, chosen=folder.read_chosen(certification.trial_of(directory)))
        if (result := folder.read_result(directory)) is not None:
            return replace(finished_state(trial, result, state.chosen), written=written)
        is_running = run_began is not None and written is not None and written >= run_began
        epochs = training_record.last_epoch(directory)
        epochs = epochs if is_running else min(epochs, training_record.saved_epochs(directory))
        state = replace(state, epochs=epochs)
        if (failure := folder.read_failure(directory)) is not None:
            return replace(state, state=State.FAILED, description=failure.error, failure=failure)
        if written is None:
            return state
        kind = State.RUNNING if is_running else State.UNFINISHED
        return replace(state, state=kind, description=_describe_progress(directory, trial, epochs))
    except (OSError, ValueError) as error:
        return replace(state, state=State.DAMAGED, description=str(error).replace(f"{directory}/", ""))


def read_state_or_raise(directory: Path, run_began: float | None = None) -> TrialState:
    """Return the state as `read_state` does. Raises DamagedFileError instead of returning DAMAGED."""
    state = read_state(directory, run_began)
    if state.state is State.DAMAGED:
        raise DamagedFileError(f"{directory}/{state.description}")
    return state


def finished_state(trial: TrialRecord, result: TrialResult, chosen: Chosen | None) -> TrialState:
    """Return the state of a trial or certification that has a result: FINISHED or OLDER.

    Raises DamagedFileError if the result is another trial's.
    """
    if trial.recipe_version != RECIPE_VERSION:
        return TrialState(State.OLDER, _describe_older(trial.recipe_version), trial, result, chosen=chosen)
    if result.key != trial.key:
        raise DamagedFileError(f"{folder.RESULT} belongs to another trial, {result.key}")
    description = f"certified error {percent(result.metrics.get(names.CERTIFIED_ERROR))}"
    return TrialState(State.FINISHED, description, trial, result, chosen=chosen)


def _describe_older(version: object) -> str:
    """Return the description of a trial of another recipe version."""
    return f"older, of recipe version {shorten(version)}, today's is {RECIPE_VERSION}: run it again"


def _describe_progress(directory: Path, trial: TrialRecord, done: int) -> str:
    """Return how far an unfinished trial or certification is. done: the trial's epochs."""
    if certification.is_certification(directory):
        return f"{ranges.count_saved_images(directory)} images of {directory.name} are evaluated"
    epochs = trial.config.epochs
    parts = [f"epoch {done} of {epochs}"] if epochs else []
    return ", ".join([*parts, *(["being evaluated"] if (directory / ranges.RANGES).exists() else [])])
