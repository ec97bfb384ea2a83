"""The search before a sweep: candidates are proposed as workers get free, trained, and judged on held-out images.

Everything is in the search's directory. Killed anywhere, the same command goes on with the candidates that were begun,
then with those that a sampler proposes who knows all of them. What is found are the sweep's trials from then on.
"""

import argparse
import shutil
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.clock import Stopped
from harness.config.search import SearchSettings
from harness.config.sweep_file import Sweep
from harness.config.trial import TrialConfig
from harness.data import Data, data_directory
from harness.errors import require
from harness.launch.stopping import Stopping
from harness.search import optimiser
from harness.search.candidates import OPEN, STOPPED, Candidate, Search, candidates_of, claim, hours, search_of
from harness.search.results import best_of, mark
from harness.search.rungs import SEARCH, falls_behind, read_record, write_rung
from harness.storage import folder, names
from harness.storage.files import write_json
from harness.storage.lease import locked

# harness.launch.ray_tune is imported late: Ray takes seconds, and bad input is told first.
_RAY = ".ray"


def check(sweep: Sweep, data: Data, options: argparse.Namespace) -> SearchSettings:
    """How the sweep is searched. Raises InputError for options and slices that do not fit a search."""
    if sweep.search is None:
        raise ValueError(f"the sweep {sweep.name} has no search")
    for name in ("only", "export"):
        given = getattr(options, name)
        require(f"--{name}", given, not given, "a sweep without `search`, whose trials are known before it has run")
    for entry in sweep.searched:
        training, _ = data.training_images(entry.base.train_images, sweep.search.validation_images)
        batch = entry.base.train.batch_size
        require("train.batch_size", batch, batch <= len(training), f"at most the {len(training)} training images")
    return sweep.search


def show(sweep: Sweep, settings: SearchSettings, data: Data, directory: Path, console: Console) -> None:
    """What would be searched, and what is there of it."""
    search, _ = _search(sweep, settings, data, directory)
    _announce(search, console)
    _say(console, "its winners' trials are known once it has run; a dry run: nothing was started or written")


def run(
    sweep: Sweep,
    settings: SearchSettings,
    data: Data,
    directory: Path,
    options: argparse.Namespace,
    gpu: float,
    console: Console,
) -> Sweep | None:
    """The sweep with what its search has found for trials, each marked in its folder; None where that is nothing.

    gpu: what a candidate reserves. Raises KeyboardInterrupt where it is stopped before its end.
    """
    search, content = _search(sweep, settings, data, directory)
    _announce(search, console)
    with locked(directory), locked(search.directory):
        write_json(search.directory / SEARCH, content)
        shutil.rmtree(search.directory / _RAY, ignore_errors=True)  # what Ray left of a driver that was killed
        with Stopping(search.directory / folder.STOP, lambda text: _say(console, text)) as stop:
            _complete(search, sweep, data, options, gpu, stop, console)
        if stop.interrupted:
            raise Stopped
        return None if stop.asked else _with_winners(search, sweep, data, directory, console)


def _complete(
    search: Search,
    sweep: Sweep,
    data: Data,
    options: argparse.Namespace,
    gpu: float,
    stop: Stopping,
    console: Console,
) -> None:
    """Train candidates until the budget is used."""
    waiting = deque(_begun(search, sweep, data))
    if not waiting and _next(search, sweep, data) is None:
        return
    from harness.launch.ray_tune import run_folders

    def supply() -> Path | None:
        if stop.asked:
            return None
        if not waiting and (candidate := _next(search, sweep, data)) is not None:
            waiting.extend(claim(search, candidate, _trials(search, sweep, data, candidate)).places)
        return waiting.popleft() if waiting else None

    def on_report(place: Path, row: dict[str, Any]) -> None:
        if names.RUNG in row:
            _compare(search, place, row[names.RUNG], row[names.CERTIFIED_ERROR])

    def on_end(place: Path, error: str | None) -> None:
        result, failure = folder.read_result(place), folder.read_failure(place)
        if result is None and failure is None and not read_record(place)["stopped"]:
            if error is None and stop.asked:
                return
            failure = folder.write_failure(place, error or "its worker ended without a result")
        _say(console, _ended(search, place))
        if failure is not None and options.fail_fast:
            stop.ask("a candidate failed")

    cpu, storage = sweep.resources.cpu, search.directory / _RAY
    data_dir = str(data_directory(options.data_dir).absolute())  # workers run elsewhere
    run_folders(supply, data_dir, cpu, gpu, storage, on_report, on_end, options.ray_address, options.max_concurrent)


def lacks(sweep: Sweep, settings: SearchSettings, data: Data, directory: Path) -> bool:
    """Whether a candidate has failed in a way that may pass: the same command tries it again."""
    search, _ = _search(sweep, settings, data, directory)
    return any(candidate.state == OPEN for candidate in candidates_of(search))


def _begun(search: Search, sweep: Sweep, data: Data) -> list[Path]:
    """The folders of candidates that were begun and are to go on; failures that may pass are forgotten."""
    left = []
    for candidate in candidates_of(search):
        if candidate.state == OPEN:
            for place in claim(search, candidate, _trials(search, sweep, data, candidate)).places:
                failure = folder.read_failure(place)
                if folder.read_result(place) is None and not (failure and failure["repeats"]):
                    (place / folder.FAILURE).unlink(missing_ok=True)
                    left.append(place)
    return left


def _next(search: Search, sweep: Sweep, data: Data) -> Candidate | None:
    """The next candidate, of the entry that has the fewest; None where the budget is used or nothing is left."""
    settings, known = search.settings, candidates_of(search)
    if settings.hours is not None and hours(known) >= settings.hours:
        return None
    each = [[candidate for candidate in known if candidate.entry == number] for number in range(len(sweep.searched))]
    for number, own in sorted(enumerate(each), key=lambda item: len(item[1])):
        if settings.trials is not None and len(own) >= settings.trials:
            continue

        def is_new(chosen: dict[str, Any], number: int = number) -> bool:
            try:
                trials = _trials(search, sweep, data, Candidate(number, 0, chosen, {}, []))
            except ValueError:  # they do not fit together
                return False
            return not any((folder.place(search.directory, t.key) / folder.TRIAL).exists() for t in trials)

        if candidate := optimiser.propose(settings, number, sweep.searched[number], own, is_new):
            return candidate
    return None


def _trials(search: Search, sweep: Sweep, data: Data, candidate: Candidate) -> list[folder.Trial]:
    """A candidate's trials, one a seed. Raises ValueError where its settings do not fit together."""
    config = sweep.searched[candidate.entry].config(candidate.settings)
    config = replace(config, validation_images=search.settings.validation_images)
    seeds = _seeds(sweep)[: search.settings.seeds]
    return [folder.make_trial(replace(config, seed=seed), data.fingerprint) for seed in seeds]


def _search(sweep: Sweep, settings: SearchSettings, data: Data, directory: Path) -> tuple[Search, dict[str, Any]]:
    """The sweep's search, and its search.json."""
    seeds = _seeds(sweep)[: settings.seeds]
    return search_of(directory, settings, sweep.searched, seeds, data.fingerprint)


def _seeds(sweep: Sweep) -> list[int]:
    return list(dict.fromkeys(trial.seed for trial in sweep.trials))


def _compare(search: Search, place: Path, epochs: int, error: float) -> None:
    """Write down how a candidate stands after so many epochs, and whether it ends there."""
    asha, entry = search.settings.asha, read_record(place)["entry"]
    others = [
        candidate.rungs[epochs]
        for candidate in candidates_of(search)
        if candidate.entry == entry and epochs in candidate.rungs and place not in candidate.places
    ]
    write_rung(place, epochs, error, asha is not None and falls_behind(error, others, asha.factor))


def _with_winners(search: Search, sweep: Sweep, data: Data, directory: Path, console: Console) -> Sweep | None:
    """The sweep with its winners on all training images, under every seed; their folders are marked."""
    trials: list[TrialConfig] = []
    for number, entry in enumerate(sweep.searched):
        own = [candidate for candidate in candidates_of(search) if candidate.entry == number]
        best = best_of(own)
        if not best:
            _say(console, f"{search.rows[number]}: no candidate has finished")
        for candidate in best:
            _say(console, f"chosen: {_told(search, candidate)}")
            configs = [replace(entry.config(candidate.settings), seed=seed) for seed in _seeds(sweep)]
            for config in configs:
                place = folder.place(directory, folder.make_trial(config, data.fingerprint).key)
                folder.write_chosen(place, mark(search, candidate, own))
            trials += configs
    return replace(sweep, trials=trials) if trials else None


def _announce(search: Search, console: Console) -> None:
    settings, known = search.settings, candidates_of(search)
    budget = [f"{settings.trials} candidates of each" if settings.trials else ""]
    budget += [f"{settings.hours:g} hours of training and judging" if settings.hours else ""]
    done = sum(candidate.state != OPEN for candidate in known)
    _say(
        console,
        f"{search.entries[0].written.sweep}: search by {settings.sampler}, {' or '.join(filter(None, budget))}, "
        f"judged on {settings.validation_images:,} images held out of training; {len(known)} begun, {done} done\n"
        f"searched: {', '.join(search.rows)}\ncandidates: {search.directory}",
    )


def _ended(search: Search, place: Path) -> str:
    """A line about a candidate one of whose trials has ended."""
    candidates = candidates_of(search)
    candidate = next(each for each in candidates if place in each.places)
    done = sum(each.state != OPEN for each in candidates)
    failure = folder.read_failure(place)
    told = f"failed: {failure['error']}" if failure else _told(search, candidate)
    return f"{told} ({done} done)"


def _told(search: Search, candidate: Candidate) -> str:
    """A candidate in a line: which it is, what came of it, its settings."""
    chosen = ", ".join(f"{key}={_short(value)}" for key, value in candidate.settings.items())
    errors = ", ".join(
        f"{name.replace('_', ' ')} {value:.2f} %"
        for name, value in zip(search.settings.objectives, candidate.values, strict=False)
    )
    if candidate.state == STOPPED:
        epochs = max(candidate.rungs)
        errors = f"ended after {epochs} epochs, certified error {candidate.rungs[epochs]:.2f} % by IBP"
    row = search.rows[candidate.entry]
    return f"candidate {candidate.number} of {row}: {errors or 'not all of its seeds are done'}; {chosen}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
