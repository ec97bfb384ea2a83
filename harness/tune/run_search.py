"""The search before a sweep: Optuna proposes settings of each row, and candidates are evaluated on held-out images.

The search's directory, results/<sweep>/search/<sampler>-<hash>/, reads like a sweep's. In `optuna.journal`, Optuna's
storage, each row is a study and each candidate a trial of it: RUNNING until its folder has a result or a failure that
would repeat, then COMPLETE. FAIL is a proposal that does not fit, or is another candidate. After a kill, the same
command continues. Only the process that holds the directory's lock writes.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as CandidateState
from rich.console import Console

from harness.common import names
from harness.common.terminal import with_plural
from harness.config.expansion import Study
from harness.config.search import Space
from harness.config.training import RECIPE_VERSION, Training
from harness.data import Data
from harness.machine.environment import source_digest
from harness.storage import folder
from harness.storage.files import DamagedFileError, read_bytes
from harness.storage.lock import lock_directory
from harness.storage.records import make_record
from harness.storage.state import EvaluationState, State, read_state
from harness.training.train import check_images
from harness.tune.items import Item, Queue, Worker
from harness.tune.plan import adopt_network, with_teachers
from harness.tune.progress import Progress, describe_work
from harness.tune.run_items import FailedFast, run_items
from harness.tune.run_study import RunOptions, end_teacher, evaluation_dirs, read_outcome

optuna.logging.set_verbosity(optuna.logging.WARNING)

JOURNAL = "optuna.journal"
OBJECTIVES = "objectives"  # a study's attribute: the names of its values
WORST = 100.0  # each error, in percent, of a candidate whose training fails in the same way each time
_ATTEMPTS = 50  # so many proposals, one after the other, that are no new candidates end a row's search


def load_studies(search_dir: Path) -> list[optuna.Study]:
    """Load the studies in the order of the sweep file's rows; none before the search. Raises DamagedFileError."""
    path = search_dir / JOURNAL
    if not path.exists():
        return []
    read_bytes(path)  # refuses a pipe, at which Optuna would wait
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return [optuna.load_study(study_name=row, storage=storage) for row in optuna.get_all_study_names(storage)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _distribution(space: Space) -> BaseDistribution:
    """Return a space as Optuna has it."""
    if space.integer is not None:
        return IntDistribution(space.integer[0], space.integer[1])
    if space.ends:
        return FloatDistribution(space.ends[0], space.ends[1], log=space.log_uniform is not None)
    return CategoricalDistribution([space.encode(value) for value in space.choice or ()])


class Search:
    """The search of a sweep. `owners` maps each candidate's folder to its row and its number there."""

    def __init__(self, study: Study, data: Data, sweep_dir: Path, console: Console):
        """Load what there is of the search. Raises InputError if there are fewer images than it asks for."""
        assert study.search is not None
        self.study, self.settings, self.rows, self.console = study, study.search, study.searched, console
        self.fingerprint, self.sweep_dir, self.seed = data.fingerprint, sweep_dir, study.trainings[0].seed
        self.evaluation = study.search.evaluation_of_candidates(study.evaluations[0])
        for row in self.rows:
            check_images(self.held_out(row.base), data)
        settings = self.settings.model_dump(mode="json", exclude={"trials", "train", "evaluation"})
        settings |= {"train": self.settings.train} if self.settings.train else {}
        bases = [row.base.canonical() for row in self.rows]
        inputs = [settings, bases, self.evaluation.key, self.seed, self.fingerprint, RECIPE_VERSION]
        content = json.dumps(inputs, sort_keys=True)
        name = f"{self.settings.sampler}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        self.directory = sweep_dir / "search" / name
        self.studies = load_studies(self.directory)
        changes = [f"{name} {value}" for name, value in self.settings.train.items()]
        texts = [", ".join(changes), self.evaluation.verifier if self.settings.evaluation else ""]
        self.changes = f" (candidates: {'; '.join(filter(None, texts))})" if any(texts) else ""
        self.owners: dict[Path, tuple[int, int]] = {}
        self.begun, self.queue, self.is_finished = list[Path](), Queue([]), False
        self.failed_teachers = set[Path]()
        """Those that failed in this command, which does not try them again before each candidate."""

    def held_out(self, training: Training) -> Training:
        """Return a training as a candidate's: images are held out of it, under the first seed."""
        return training.replace(seed=self.seed, validation_images=self.settings.validation_images)

    def show(self) -> None:
        """Print what is searched, and how far the search is."""
        begun = [candidate for study in self.studies for candidate in _candidates(study)]
        done = sum(candidate.state.is_finished() for candidate in begun)
        settings = self.settings
        wanted = with_plural(settings.trials, "candidate")
        self.console.print(
            f"{self.study.name}: search by {settings.sampler}, {wanted} of each, evaluated on "
            f"{settings.validation_images:,} images held out of training{self.changes}; "
            f"{len(begun)} begun, {done} done\n"
            f"searched: {', '.join(row.base.row for row in self.rows)}\ncandidates: {self.directory}"
        )

    def describe_time(self, at_once: int) -> str:
        """Return how much time is left, from the mean of finished candidates. at_once: how many run side by side."""
        states = [self.state_of(each) for each in folder.network_folders(self.directory)]
        finished = [state.result.metrics for state in states if state.result is not None]
        done = len(finished) + sum(state.fails_again for state in states)
        left = max(0, self.settings.trials * len(self.rows) - done)  # `trials` may be lowered
        if not finished:
            return f"time: unknown, since none of the {with_plural(left, 'candidate')} has finished"
        parts = (names.TRAIN_SECONDS, names.EVALUATION_SECONDS)
        seconds = sum(metrics.get(name) or 0.0 for metrics in finished for name in parts) / len(finished)
        return describe_work([seconds] * left, with_plural(left, "candidate"), at_once)

    def run(self, options: RunOptions) -> list[Training]:
        """Search, and return the winners; none if no candidate has finished, or a failure has stopped it."""
        with lock_directory(self.directory):
            self.begin()
            return self.winners() if self.train(options) else []

    @property
    def has_unfinished(self) -> bool:
        """True if candidates have failed that the same command would try again."""
        return any(study.get_trials(states=[CandidateState.RUNNING]) for study in self.studies)

    def begin(self) -> None:
        """Load or create the studies, named by their rows, for writing. Raises DamagedFileError."""
        path = self.directory / JOURNAL
        Path(f"{path}.lock").unlink(missing_ok=True)  # of a process that was killed; Optuna would wait for it
        if path.exists():
            os.truncate(path, read_bytes(path).rfind(b"\n") + 1)  # such a process may leave half a line
        storage = JournalStorage(JournalFileBackend(str(path)))
        minimize = [StudyDirection.MINIMIZE] * len(self.settings.objectives)
        create = partial(optuna.create_study, storage=storage, directions=minimize, load_if_exists=True)
        self.studies = [create(study_name=row.base.row) for row in self.rows]
        for number, (study, row) in enumerate(zip(self.studies, self.rows, strict=True)):
            study.set_user_attr(OBJECTIVES, self.settings.objectives)
            if not study.trials and (written := row.written) is not None:
                study.enqueue_trial({key: row.spaces[key].encode(value) for key, value in written.items()})
            for candidate in sorted(_candidates(study), key=lambda one: one.state == CandidateState.RUNNING):
                if self.claim(number, candidate) is None:  # killed while it was proposed
                    study.tell(candidate.number, state=CandidateState.FAIL)

    def train(self, options: RunOptions) -> bool:
        """Train candidates until each row has enough; return False if a failure has stopped them before."""
        self.begun = [path for path in self.owners if not self.conclude(path, self.state_of(path))]
        self.begun = self.begun or list(filter(None, [self.propose()]))
        if not self.begun:
            return True
        if options.retry_failed:
            for path in self.directory.glob(f"{folder.NETWORKS}/*/{folder.TEACHER}"):
                path.with_name(folder.FAILURE).unlink(missing_ok=True)
        work = Worker(options.data_dir, source_digest())
        with _SearchListener(self, len(self.owners) - len(self.begun), options.fail_fast) as listener:
            options.prepare_process(listener)
            return run_items(self, work, listener, options.ray, self.directory)

    def take(self) -> Item | None:
        """Return the next candidate, one that was begun or a new one; before it, its teacher, if that is untrained.

        While a candidate waits for its teacher, other rows go on.
        """
        if (item := self.queue.take()) is not None:
            return item
        waiting = {self.owners[item.directory][0] for item in self.queue.waiting if item.evaluations}
        begun = next((path for path in self.begun if self.owners[path][0] not in waiting), None)
        network_dir = begun or self.propose(waiting)
        if network_dir is None:
            self.is_finished = not self.queue.waiting
            return None
        if begun is not None:
            self.begun.remove(begun)
        number, candidate = self.owners[network_dir]
        for directory in (network_dir, folder.evaluation_dir(network_dir, self.evaluation)):
            (directory / folder.FAILURE).unlink(missing_ok=True)
        label = f"candidate {candidate} of {self.studies[number].study_name}"
        training = folder.read_training(network_dir / folder.TRAINING).config
        item = Item.of(network_dir, training, [self.evaluation], label=label)
        *teachers, student = with_teachers([item], self.study.checkpoints)
        queued = (*self.queue.waiting, *self.queue.running)
        teachers = [each for each in teachers if each not in queued and each.directory not in self.failed_teachers]
        self.queue.add([*teachers, student])
        return self.queue.take()

    def end(self, item: Item) -> None:
        """Note that an item has ended; the listener concludes a candidate."""
        self.queue.end(item)

    def state_of(self, network_dir: Path) -> EvaluationState:
        """Return the state of a candidate."""
        return read_state(folder.evaluation_dir(network_dir, self.evaluation))

    def propose(self, left_out: Collection[int] = ()) -> Path | None:
        """Return the folder of a new candidate of the row with the fewest; None once each has enough.

        left_out: numbers of rows that get none now. The sampler's seed depends on the number of proposals alone: a
        process that was killed makes no difference.
        """
        counts = [len(_candidates(study)) for study in self.studies]
        for number in sorted(set(range(len(counts))) - set(left_out), key=counts.__getitem__):
            study, spaces = self.studies[number], self.rows[number].spaces
            for _ in range(_ATTEMPTS if counts[number] < self.settings.trials else 0):
                seed = hashlib.sha256(json.dumps([self.settings.seed, number, len(study.trials)]).encode())
                study.sampler = _make_sampler(self.settings.sampler, int(seed.hexdigest()[:8], 16))
                candidate = study.ask({key: _distribution(space) for key, space in spaces.items()})
                if (network_dir := self.claim(number, candidate)) is not None:
                    return network_dir
                study.tell(candidate, state=CandidateState.FAIL)
        return None

    def claim(self, number: int, candidate: FrozenTrial | optuna.Trial) -> Path | None:
        """Return the folder of a row's candidate; None if its settings do not fit, or are another candidate's."""
        try:
            training = self.rows[number].candidate(self.settings_of(number, candidate))
            record = make_record(self.held_out(training), self.fingerprint)
        except (ValueError, KeyError):
            return None
        network_dir = folder.network_dir(self.directory, record.key)
        if network_dir in self.owners:
            return None
        self.owners[network_dir] = number, candidate.number
        adopt_network(network_dir, self.directory.parent, [self.evaluation])
        folder.begin_network(network_dir, record, self.study.profile, [self.evaluation])
        return network_dir

    def settings_of(self, number: int, candidate: FrozenTrial | optuna.Trial) -> dict[str, Any]:
        """Return what a row's candidate has of the spaces, by key. Raises ValueError, or KeyError if it lacks some."""
        return {key: space.decode(candidate.params[key]) for key, space in self.rows[number].spaces.items()}

    def conclude(self, network_dir: Path, state: EvaluationState) -> bool:
        """Write what came of a candidate to its study; return whether there is nothing left to do."""
        number, candidate = self.owners[network_dir]
        is_done = state.state is State.FINISHED or state.fails_again
        if is_done and not self.studies[number].trials[candidate].state.is_finished():
            errors = [state.result.metrics.get(name) if state.result else None for name in self.settings.objectives]
            self.studies[number].tell(candidate, [WORST if error is None else error for error in errors])
        return is_done

    def winners(self) -> list[Training]:
        """Return the winners, on all training images and with every seed, and mark their folders.

        They are the candidates with the lowest objective or, of two objectives, the first of each pair on the front.
        """
        winners = list[Training]()
        have_result = {owner for path, owner in self.owners.items() if self.state_of(path).state is State.FINISHED}
        for number, study in enumerate(self.studies):
            front = [one for one in reversed(study.best_trials) if (number, one.number) in have_result]
            best = {tuple(one.values): one for one in front}
            if not best:
                self.console.print(f"{study.study_name}: no candidate has finished")
            count = len(_candidates(study))
            failed = count - sum(row == number for row, _ in have_result)
            text = f"{self.settings.sampler}, {with_plural(count, 'candidate')}"
            text += f"{f' ({failed} failed)' if failed else ''}, evaluated on "
            text += f"{self.settings.validation_images:,} images held out of training{self.changes}"
            for values, winner in sorted(best.items()):
                self.console.print(f"winner: {self.describe(number, winner.number)}")
                errors = dict(zip(self.settings.objectives, values, strict=True))
                choice = {"text": text, "search": self.directory.name, "candidate": winner.number, "validation": errors}
                if len(errors) > 1:
                    choice["front"] = f"{study.study_name} by {self.directory.name}"
                    choice["network"] = self.rows[number].base.network
                training = self.rows[number].training(self.settings_of(number, winner))
                for seed in dict.fromkeys(training.seed for training in self.study.trainings):
                    winners.append(training.replace(seed=seed))
                    key = winners[-1].key(self.fingerprint)
                    folder.write_choice(folder.network_dir(self.sweep_dir, key), choice)
        return winners

    def describe(self, number: int, candidate: int, error: str = "") -> str:
        """Return a line about a row's candidate: its number, its error or what else came of it, its settings."""
        trial = self.studies[number].trials[candidate]
        errors = zip(self.settings.objectives, trial.values or (), strict=False)
        outcome = ", ".join(f"{name.replace('_', ' ')} {value:.2f} %" for name, value in errors) or "not done"
        settings = ", ".join(f"{key}={value}" for key, value in self.settings_of(number, trial).items())
        return f"candidate {candidate} of {self.studies[number].study_name}: {error or outcome}; {settings}"


class _SearchListener(Progress):
    """Shows candidates, and writes how they end to their studies."""

    def __init__(self, search: Search, done: int, fail_fast: bool):
        super().__init__(search.console, "candidates", search.settings.trials * len(search.rows), done)
        self.search, self.fail_fast = search, fail_fast

    def on_end(self, item: Item, error: str | None, result: dict[str, Any]) -> None:
        """Conclude a candidate, or show what came of a teacher."""
        if not item.evaluations:
            if error is not None:
                self.search.failed_teachers.add(item.directory)
            end_teacher(self, item, error, self.fail_fast, is_done=False)
            return
        self.end(item)
        (evaluation_dir,) = evaluation_dirs(item)
        state = read_outcome(item, evaluation_dir, error)
        self.search.conclude(item.directory, state)
        has_failed = state.result is None
        text = self.search.describe(*self.search.owners[item.directory], state.description if has_failed else "")
        self.on_text(f"failed: {text}" if has_failed else text)
        if has_failed and self.fail_fast:
            raise FailedFast


def _make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings(action="ignore"):  # that the option is new
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # which counts candidates that are in training


def _candidates(study: optuna.Study) -> list[FrozenTrial]:
    """Return the candidates of a row, without proposals that were rejected."""
    return study.get_trials(states=[CandidateState.RUNNING, CandidateState.COMPLETE])
