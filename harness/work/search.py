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
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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
from harness.evaluation.ranges import evaluated_images
from harness.storage import folder
from harness.storage.files import DamagedFileError, read_bytes
from harness.storage.lock import lock_directory
from harness.storage.records import make_record
from harness.storage.state import EvaluationState, State, read_state
from harness.training.train import check_images
from harness.work.display import Progress, describe_work
from harness.work.jobs import Job, make_jobs
from harness.work.networks import Teachers, adopt_network
from harness.work.queue import Queue
from harness.work.run_study import RunOptions, run_jobs

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
    """The search of a sweep: it proposes candidates, and reads from their folders what came of them.

    owners: for each candidate's folder its row and its number there.
    """

    def __init__(self, study: Study, data: Data, sweep_dir: Path, device: str):
        """Load what there is of the search. Raises InputError if there are fewer images than it asks for.

        device: on which candidates are evaluated.
        """
        assert study.search is not None
        self.study, self.settings, self.rows, self.device = study, study.search, study.searched, device
        self.fingerprint, self.sweep_dir, self.seed = data.fingerprint, sweep_dir, study.trainings[0].seed
        self.evaluation = study.search.evaluation_of_candidates(study.evaluations[0])
        for row in self.rows:
            check_images(self.held_out(row.base), data)
        self.images = len(evaluated_images(data, self.settings.validation_images, self.evaluation))
        settings = self.settings.model_dump(mode="json", exclude={"trials", "train", "evaluation"})
        settings |= {"train": self.settings.train} if self.settings.train else {}
        bases = [row.base.canonical() for row in self.rows]
        inputs = [settings, bases, self.evaluation.key, self.seed, self.fingerprint, RECIPE_VERSION]
        content = json.dumps(inputs, sort_keys=True)
        name = f"{self.settings.sampler}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        self.directory = sweep_dir / "search" / name
        self.studies = load_studies(self.directory)
        self.owners, self.begun = dict[Path, tuple[int, int]](), list[Path]()
        self.teachers = Teachers(study.checkpoints)

    def held_out(self, training: Training) -> Training:
        """Return a training as a candidate's: images are held out of it, under the first seed."""
        return training.replace(seed=self.seed, validation_images=self.settings.validation_images)

    @contextmanager
    def opened(self, retry_failed: bool) -> Iterator[None]:
        """Hold the search's directory within the block, in which candidates are proposed.

        retry_failed: also train teachers again that would fail the same way. Raises DamagedFileError, HeldError.
        """
        with lock_directory(self.directory):
            self._open_studies()
            self.begun = [path for path in self.owners if not self.conclude(path)]
            self.teachers.retry_failed = retry_failed
            yield

    @property
    def has_unfinished(self) -> bool:
        """True if candidates have failed that the same command would try again."""
        return any(study.get_trials(states=[CandidateState.RUNNING]) for study in self.studies)

    def _open_studies(self) -> None:
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
            for candidate in sorted(candidates_of(study), key=lambda one: one.state == CandidateState.RUNNING):
                if self.claim(number, candidate) is None:  # killed while it was proposed
                    study.tell(candidate.number, state=CandidateState.FAIL)

    def propose(self, waiting: Collection[Job] = ()) -> list[Job]:
        """Return the jobs of the next candidate, one that was begun or a new one; none once each row has enough.

        waiting: jobs that cannot be done now. While a candidate of a row waits for its teacher, other rows go on.
        """
        for path in self.owners:
            self.conclude(path)
        rows = {self.owners[job.network_dir][0] for job in waiting if job.trains and job.network_dir in self.owners}
        network_dir = next((path for path in self.begun if self.owners[path][0] not in rows), None)
        if network_dir is not None:
            self.begun.remove(network_dir)
        elif (network_dir := self.ask(rows)) is None:
            return []
        for directory in (network_dir, folder.evaluation_dir(network_dir, self.evaluation)):
            (directory / folder.FAILURE).unlink(missing_ok=True)
        record = folder.read_training(network_dir / folder.TRAINING)
        teachers, after = self.teachers.jobs_before(network_dir, record)
        counted = [(self.evaluation, self.images)]
        own = make_jobs(network_dir, record, counted, self.device, self.name_of(network_dir), after)
        self.teachers.jobs[network_dir] = own[0]  # it may be a later one's teacher
        return [*teachers, *own]

    def name_of(self, network_dir: Path) -> str:
        """Return the name of a candidate in messages."""
        row, number = self.owners[network_dir]
        return f"candidate {number} of {self.rows[row].base.row}"

    def state_of(self, network_dir: Path) -> EvaluationState:
        """Return the state of a candidate."""
        return read_state(folder.evaluation_dir(network_dir, self.evaluation))

    def ask(self, left_out: Collection[int] = ()) -> Path | None:
        """Return the folder of a new candidate of the row with the fewest; None once each has enough.

        left_out: numbers of rows that get none now. The sampler's seed depends on the number of proposals alone: a
        process that was killed makes no difference.
        """
        counts = [len(candidates_of(study)) for study in self.studies]
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

    def is_concluded(self, network_dir: Path) -> bool:
        """Return whether a candidate's study has what came of it."""
        row, number = self.owners[network_dir]
        return bool(self.studies[row].trials[number].state.is_finished())

    def conclude(self, network_dir: Path) -> bool:
        """Write what came of a candidate to its study; return whether there is nothing left to do."""
        if self.is_concluded(network_dir):
            return True
        row, number = self.owners[network_dir]
        state = self.state_of(network_dir)
        is_done = state.state is State.FINISHED or state.fails_again
        if is_done:
            errors = [state.result.metrics.get(name) if state.result else None for name in self.settings.objectives]
            self.studies[row].tell(number, [WORST if error is None else error for error in errors])
        return is_done


def _make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings(action="ignore"):  # that the option is new
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # which counts candidates that are in training


def candidates_of(study: optuna.Study) -> list[FrozenTrial]:
    """Return the candidates of a row, without proposals that were rejected."""
    return study.get_trials(states=[CandidateState.RUNNING, CandidateState.COMPLETE])


def run_search(search: Search, options: RunOptions, console: Console) -> list[Training]:
    """Search, and return the winners; none if no candidate has finished, or a failure has stopped it.

    Raises as `run_jobs` does.
    """
    with search.opened(options.retry_failed):
        jobs = search.propose()  # a search with nothing left starts no Ray
        if jobs:
            queue = Queue(jobs, search.propose, options.fail_fast)
            with _SearchProgress(console, queue, search) as listener:
                if not run_jobs(queue, listener, options, search.directory):
                    return []
        for network_dir in search.owners:
            search.conclude(network_dir)
        return choose_winners(search, console)


class _SearchProgress(Progress):
    """Shows candidates, and the teachers of some."""

    def __init__(self, console: Console, queue: Queue, search: Search):
        done = sum(map(search.is_concluded, search.owners))
        super().__init__(console, "candidates", search.settings.trials * len(search.rows), done)
        self.queue, self.search = queue, search

    def on_end(self, job: Job, error: str | None) -> None:
        """Show what came of a candidate, or of a teacher."""
        is_candidate = job.network_dir in self.search.owners
        is_last = is_candidate and not self.queue.left(job.network_dir)
        self.end(job, is_done=is_last)
        if not is_candidate:
            self.show_teacher(job, error)
        elif is_last:
            state = self.search.state_of(job.network_dir)
            text = describe_candidate(self.search, job.network_dir, state)
            self.on_text(f"failed: {text}" if state.result is None else text)


def describe_search(search: Search) -> str:
    """Return lines about what is searched, and how far the search is."""
    begun = [candidate for study in search.studies for candidate in candidates_of(study)]
    done = sum(candidate.state.is_finished() for candidate in begun)
    wanted = with_plural(search.settings.trials, "candidate")
    return (
        f"{search.study.name}: search by {search.settings.sampler}, {wanted} of each, {_describe_images(search)}; "
        f"{len(begun)} begun, {done} done\n"
        f"searched: {', '.join(row.base.row for row in search.rows)}\ncandidates: {search.directory}"
    )


def describe_time(search: Search, at_once: int) -> str:
    """Return how much time is left, from the mean of finished candidates. at_once: how many run side by side."""
    states = [search.state_of(each) for each in folder.network_folders(search.directory)]
    finished = [state.result.metrics for state in states if state.result is not None]
    done = len(finished) + sum(state.fails_again for state in states)
    left = max(0, search.settings.trials * len(search.rows) - done)  # `trials` may be lowered
    if not finished:
        return f"time: unknown, since none of the {with_plural(left, 'candidate')} has finished"
    parts = (names.TRAIN_SECONDS, names.EVALUATION_SECONDS)
    seconds = sum(metrics.get(name) or 0.0 for metrics in finished for name in parts) / len(finished)
    return describe_work([seconds] * left, with_plural(left, "candidate"), at_once)


def choose_winners(search: Search, console: Console) -> list[Training]:
    """Return the winners, on all training images and with every seed, and mark their folders.

    They are the candidates with the lowest objective or, of two objectives, the first of each pair on the front.
    """
    winners = list[Training]()
    states = {owner: (path, search.state_of(path)) for path, owner in search.owners.items()}
    have_result = {owner for owner, (_, state) in states.items() if state.state is State.FINISHED}
    for number, study in enumerate(search.studies):
        front = [one for one in reversed(study.best_trials) if (number, one.number) in have_result]
        best = {tuple(one.values): one for one in front}
        if not best:
            console.print(f"{study.study_name}: no candidate has finished")
        count = len(candidates_of(study))
        failed = count - sum(row == number for row, _ in have_result)
        text = f"{search.settings.sampler}, {with_plural(count, 'candidate')}"
        text += f"{f' ({failed} failed)' if failed else ''}, {_describe_images(search)}"
        for values, winner in sorted(best.items()):
            console.print(f"winner: {describe_candidate(search, *states[number, winner.number])}")
            errors = dict(zip(search.settings.objectives, values, strict=True))
            choice = {"text": text, "search": search.directory.name, "candidate": winner.number, "validation": errors}
            if len(errors) > 1:
                choice["front"] = f"{study.study_name} by {search.directory.name}"
                choice["network"] = search.rows[number].base.network
            training = search.rows[number].training(search.settings_of(number, winner))
            for seed in dict.fromkeys(training.seed for training in search.study.trainings):
                winners.append(training.replace(seed=seed))
                key = winners[-1].key(search.fingerprint)
                folder.write_choice(folder.network_dir(search.sweep_dir, key), choice)
    return winners


def describe_candidate(search: Search, network_dir: Path, state: EvaluationState) -> str:
    """Return a line about a candidate: its errors or what else came of it, and its settings."""
    row, number = search.owners[network_dir]
    settings = search.settings_of(row, search.studies[row].trials[number])
    outcome = state.description
    if state.result is not None:
        errors = ((name.replace("_", " "), state.result.metrics.get(name)) for name in search.settings.objectives)
        outcome = ", ".join(f"{name} {100.0 if error is None else error:.2f} %" for name, error in errors)
    texts = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{search.name_of(network_dir)}: {outcome}; {texts}"


def _describe_images(search: Search) -> str:
    """Return on which images candidates are evaluated, and what they have of their own."""
    changes = [f"{name} {value}" for name, value in search.settings.train.items()]
    texts = [", ".join(changes), search.evaluation.verifier if search.settings.evaluation else ""]
    own = f" (candidates: {'; '.join(filter(None, texts))})" if any(texts) else ""
    return f"evaluated on {search.settings.validation_images:,} images held out of training{own}"
