"""What Optuna's samplers propose next."""

import hashlib
import json
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.config.search import Searched, SearchSettings, Space
from harness.search.studies import candidates_of

_ATTEMPTS = 100
"""An entry's spaces count as exhausted once a sampler has proposed so many rejected settings in a row."""
_GENERATION = 10
"""Candidates in a generation of NSGA-II. The first generation is random, and budgets here are small."""


def propose(
    study: Study,
    settings: SearchSettings,
    entry: int,
    searched: Searched,
    is_acceptable: Callable[[dict[str, Any]], bool],
) -> FrozenTrial | None:
    """Add the next candidate of an entry to its study and return it; None if its spaces seem to hold no other.

    The first candidate is the entry as it is written, if its spaces contain those settings. The sampler's seed depends
    on the number of candidates alone, so that a process that was killed makes no difference.

    Args:
        entry: the entry's number in the sweep file.
        is_acceptable: returns whether settings, by key, are new and fit together.
    """
    count = len(candidates_of(study))
    if count == 0 and (written := searched.written) is not None:
        parameters = {key: _encode(space, written[key]) for key, space in searched.spaces.items()}
        first = create_trial(
            state=TrialState.RUNNING,
            params=parameters,
            distributions=distributions(searched.spaces),
            user_attrs={"settings": written, "as_written": True},
        )
        study.add_trial(first)  # a single line of the journal, unlike enqueue_trial and ask
        return study.trials[-1]
    if "exhausted" in study.user_attrs:
        return None
    for attempt in range(_ATTEMPTS):
        study.sampler = _sampler(settings.sampler, _seed(settings.seed, entry, count, attempt))
        trial = study.ask(distributions(searched.spaces))
        proposed = {key: _decode(space, trial.params[key]) for key, space in searched.spaces.items()}
        if is_acceptable(proposed):
            trial.set_user_attr("settings", proposed)
            return study.trials[-1]
        study.tell(trial, state=TrialState.FAIL)
    study.set_user_attr("exhausted", True)
    return None


def distributions(spaces: dict[str, Space]) -> dict[str, BaseDistribution]:
    """Return the spaces as Optuna's distributions. Choices are JSON texts, which tell 1, 1.0 and true apart."""
    return {key: _distribution(space) for key, space in spaces.items()}


def _distribution(space: Space) -> BaseDistribution:
    if space.choice is not None:
        return CategoricalDistribution([json.dumps(value) for value in space.choice])
    if space.integer is not None:
        return IntDistribution(min(space.integer), max(space.integer))
    low, high = space.ends
    return FloatDistribution(low, high, log=space.log_uniform is not None)


def _encode(space: Space, value: Any) -> Any:
    """Return Optuna's parameter for a setting."""
    return value if space.choice is None else json.dumps(value)


def _decode(space: Space, value: Any) -> Any:
    """Return the setting for Optuna's parameter; numbers are rounded to 4 digits, within the space."""
    if space.choice is not None:
        return json.loads(value)
    low, high = space.ends
    return min(max(float(f"{value:.4g}"), low), high) if isinstance(value, float) else value


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns that some options are new
        if name == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=_GENERATION)
        return optuna.samplers.RandomSampler(seed=seed)


def _seed(*parts: int) -> int:
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8], 16)
