"""The state of a network under an evaluation: decided here alone, from the files of both folders."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from harness.common import names
from harness.common.terminal import percent, with_plural
from harness.config.training import RECIPE_VERSION
from harness.settings import EVALUATION_VERSION
from harness.storage import folder, ranges, training_progress
from harness.storage.files import DamagedFileError
from harness.storage.lock import holder
from harness.storage.records import Chosen, EvaluationRecord, Failure, Result, TrainingRecord


class State(StrEnum):
    """OLDER: of another version of training or evaluation, finished or not. DAMAGED: a file cannot be read."""

    FINISHED = "finished"
    RUNNING = "running"
    FAILED = "failed"
    UNFINISHED = "unfinished"
    NOT_BEGUN = "not begun"
    OLDER = "older"
    DAMAGED = "cannot be read"


@dataclass(frozen=True)
class EvaluationState:
    """What the files say of a network under an evaluation.

    training, evaluation: None if the file is missing or cannot be read. trained: None before training has ended.
    result: None before the evaluation has ended. failure: why either failed; None for a finished one.
    study: the key of the main evaluation by profile. choices: of the searches that chose the network.
    epochs: how many are trained; of a network that is not in training, those of its checkpoint; 0 once it is trained.
    progress: how far an unfinished one is. written: when training or evaluation last wrote a file, in seconds since
    1970; None before they begin. is_running: whether that was in the run that holds the sweep's directory.
    wrongly_right: as `count_wrongly_right` has it. problem: which file of the network's folder cannot be read, and why.
    """

    training: TrainingRecord | None = None
    evaluation: EvaluationRecord | None = None
    trained: Result | None = None
    result: Result | None = None
    failure: Failure | None = None
    study: dict[str, str] = field(default_factory=dict)
    choices: Sequence[Chosen] = ()
    epochs: int = 0
    progress: str = ""
    written: float | None = None
    is_running: bool = False
    wrongly_right: int = 0
    problem: str = ""

    def __post_init__(self) -> None:
        """Raise DamagedFileError for the results of another network or evaluation."""
        if self.training is None:
            return
        if self.trained is not None and self.trained.key != self.training.key:
            raise DamagedFileError(f"{folder.TRAINED} belongs to another network, {self.trained.key}")
        if self.evaluation is None or self.result is None:
            return
        if self.result.key != f"{self.training.key}/{self.evaluation.key}":
            file = f"{folder.EVALUATIONS}/{self.evaluation.key}/{folder.RESULT}"
            raise DamagedFileError(f"{file} belongs to another network or evaluation, {self.result.key}")

    @property
    def state(self) -> State:
        """What all of this means."""
        if self.problem:
            return State.DAMAGED
        if self._older:
            return State.OLDER
        if self.result is not None:
            return State.FINISHED
        if self.failure is not None:
            return State.FAILED
        if self.written is None:
            return State.NOT_BEGUN
        return State.RUNNING if self.is_running else State.UNFINISHED

    @property
    def _older(self) -> str:
        """Which version is another one than today's, or that the weights are, or ""."""
        if self.training is not None and self.training.recipe_version != RECIPE_VERSION:
            return f"of recipe version {self.training.recipe_version}, today's is {RECIPE_VERSION}"
        if self.evaluation is not None and self.evaluation.version != EVALUATION_VERSION:
            return f"of evaluation version {self.evaluation.version}, today's is {EVALUATION_VERSION}"
        digests = {each.weights for each in (self.trained, self.result) if each is not None}
        if len(digests - {""}) > 1:
            return "of other weights than the network has"
        if self.wrongly_right:
            return f"it counts {with_plural(self.wrongly_right, 'image')} without a prediction as predicted rightly"
        return ""

    @property
    def description(self) -> str:
        """What there is to say beside the state: an error, or how far it is."""
        if self.problem:
            return self.problem
        if self._older:
            return f"older, {self._older}: run it again"
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
        """True if it has failed, and would end with the same error on any machine."""
        return self.failure is not None and self.failure.repeats


def read_state(evaluation_dir: Path, run_began: float | None = None) -> EvaluationState:
    """Return the state of the network and evaluation in a folder; a damaged file is a state, not an error.

    run_began: when the run that holds the sweep's directory began (`lock.holder`); None if nobody holds it. What is
    unfinished counts as running if it wrote since then, also when its worker has just died.
    """
    network_dir = folder.network_of(evaluation_dir)
    training = evaluation = None
    try:
        if not (network_dir / folder.TRAINING).exists():
            return EvaluationState()
        training = folder.read_training(network_dir / folder.TRAINING)
        if (evaluation_dir / folder.EVALUATION).exists():
            evaluation = folder.read_evaluation(evaluation_dir)
        trained, result = folder.read_trained(network_dir), folder.read_result(evaluation_dir)
        failure = None if trained else folder.read_failure(network_dir)
        written = folder.last_write(evaluation_dir)
        is_running = run_began is not None and written is not None and written >= run_began
        epochs = 0 if trained else _count_epochs(network_dir, is_running)
        return EvaluationState(
            training=training,
            evaluation=evaluation,
            trained=trained,
            result=result,
            failure=None if result else failure or folder.read_failure(evaluation_dir),
            study=folder.read_study(network_dir),
            choices=folder.read_choices(network_dir),
            epochs=epochs,
            progress="" if result or written is None else _describe_progress(evaluation_dir, training, trained, epochs),
            written=written,
            is_running=is_running,
            wrongly_right=count_wrongly_right(evaluation_dir, evaluation, result),
        )
    except (OSError, ValueError) as error:
        problem = str(error).replace(f"{network_dir}/", "")
        return EvaluationState(training, evaluation, problem=problem)


def read_states(sweep_dir: Path) -> dict[Path, EvaluationState]:
    """Return the state of each evaluation in a sweep's directory, by its folder. Raises DamagedFileError for the lock.

    A network without evaluations has one that is not begun, `evaluations/none`.
    """
    run_began = run.since if (run := holder(sweep_dir)) else None
    return {path: read_state(path, run_began) for path in evaluation_dirs(sweep_dir)}


def evaluation_dirs(sweep_dir: Path) -> list[Path]:
    """Return the folders of all evaluations in a sweep's directory, by name, as `read_states` has them."""
    return [
        path
        for network_dir in folder.network_folders(sweep_dir)
        for path in folder.evaluation_folders(network_dir) or [network_dir / folder.EVALUATIONS / "none"]
    ]


def read_state_or_raise(evaluation_dir: Path) -> EvaluationState:
    """Return the state as `read_state` does. Raises DamagedFileError instead of returning DAMAGED."""
    state = read_state(evaluation_dir)
    if state.problem:
        raise DamagedFileError(f"{folder.network_of(evaluation_dir)}/{state.problem}")
    return state


def count_wrongly_right(evaluation_dir: Path, evaluation: EvaluationRecord | None, result: Result | None) -> int:
    """Return how many images without a prediction a result counts as predicted rightly, as results once did.

    Raises DamagedFileError if the verdicts are needed for it and cannot be read.
    """
    if evaluation is None or result is None:
        return 0
    causes = [names.OUT_OF_MEMORY, names.FAILED, *([names.TIMEOUT] if evaluation.config.stage_seconds else [])]
    if not any(result.metrics.get(names.share_of(cause)) for cause in causes):
        return 0
    from harness.storage.study_tables import read_stored_verdicts  # pandas takes seconds to import

    verdicts = read_stored_verdicts(evaluation_dir, [names.PREDICTION, names.VERDICT])
    is_without = verdicts[names.PREDICTION] == names.NO_PREDICTION
    return int((is_without & (verdicts[names.VERDICT] != names.MISCLASSIFIED)).sum())


def _count_epochs(network_dir: Path, is_running: bool) -> int:
    """Return how many epochs are trained; without those after the checkpoint, which are repeated, unless it runs."""
    rows = training_progress.read_epochs(network_dir)
    last = rows[-1][names.EPOCH] if rows else 0
    return last if is_running else min(last, training_progress.saved_epochs(network_dir))


def _describe_progress(evaluation_dir: Path, training: TrainingRecord, trained: Result | None, epochs: int) -> str:
    """Return how far an unfinished network or evaluation is."""
    if trained is None:
        return f"epoch {epochs} of {training.config.epochs}" if training.config.epochs else ""
    count = ranges.count_saved_images(evaluation_dir)
    return f"trained, {count:,} images are evaluated" if count else "trained"
