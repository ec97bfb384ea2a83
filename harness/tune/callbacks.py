"""What `harness.run` does when a trial reports, and when it ends."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common import names
from harness.storage import folder
from harness.tune.progress import SweepProgress
from harness.tune.stopping import Stopping

if TYPE_CHECKING:
    from harness.tracking.mlflow_sync import MlflowSync


@dataclass
class TrialCallbacks:
    """Show and log what trials report and how they end. begun: the trials that have reported."""

    mlflow: "MlflowSync"
    progress: SweepProgress
    stopping: Stopping
    fail_fast: bool
    begun: set[Path] = field(default_factory=set)

    def on_report(self, trial_dir: Path, row: dict[str, Any]) -> None:
        """Show and log an epoch's row, or how many images are evaluated."""
        if not trial_dir.is_dir():  # `on_end` reports it
            return
        self.progress.report(trial_dir.name, row)
        if names.EPOCH in row or trial_dir not in self.begun:  # a trial that is only evaluated reports no epoch
            with self.stopping.delayed():
                self.mlflow.sync(trial_dir)
        self.begun.add(trial_dir)

    def on_end(self, trial_dir: Path, error: str | None) -> None:
        """Show and log the result or the failure of a trial."""
        if not trial_dir.is_dir():
            self.progress.failed(trial_dir.name, f"its folder is gone: {trial_dir}")
            return
        result, failure = folder.read_result(trial_dir), folder.read_failure(trial_dir)
        if result is not None:
            self.progress.finished(trial_dir.name, result)
        elif failure is None and error is None and self.stopping.asked:
            self.progress.stopped(trial_dir.name)
        else:
            if failure is None:  # the worker died before it could write one
                failure = {"error": error or "its worker ended without a result"}
                with suppress(OSError):  # of a full disk
                    failure = folder.write_failure(trial_dir, failure["error"])
            self.progress.failed(trial_dir.name, failure["error"])
            if self.fail_fast:
                self.stopping.ask("a trial failed")
        with self.stopping.delayed():
            self.mlflow.sync(trial_dir, running=False)
