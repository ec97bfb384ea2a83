"""What `harness.run` prints before it starts: the sweep, and with --dry-run its trials and an estimate of the time."""

import os

import torch
from rich.console import Console

from harness.common.terminal import print_table
from harness.settings import describe_weak_attack
from harness.storage.lock import holder
from harness.sweep.profiles import CPU_PROFILE
from harness.sweep.trial_config import FULL_PROFILE
from harness.tune.progress import minutes
from harness.tune.states import state_of
from harness.tune.study import Study


def print_header(study: Study, gpus: float, asked_profile: str | None, console: Console) -> None:
    """Print what runs, on which data, under which profile. gpus: what a trial reserves."""
    sweep, data, trials = study.sweep, study.data, study.trials
    config = sweep.trials[0]
    total = f" of {len(sweep.trials)}" if len(trials) < len(sweep.trials) else ""
    lines = [
        f"{sweep.name}: {data['title']}, eps {sweep.eps}, profile {sweep.profile}; "
        f"{len(trials)}{total} trials, {len(trials) - len(study.unfinished())} finished already",
        f"data: {data['train_images']:,} training and {data['test_images']:,} test images "
        f"from {data['directory'] or 'a package'}",
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
    if changed := [trial for trial in trials if trial.key not in study.unchanged_keys]:
        lines.append(
            f"{len(changed)} trials differ from the sweep file: tables list them under profile "
            f"'{changed[0].config.profile}'; their numbers are not comparable with published ones"
        )
    attack = config.evaluation
    if warning := describe_weak_attack(attack.attack_step, attack.attack_steps):
        lines.append(f"warning: {warning}")
    console.print("\n".join(lines), soft_wrap=True)


def print_plan(study: Study, retry_failed: bool, ray_address: str | None, console: Console) -> None:
    """Print a line for each trial, the resources and the time."""
    to_run = {trial.key for trial in study.to_run(retry_failed)}
    left = study.seconds_left([trial for trial in study.trials if trial.key in to_run])
    rows = []
    for trial in study.trials:
        state = state_of(study.trial_dirs[trial.key], trial.config.epochs, holder(study.sweep_dir))
        seconds = left.get(trial.key)
        time = "" if trial.key not in to_run else "unknown" if seconds is None else minutes(seconds)
        would_run = "yes" if trial.key in to_run else "no"
        rows.append([study.labels[trial.key], trial.key, state.state, state.description, would_run, time])
    print_table(console, ["trial", "key", "state", "", "would run", "time"], rows)
    resources, cpus, gpus = study.sweep.resources, len(os.sched_getaffinity(0)), torch.cuda.device_count()
    side_by_side = None
    if ray_address is None:
        side_by_side = cpus // resources.cpu
        if gpus and resources.gpu:
            side_by_side = min(side_by_side, int(gpus / resources.gpu))
    fitting = "as many side by side as fit" if side_by_side is None else f"{side_by_side} side by side"
    here = "" if ray_address else f", {cpus} CPUs and {gpus} GPUs here"
    each = f"resources: {resources.cpu} CPUs and {resources.gpu:g} GPUs for each trial"
    console.print(f"{each}{here}: {fitting}", soft_wrap=True)
    console.print(_describe_time(list(left.values()), side_by_side), soft_wrap=True)
    console.print("dry run: nothing was started or written", soft_wrap=True)


def _describe_time(left: list[float | None], side_by_side: int | None) -> str:
    """Return the time that the trials need, as far as trials of their rows have finished here."""
    if not left:
        return "time: none, nothing is left to do"
    estimates = [seconds for seconds in left if seconds is not None]
    if not estimates:
        return "time: unknown until one trial of a row has finished"
    work = f"time: {minutes(sum(estimates))} of work for {len(estimates)} of {len(left)} trials"
    if not side_by_side:
        return work
    return f"{work}; {minutes(max(max(estimates), sum(estimates) / side_by_side))} side by side"
