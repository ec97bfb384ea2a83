"""The state of a trial or of a certification: decided here alone, from the files of its folder."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.common import names
from harness.common.terminal import percent
from harness.config.trial import RECIPE_VERSION
from harness.storage import certification, folder, ranges, training_record
from harness.storage.files import DamagedFileError
from harness.storage.folder import Chosen, Failure, TrialRecord, TrialResult
from harness.storage.lock import holder


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
    """What the files of a folder say of its trial or certification.

    trial: None if its file is missing or cannot be read. failure: why it failed; None for a finished one.
    chosen: how a search chose the trial, if one did. epochs: how many are trained; of one that does
    not run, those of its checkpoint; 0 for a finished one. progress: how far an
    unfinished one is. written: when training or evaluation last wrote a file, in seconds since 1970; None before they
    begin. is_running: whether that was in the run that holds the sweep's directory. problem: why a file cannot be read.
    """

    trial: TrialRecord | None = None
    result: TrialResult | None = None
    failure: Failure | None = None
    chosen: Chosen | None = None
    epochs: int = 0
    progress: str = ""
    written: float | None = None
    is_running: bool = False
    problem: str = ""

    def __post_init__(self) -> None:
        """Raise DamagedFileError for the result of another trial."""
        if self.trial is not None and self.result is not None and self.result.key != self.trial.key:
            raise DamagedFileError(f"{folder.RESULT} belongs to another trial, {self.result.key}")

    @property
    def state(self) -> State:
        """What all of this means."""
        if self.problem:
            return State.DAMAGED
        if self.trial is not None and self.trial.recipe_version != RECIPE_VERSION:
            return State.OLDER
        if self.result is not None:
            return State.FINISHED
        if self.failure is not None:
            return State.FAILED
        if self.written is None:
            return State.NOT_BEGUN
        return State.RUNNING if self.is_running else State.UNFINISHED

    @property
    def description(self) -> str:
        """What there is to say beside the state: an error, or how far the trial is."""
        if self.problem:
            return self.problem
        if self.trial is not None and self.state is State.OLDER:
            version = self.trial.recipe_version
            return f"older, of recipe version {version}, today's is {RECIPE_VERSION}: run it again"
        if self.result is not None:
            return f"certified error {percent(self.result.metrics.get(names.CERTIFIED_ERROR))}"
        return self.failure.error if self.failure is not None else self.progress

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
    trial = None
    try:
        if not certification.record_path(directory).exists():
            return TrialState()
        trial = certification.read_record(directory)
        result, written = folder.read_result(directory), folder.last_write(directory)
        is_running = run_began is not None and written is not None and written >= run_began
        epochs = 0 if result else _count_epochs(directory, is_running)
        return TrialState(
            trial=trial,
            result=result,
            failure=None if result else folder.read_failure(directory),
            chosen=folder.read_chosen(certification.trial_of(directory)),
            epochs=epochs,
            progress="" if result or written is None else _describe_progress(directory, trial, epochs),
            written=written,
            is_running=is_running,
        )
    except (OSError, ValueError) as error:
        return TrialState(trial, problem=str(error).replace(f"{directory}/", ""))


def read_states(sweep_dir: Path) -> dict[Path, TrialState]:
    """Return the state of each trial in a sweep's directory, by its folder. Raises DamagedFileError for the lock."""
    run_began = run.since if (run := holder(sweep_dir)) else None
    return {trial_dir: read_state(trial_dir, run_began) for trial_dir in folder.trial_folders(sweep_dir)}


def read_state_or_raise(directory: Path) -> TrialState:
    """Return the state as `read_state` does. Raises DamagedFileError instead of returning DAMAGED."""
    state = read_state(directory)
    if state.problem:
        raise DamagedFileError(f"{directory}/{state.problem}")
    return state


def _count_epochs(directory: Path, is_running: bool) -> int:
    """Return how many epochs are trained; without those after the checkpoint, which are repeated, unless it runs."""
    rows = training_record.read_epochs(directory)
    last = rows[-1][names.EPOCH] if rows else 0
    return last if is_running else min(last, training_record.saved_epochs(directory))


def _describe_progress(directory: Path, trial: TrialRecord, epochs: int) -> str:
    """Return how far an unfinished trial or certification is."""
    if certification.is_certification(directory):
        return f"{ranges.count_saved_images(directory)} images of {directory.name} are evaluated"
    parts = [f"epoch {epochs} of {trial.config.epochs}"] if trial.config.epochs else []
    return ", ".join([*parts, *(["being evaluated"] if (directory / ranges.RANGES).exists() else [])])
