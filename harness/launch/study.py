"""The trials of a sweep that a command is to run, and where they lie."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.config.sweep_file import Sweep
from harness.config.trial import TrialConfig
from harness.data import Data
from harness.launch.shared import Shared
from harness.storage import folder
from harness.storage.folder import Trial


@dataclass(frozen=True)
class Study:
    """A sweep on its data. trials: those that are meant; places: their folders, by key. named: the label of each of the
    sweep's, by key. shared: where the directory's files are shared."""

    sweep: Sweep
    data: Data
    trials: list[Trial]
    named: dict[str, str]
    shared: Shared
    places: dict[str, Path]

    @property
    def directory(self) -> Path:
        """The sweep's directory."""
        return self.shared.directory

    @cached_property
    def file_s(self) -> set[str]:
        """The keys of those trials that the sweep file itself has, unchanged."""
        made = {folder.make_trial(config, self.data.fingerprint).key: config for config in self.sweep.trials}
        return {key for key, config in made.items() if config.profile == self.sweep.profile}

    def training_images(self, config: TrialConfig) -> int:
        """How many images a trial of it is trained on."""
        return len(self.data.training_images(config.train_images, config.validation_images)[0])

    def waiting(self) -> list[Trial]:
        """The trials without a result."""
        return [trial for trial in self.trials if folder.read_result(self.places[trial.key]) is None]

    def tried(self, retry_failed: bool) -> list[Trial]:
        """Those of them that are to be run, failed ones last; what would fail so again only where that is asked for."""
        waiting = self.waiting()
        failures = {trial.key: folder.read_failure(self.places[trial.key]) for trial in waiting}
        hopeless = {key for key, failure in failures.items() if failure and failure["repeats"]}
        tried = [trial for trial in waiting if retry_failed or trial.key not in hopeless]
        return sorted(tried, key=lambda trial: failures[trial.key] is not None)
