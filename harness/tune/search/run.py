"""The search before a sweep: candidates are proposed when a worker is free, trained, and evaluated on held-out images.

The search's directory holds everything (studies.py). After a kill, the same command goes on with the
candidates that were begun, then proposes more. The winners become the trials of the sweep.
"""

import shutil
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from harness.common import names
from harness.data import Data
from harness.machine.clock import Stopped
from harness.machine.environment import source_digest
from harness.storage import folder
from harness.storage.files import write_json
from harness.storage.lock import lock_directory
from harness.sweep.profiles import Sweep
from harness.sweep.trial import TrialConfig, rows
from harness.training.trial import split_images
from harness.tune.search.results import best_candidates, describe_choice, mean_error
from harness.tune.search.rungs import CANDIDATE, SEARCH, has_ended, is_candidate_stopped, stop_candidate
from harness.tune.search.studies import (
    begin_studies,
    candidates_of,
    load_studies,
    propose,
    search_directory,
    search_json,
    stored_trial,
)
from harness.tune.stopping import Stopping
from harness.tune.work import RAY_STATE, RayOptions, train_item

# harness.tune.ray_tune is imported late: Ray takes seconds, and wrong input is refused first.


class Search:
    """The search of a sweep. `owners` maps each folder that is trained to its entry and its candidate's number."""

    def __init__(self, sweep: Sweep, data: Data, sweep_dir: Path, console: Console):
        """Load what there is of the search. Raises InputError if there are fewer images than it asks for."""
        if sweep.search is None:
            raise ValueError(f"the sweep {sweep.name} has no search")
        for entry in sweep.searched:
            split_images(replace(entry.base, validation_images=sweep.search.validation_images), data)
        self.sweep, self.settings, self.data, self.sweep_dir = sweep, sweep.search, data, sweep_dir
        self.console = console
        self.seeds = list(dict.fromkeys(trial.seed for trial in sweep.trials))
        own_seeds = self.seeds[: self.settings.seeds]
        self.content = search_json(self.settings, sweep.searched, own_seeds, data.fingerprint)
        self.directory = search_directory(sweep_dir, self.content)
        self.studies = load_studies(self.directory)
        self.owners: dict[Path, tuple[int, int]] = {}

    def show(self) -> None:
        """Print what is searched, and how far the search is."""
        settings = self.settings
        begun = [candidate for study in self.studies for candidate in candidates_of(study)]
        done = sum(candidate.state.is_finished() for candidate in begun)
        budget = [f"{settings.trials} candidates of each"] if settings.trials else []
        budget += [f"{settings.hours:g} hours of training and evaluation"] if settings.hours else []
        self.say(
            f"{self.sweep.name}: search by {settings.sampler}, {' or '.join(budget)}, evaluated on "
            f"{settings.validation_images:,} images held out of training; {len(begun)} begun, {done} done\n"
            f"searched: {', '.join(rows([entry.base for entry in self.sweep.searched]))}\ncandidates: {self.directory}"
        )

    def run(self, options: RayOptions, fail_fast: bool = False) -> tuple[Sweep, bool] | None:
        """Search, and return the sweep with its winners as trials; None without a winner.

        The second value is True if candidates have failed that the same command would try again.
        fail_fast: stop once a candidate has failed. Raises Stopped if the search was stopped before its end.
        """
        self.show()
        with lock_directory(self.sweep_dir), lock_directory(self.directory):
            self.studies = begin_studies(self.directory, self.settings, self.sweep.searched)
            write_json(self.directory / SEARCH, self.content)
            shutil.rmtree(self.directory / RAY_STATE, ignore_errors=True)  # Ray's state of a driver that was killed
            with Stopping(self.directory / folder.STOP, self.say) as stopping:
                self.train(options, fail_fast, stopping)
            if stopping.interrupted:
                raise Stopped
            winners = [] if stopping.asked else self.winners()
        lacks_some = any(study.get_trials(states=[TrialState.RUNNING]) for study in self.studies)
        return (replace(self.sweep, trials=winners), lacks_some) if winners else None

    def train(self, options: RayOptions, fail_fast: bool, stopping: Stopping) -> None:
        """Train candidates until the budget is used."""
        queue = deque(self.unfinished() or self.next_candidate())
        if not queue:
            return
        from harness.tune.ray_tune import run_on_ray

        def supply() -> Path | None:
            if stopping.asked:
                return None
            if not queue:
                queue.extend(self.next_candidate())
            return queue.popleft() if queue else None

        def on_report(trial_dir: Path, row: dict[str, Any]) -> None:
            if names.RUNG in row:
                self.compare(trial_dir, row[names.RUNG], row[names.CERTIFIED_ERROR])

        def on_end(trial_dir: Path, error: str | None) -> None:
            failure = folder.read_failure(trial_dir)
            if failure is None and folder.read_result(trial_dir) is None and not is_candidate_stopped(trial_dir):
                if error is None and stopping.asked:
                    return
                failure = folder.write_failure(trial_dir, error or "its worker ended without a result")
            self.conclude(*self.owners[trial_dir])
            self.say(f"failed: {failure['error']}" if failure else self.describe(*self.owners[trial_dir]))
            if failure is not None and fail_fast:
                stopping.ask("a candidate failed")

        work = partial(train_item, data_dir=options.data_dir, code=source_digest())
        run_on_ray(supply, work, on_report, on_end, options, self.directory)

    def unfinished(self) -> list[Path]:
        """Return the folders to train of candidates that were begun. Failures that may pass are forgotten."""
        unfinished = []
        for entry, study in enumerate(self.studies):
            for candidate in study.get_trials(states=[TrialState.RUNNING]):
                trial_dirs = self.make_trial_dirs(entry, candidate)
                self.conclude(entry, candidate.number)
                unfinished += [trial_dir for trial_dir in trial_dirs if not has_ended(trial_dir)]
        for trial_dir in unfinished:
            (trial_dir / folder.FAILURE).unlink(missing_ok=True)
        return unfinished

    def next_candidate(self) -> list[Path]:
        """Propose a candidate of the entry with the fewest, and return its folders; empty once the search is done."""
        budget = self.settings
        if budget.hours is not None and _hours(folder.trial_folders(self.directory)) >= budget.hours:
            return []
        counts = [len(candidates_of(study)) for study in self.studies]
        for entry in sorted(range(len(counts)), key=counts.__getitem__):
            if budget.trials is not None and counts[entry] >= budget.trials:
                continue
            searched, is_new = self.sweep.searched[entry], partial(self.is_new, entry)
            if candidate := propose(self.studies[entry], self.settings, entry, searched, is_new):
                return self.make_trial_dirs(entry, candidate)
        return []

    def is_new(self, entry: int, settings: dict[str, Any]) -> bool:
        """Return whether settings fit together and none of their trials has been trained."""
        try:
            trials = self.trials(entry, settings)
        except ValueError:
            return False
        return not any((folder.trial_dir(self.directory, trial.key) / folder.TRIAL).exists() for trial in trials)

    def trials(self, entry: int, settings: dict[str, Any]) -> list[folder.Trial]:
        """Return a candidate's trials, one for each seed. Raises ValueError if its settings do not fit together."""
        config = self.sweep.searched[entry].config(settings)
        config = replace(config, validation_images=self.settings.validation_images)
        seeds = self.seeds[: self.settings.seeds]
        return [folder.make_trial(replace(config, seed=seed), self.data.fingerprint) for seed in seeds]

    def make_trial_dirs(self, entry: int, candidate: FrozenTrial) -> list[Path]:
        """Make the folders of a candidate's trials and return them; a folder that exists stays as it is."""
        trials = self.trials(entry, candidate.user_attrs["settings"])
        by_folder = {folder.trial_dir(self.directory, trial.key): trial for trial in trials}
        for trial_dir, trial in by_folder.items():
            if not (trial_dir / folder.TRIAL).exists():
                write_json(trial_dir / CANDIDATE, {"entry": entry, "number": candidate.number, "stopped": False})
                folder.take_over(trial_dir, trial)
        self.owners |= dict.fromkeys(by_folder, (entry, candidate.number))
        return list(by_folder)

    def compare(self, trial_dir: Path, epochs: int, error: float) -> None:
        """Stop a candidate that is worse than others were after as many epochs. error: certified, in percent."""
        entry, number = self.owners[trial_dir]
        trial = stored_trial(self.studies[entry], number)
        if epochs not in self.studies[entry].trials[number].intermediate_values:
            trial.report(error, epochs)
        if trial.should_prune():
            stop_candidate(trial_dir)

    def conclude(self, entry: int, number: int) -> None:
        """Write what came of a candidate to its study, once training has ended for all its seeds."""
        study = self.studies[entry]
        trial_dirs = [trial_dir for trial_dir, owner in self.owners.items() if owner == (entry, number)]
        if not all(map(has_ended, trial_dirs)):
            return
        if any(map(is_candidate_stopped, trial_dirs)):
            study.tell(number, state=TrialState.PRUNED)
            return
        results = [folder.read_result(trial_dir) for trial_dir in trial_dirs]
        if None in results:
            stored_trial(study, number).set_user_attr("failure", True)
        study.tell(number, [mean_error(results, name) for name in self.settings.objectives])

    def winners(self) -> list[TrialConfig]:
        """Return the winners' trials, on all training images and with every seed, and mark their folders."""
        configs = []
        for entry, study in enumerate(self.studies):
            best = best_candidates(study)
            if not best:
                self.say(f"{study.study_name}: no candidate has finished")
            for candidate in best:
                self.say(f"winner: {self.describe(entry, candidate.number)}")
                config = self.sweep.searched[entry].config(candidate.user_attrs["settings"])
                content = describe_choice(study, self.settings, self.directory.name, candidate)
                for seeded in (replace(config, seed=seed) for seed in self.seeds):
                    trial = folder.make_trial(seeded, self.data.fingerprint)
                    folder.write_chosen(folder.trial_dir(self.sweep_dir, trial.key), content)
                    configs.append(seeded)
        return configs

    def describe(self, entry: int, number: int) -> str:
        """Return a line about a candidate: its number, what came of it, its settings."""
        study = self.studies[entry]
        candidate = study.trials[number]
        settings = ", ".join(f"{key}={_short(value)}" for key, value in candidate.user_attrs["settings"].items())
        outcome = "not all of its seeds are done"
        if candidate.state == TrialState.PRUNED:
            outcome = f"ended after {candidate.last_step} epochs, certified error {candidate.value:.2f} % by IBP"
        elif candidate.values:
            errors = zip(self.settings.objectives, candidate.values, strict=True)
            outcome = ", ".join(f"{name.replace('_', ' ')} {value:.2f} %" for name, value in errors)
        return f"candidate {number} of {study.study_name}: {outcome}; {settings}"

    def say(self, text: str) -> None:
        """Print a text as it is."""
        self.console.print(text, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _hours(trial_dirs: list[Path]) -> float:
    """Return the hours that training and evaluation have taken in these folders."""
    seconds = 0.0
    for trial_dir in trial_dirs:
        seconds += sum(row.get(names.TRAIN_EPOCH_SECONDS, 0.0) for row in folder.read_epochs(trial_dir))
        result = folder.read_result(trial_dir)
        seconds += (result.metrics.get(names.EVALUATION_SECONDS) or 0.0) if result else 0.0
    return seconds / 3600
