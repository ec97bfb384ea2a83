"""What `harness.run` prints of a study before it starts: what runs, on which data, under which profile, how long."""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from statistics import mean

from rich.console import Console

from harness.common import names
from harness.common.terminal import print_table, with_plural
from harness.config.expansion import Study
from harness.config.training import FULL_PROFILE
from harness.data import Data
from harness.settings import describe_weak_attack
from harness.storage import folder
from harness.storage.records import TrainingRecord
from harness.storage.state import EvaluationState, State
from harness.work.display import describe_work, minutes
from harness.work.study import find_evaluations, find_states, to_run


def print_header(
    study: Study, data: Data, records: Collection[TrainingRecord], states: dict[Path, EvaluationState], gpus: float,
    is_picked: bool, console: Console,
) -> None:  # fmt: skip
    """Print what runs, on which data, under which profile.

    records: of the networks that are asked for. gpus: what each reserves.
    is_picked: whether no option names the profile, which is `cpu`.
    """
    all_networks = with_plural(len(study.trainings), "network")
    counted = all_networks if len(records) == len(study.trainings) else f"{len(records)} of {all_networks}"
    profile = "" if study.profile == FULL_PROFILE else f", profile {study.profile}"
    trained = {folder.network_of(path) for path, state in states.items() if state.trained}
    finished = sum(state.state is State.FINISHED for state in states.values())
    lines = [
        f"{study.name}: {data.info.title}{profile}; {counted}, {len(trained)} trained already; "
        f"{with_plural(len(states), 'evaluation')}, {finished} finished already",
        *(f"evaluation: {evaluation.description}" for evaluation in study.evaluations),
        f"data: {data.describe()}",
    ]
    teachers = [each.own_teacher for each in study.trainings if each.own_teacher is not None]
    if named := {f"{teacher.label} ({teacher.key(data.fingerprint)})" for teacher in teachers}:
        lines.append(f"teachers, trained first unless they are: {', '.join(sorted(named))}")
    if is_picked:
        lines.append("no GPU here: profile 'cpu' was picked")
    elif study.resources.gpu and not gpus:
        lines.append("no GPU here: networks train on the CPU")
    if study.profile != FULL_PROFILE:
        widths = ", ".join(f"{width:g}" for width in sorted({training.width for training in study.trainings}))
        epochs = ", ".join(str(count) for count in sorted({training.epochs for training in study.trainings}))
        lines.append(
            f"profile '{study.profile}': width {widths}, {study.trainings[0].train_images or 'all'} training images, "
            f"epochs {epochs}; its numbers are not comparable with published ones"
        )
    weak = (describe_weak_attack(each.attack_step, each.attack_steps) for each in study.evaluations)
    lines += [f"warning: {warning}" for warning in dict.fromkeys(filter(None, weak))]
    console.print("\n".join(lines))


def print_plan(
    study: Study, records: dict[Path, TrainingRecord], found: dict[Path, EvaluationState], gpus: float, at_once: int,
    retry_failed: bool, console: Console,
) -> None:  # fmt: skip
    """Print a line for each network and evaluation, the resources and the time.

    found: the states of all that the directory holds, by which the time is estimated. at_once: how many networks run
    side by side.
    """
    evaluations, measured = find_evaluations(records, study), _measured_seconds(found)
    states = find_states(evaluations, found)
    wanted = to_run(states, retry_failed)
    left, rows, trained_before = list[float | None](), [], set[Path]()
    for path, state in states.items():
        record, would_run, time = records[folder.network_of(path)], "no", ""
        if path in wanted:
            is_trained = state.trained is not None or folder.network_of(path) in trained_before
            trained_before.add(folder.network_of(path))
            would_run = "evaluate" if is_trained else "train, evaluate"
            seconds = measured.get((record.config.identity, path.name))
            if seconds is not None:
                share = 0.0 if is_trained else 1 - state.epochs / max(1, record.config.epochs)
                left.append(seconds[0] * share + seconds[1])
            else:
                left.append(None)
            time = "unknown" if left[-1] is None else minutes(left[-1])
        evaluation = evaluations[path].description
        rows.append([record.config.label, record.key, evaluation, state.state, state.description, would_run, time])
    several = len(study.evaluations) > 1
    titles = ["network", "key", "evaluation", "state", "", "would", "time"]
    columns = [number for number, title in enumerate(titles) if several or title != "evaluation"]
    print_table(console, [titles[number] for number in columns], [[row[number] for number in columns] for row in rows])
    each = f"{with_plural(study.resources.cpu, 'CPU')} and {with_plural(gpus, 'GPU')}"
    console.print(f"resources: {each} for each network: {at_once} side by side")
    console.print(_describe_time(left, at_once))
    console.print("dry run: nothing was started or written")


def _measured_seconds(states: dict[Path, EvaluationState]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the mean seconds of training and of evaluation, of finished ones.

    They are by `identity`, that of networks that differ in seeds, and the evaluation's key.
    """
    seconds = defaultdict[tuple[str, str], list[list[float]]](list)
    for path, state in states.items():
        if state.training and state.result:
            parts = [state.result.metrics.get(name) for name in (names.TRAIN_SECONDS, names.EVALUATION_SECONDS)]
            seconds[state.training.config.identity, path.name].append([part or 0.0 for part in parts])
    return {key: (mean(part[0] for part in each), mean(part[1] for part in each)) for key, each in seconds.items()}


def _describe_time(left: list[float | None], at_once: int) -> str:
    """Return the time that is needed, as far as networks of the same rows have finished here."""
    if not left:
        return "time: none, nothing is left to do"
    known = [seconds for seconds in left if seconds is not None]
    if not known:
        return f"time: unknown, since none of the {with_plural(len(left), 'evaluation')} has finished for another seed"
    return describe_work(known, f"{len(known)} of {len(left)} evaluations", at_once)
