"""What `harness.run` says before it starts: what runs, and with --dry-run each trial's state and time."""

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import mean

from rich.console import Console

from harness.common import names
from harness.common.terminal import print_table, with_plural
from harness.config.file import CPU_PROFILE
from harness.config.trial import FULL_PROFILE
from harness.settings import describe_weak_attack
from harness.storage import folder, training_record
from harness.storage.files import DamagedFileError
from harness.storage.state import State, TrialState
from harness.tune.planned_sweep import PlannedSweep, trials_to_run
from harness.tune.progress import minutes


def print_header(
    plan: PlannedSweep, states: dict[Path, TrialState], gpus: float, asked_profile: str | None, console: Console
) -> None:  # fmt: skip
    """Print what runs, on which data, under which profile. gpus: what a trial reserves."""
    sweep, trials = plan.sweep, plan.trials.values()
    config = sweep.trials[0]
    all_trials = with_plural(len(sweep.trials), "trial")
    counted = all_trials if len(trials) == len(sweep.trials) else f"{len(trials)} of {all_trials}"
    finished = sum(state.state is State.FINISHED for state in states.values())
    lines = [
        f"{sweep.name}: {plan.data['title']}, eps {sweep.eps}, profile {sweep.profile}; "
        f"{counted}, {finished} finished already",
        f"data: {plan.data['description']}",
    ]
    if sweep.profile == CPU_PROFILE and asked_profile is None:
        lines.append("no GPU here: profile 'cpu' was picked")
    elif sweep.resources.gpu and not gpus:
        lines.append("no GPU here: trials train on the CPU")
    if sweep.profile != FULL_PROFILE:
        widths = ", ".join(f"{width:g}" for width in sorted({trial.width for trial in sweep.trials}))
        epochs = ", ".join(str(count) for count in sorted({trial.epochs for trial in sweep.trials}))
        lines.append(
            f"profile '{sweep.profile}': width {widths}, {config.train_images or 'all'} training images, "
            f"{epochs} epochs; its numbers are not comparable with published ones"
        )
    if changed := [trial for trial in trials if trial.key not in plan.unchanged_keys]:
        lines.append(
            f"{len(changed)} trials differ from the sweep file: tables list them under profile "
            f"'{changed[0].config.profile}'; their numbers are not comparable with published ones"
        )
    attack = config.evaluation
    if warning := describe_weak_attack(attack.attack_step, attack.attack_steps):
        lines.append(f"warning: {warning}")
    console.print("\n".join(lines), soft_wrap=True)


def print_plan(
    plan: PlannedSweep, states: dict[Path, TrialState], gpus: float, at_once: int, retry_failed: bool, console: Console
) -> None:  # fmt: skip
    """Print a line for each trial, the resources and the time. at_once: how many trials run side by side."""
    measured, to_run = _measured_seconds(plan.sweep_dir), trials_to_run(states, retry_failed)
    left, rows = list[float | None](), []
    for trial_dir, state in states.items():
        trial, time = plan.trials[trial_dir], ""
        if trial_dir in to_run:
            seconds, epochs = measured.get(trial.config.identity), trial.config.epochs
            if seconds is not None and epochs:
                seconds *= 1 - training_record.last_epoch(trial_dir) / epochs
            left.append(seconds)
            time = "unknown" if seconds is None else minutes(seconds)
        would_run = "yes" if trial_dir in to_run else "no"
        rows.append([trial.config.label, trial.key, state.state, state.description, would_run, time])
    print_table(console, ["trial", "key", "state", "", "would run", "time"], rows)
    each = f"resources: {plan.sweep.resources.cpu} CPUs and {gpus:g} GPUs for each trial"
    console.print(f"{each}: {at_once} side by side", soft_wrap=True)
    console.print(_describe_time(left, at_once), soft_wrap=True)
    console.print("dry run: nothing was started or written", soft_wrap=True)


def _measured_seconds(sweep_dir: Path) -> dict[str, float]:
    """Return the mean seconds of a directory's finished trials, by `identity`: that of trials that differ in seeds."""
    seconds = defaultdict[str, list[float]](list)
    for trial_dir in folder.trial_folders(sweep_dir):
        with suppress(DamagedFileError):
            if (result := folder.read_result(trial_dir)) is not None:
                row = folder.read_trial(trial_dir / folder.TRIAL).config.identity
                parts = (result.metrics.get(name) for name in (names.TRAIN_SECONDS, names.EVALUATION_SECONDS))
                seconds[row].append(sum(part or 0.0 for part in parts))
    return {row: mean(each) for row, each in seconds.items()}


def _describe_time(left: list[float | None], at_once: int) -> str:
    """Return the time that the trials need, as far as trials of their rows have finished here."""
    if not left:
        return "time: none, nothing is left to do"
    known = [seconds for seconds in left if seconds is not None]
    if not known:
        return f"time: unknown for {with_plural(len(left), 'trial')}, of whose rows none has finished here"
    work = f"time: {minutes(sum(known))} of work for {len(known)} of {len(left)} trials"
    return f"{work}; {minutes(max(*known, sum(known) / at_once))} side by side" if at_once > 1 else work
