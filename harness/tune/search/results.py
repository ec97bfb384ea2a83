"""What came of a search: the best candidates, the settings that mattered, and how winners were chosen."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from harness.storage.folder import TrialResult
from harness.sweep.search import SearchSettings
from harness.tune.search.studies import candidates_of, has_failed

WORST = 100.0
"""Each error, in percent, of a candidate whose training fails in the same way each time, such as by diverging."""
_MIN_FINISHED = 4
"""Importances are estimated from so many finished candidates, or more."""


def mean_error(results: Sequence[TrialResult | None], name: str) -> float:
    """Return the mean of an error, in percent, over a candidate's seeds; of a seed without one it is the worst."""
    errors = [result.metrics.get(name) if result else None for result in results]
    return sum(WORST if error is None else error for error in errors) / len(errors)


def best_candidates(study: Study) -> list[FrozenTrial]:
    """Return the candidate with the lowest objective or, of two objectives, the Pareto front, sorted by values.

    Where several candidates have the same values, the first one is returned.
    """
    finished = finished_candidates(study)
    front = {tuple(trial.values) for trial in _study_of(finished, study).best_trials}
    first = {tuple(trial.values): trial for trial in reversed(finished)}
    return [first[values] for values in sorted(front)]


def finished_candidates(study: Study) -> list[FrozenTrial]:
    """Return the candidates whose training ended with a result for every seed."""
    return [trial for trial in candidates_of(study) if trial.state == TrialState.COMPLETE and not has_failed(trial)]


def importances(study: Study, objective: int) -> dict[str, float]:
    """Return the share of an objective's variance that each setting explains (fANOVA).

    The result is empty if there are too few finished candidates, or if all have the same value.
    """
    finished = finished_candidates(study)
    if len(finished) < _MIN_FINISHED or len({trial.values[objective] for trial in finished}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(
        _study_of(finished, study), evaluator=evaluator, target=lambda trial: trial.values[objective]
    )
    return {key: float(share) for key, share in shares.items()}


def _study_of(candidates: list[FrozenTrial], study: Study) -> Study:
    """Return a study of these candidates alone, in which they have other numbers."""
    copied = optuna.create_study(directions=study.directions)
    copied.add_trials(candidates)
    return copied


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """Return the share, 0 to 1, of all pairs of errors up to 100 % that some point is better than in both errors."""
    volume, lowest = 0.0, WORST
    for first, second in sorted(map(tuple, points)):
        volume += (WORST - first) * max(0.0, lowest - second)
        lowest = min(lowest, second)
    return volume / WORST**2


def describe_choice(study: Study, settings: SearchSettings, search: str, candidate: FrozenTrial) -> dict[str, Any]:
    """Return how a winner was chosen, for the folders of its trials; `text` says it in words.

    Args:
        search: the name of the search's directory.
    """
    candidates = candidates_of(study)
    seeds = f" with {settings.seeds} seeds each" if settings.seeds > 1 else ""
    counts = {
        "ended early": sum(trial.state == TrialState.PRUNED for trial in candidates),
        "failed": sum(trial.state == TrialState.RUNNING or has_failed(trial) for trial in candidates),
    }
    not_finished = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    not_finished = f" ({not_finished})" if not_finished else ""
    text = (
        f"{settings.sampler}, {len(candidates)} candidates{seeds}{not_finished}, "
        f"evaluated on {settings.validation_images:,} images held out of training"
    )
    values = dict(zip(settings.objectives, candidate.values, strict=True))
    return {"text": text, "search": search, "candidate": candidate.number, "validation": values}
