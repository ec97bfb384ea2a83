"""Run a search: its candidates as jobs, what a person sees of them, and its winners."""

from pathlib import Path

from rich.console import Console

from harness.common import names
from harness.common.terminal import with_plural
from harness.config.training import Training
from harness.storage import folder
from harness.storage.state import EvaluationState, State
from harness.work.display import Progress, describe_work
from harness.work.jobs import Job
from harness.work.queue import Queue
from harness.work.run_study import RunOptions, run_jobs
from harness.work.search import Search, candidates_of


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
