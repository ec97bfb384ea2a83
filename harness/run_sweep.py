"""What `harness.run` does with a sweep file that is right: fit it to data and machines, run it, draw its page."""

import argparse
from dataclasses import replace
from pathlib import Path

from harness.checker.images import describe_unreadable
from harness.common.errors import require
from harness.common.terminal import announced, new_console
from harness.config.file import CPU_PROFILE, SweepFile
from harness.machine.environment import data_directory
from harness.storage import folder
from harness.storage.state import State, read_states
from harness.storage.sweep_file import write_sweep_file
from harness.work.machines import RayOptions, check_dashboard, check_fits, count_fitting
from harness.work.print_plan import print_header, print_plan
from harness.work.run_study import Outcome, RunOptions, open_mlflow, run_study
from harness.work.study import changed_plugins, check_owner, find_evaluations, find_records, find_states, load_checked


class SweepRun:
    """A sweep file with its study and data. found: the states of what lies in the sweep's directory."""

    def __init__(self, file: SweepFile, sweep_dir: Path, is_alone: bool, options: argparse.Namespace):
        """Load study and data. Raises InputError where they, or what lies in the directory, do not fit.

        is_alone: whether this process holds the directory, and so logs to MLflow and writes the page.
        options: of `harness.run`.
        """
        if options.dashboard:
            check_dashboard()
        self.file, self.sweep_dir, self.is_alone, self.options = file, sweep_dir, is_alone, options
        self.console, self.found = new_console(), read_states(sweep_dir)
        self.study, self.data = load_checked(file, self.found, options.data_dir, writes=not options.dry_run)
        check_owner(sweep_dir, self.study, self.found)

    def run(self, machines: list[dict[str, float]]) -> bool:
        """Run what is left of the sweep, or print that; return False if something is left then.

        machines: as `machines_at` returns them. Raises as `run_study` does.
        """
        options, study, console = self.options, self.study, self.console
        cpu, gpu = study.resources.cpu, study.resources.gpu if any(machine["GPU"] for machine in machines) else 0
        with self.file.located():
            check_fits(machines, cpu, gpu)
        fitting = count_fitting(machines, cpu, gpu)
        at_once = 1 if options.here else min(fitting, options.max_concurrent or fitting)
        ray = RayOptions(cpu, gpu, options.max_concurrent, options.ray_address, options.dashboard)
        run_options = RunOptions(
            ray=None if options.here else ray,
            data_dir=str(data_directory(options.data_dir).absolute()),  # workers have another working directory
            threads=cpu,
            tracking_uri=options.tracking_uri,
            fail_fast=options.fail_fast,
            retry_failed=options.retry_failed,
            logs=self.is_alone,
        )
        search = None
        if study.search is not None:
            require("--only", options.only, not options.only, "a sweep without `search`, whose trials are in its file")
            # Here, since most sweeps need no Optuna, which takes a second.
            from harness.work.search import Search, describe_search, describe_time, run_search

            search = Search(study, self.data, self.sweep_dir, run_options.device)
            console.print(describe_search(search))
            if options.dry_run:
                console.print(describe_time(search, at_once))
                console.print("its winners become the networks; a dry run: nothing was started or written")
                return True
            open_mlflow(self.sweep_dir.name, run_options, console)  # refuses a wrong store before hours of work
            if self.is_alone:
                write_sweep_file(self.file, self.sweep_dir, [])
            as_many_as_fit = None if options.here else replace(ray, at_once=at_once)
            study = replace(study, trainings=run_search(search, replace(run_options, ray=as_many_as_fit), console))
            if not study.trainings:
                return False
        records = find_records(study, self.data.fingerprint, self.sweep_dir, options.only)
        states = find_states(find_evaluations(records, study), self.found)
        unfinished = [path for path, each in states.items() if each.state is not State.FINISHED]
        unreadable = describe_unreadable(records[folder.network_of(path)].config for path in unfinished)
        changed = changed_plugins(records, self.found.values())
        for warning in [*study.warnings, *self.data.warnings, *changed, *unreadable]:
            console.print(f"warning: {warning}")
        is_picked = options.profile is None and self.file.sweep.ran is None and study.profile.startswith(CPU_PROFILE)
        print_header(study, self.data, records.values(), states, gpu, is_picked, console)
        if options.dry_run:
            print_plan(study, records, self.found, gpu, at_once, options.retry_failed, console)
            return True
        outcome = run_study(study, self.data, records, states, self.sweep_dir, run_options, console)
        self._write_page(outcome)
        return outcome.is_complete and not (search and search.has_unfinished)

    def _write_page(self, outcome: Outcome) -> None:
        """Write the sweep's page, unless it is up to date or another run may write it, and print where it is."""
        page, tables = self.sweep_dir / folder.REPORT, self.sweep_dir / "leaderboard.md"  # written when it changes
        if self.is_alone and not (page.exists() and page.stat().st_mtime_ns >= tables.stat().st_mtime_ns):
            with announced("draws the page"):
                from harness.report.sweep_page import write_page  # here, since a finished sweep needs no figures

                write_page(outcome.leaderboard, self.options.data_dir)
        if page.exists():
            self.console.print(f"\nAll results on a page:\n{page}")
