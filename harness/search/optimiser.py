"""Optuna, asked anew each time about a study made of a search's candidates: it keeps nothing of its own."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from harness.config.search import Searched, SearchSettings, Space
from harness.errors import InputError
from harness.search.candidates import FAILED, FINISHED, STOPPED, Candidate

try:
    import optuna
except ImportError:
    raise InputError("search: it needs Optuna, which is not installed; `pip install optuna`, or `uv sync`") from None
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

_ATTEMPTS = 100
"""So often a sampler is asked for what was not proposed before and fits together; then there is nothing else."""
_GENERATION = 10
"""Candidates of a generation of NSGA-II, whose first one is random: budgets here are small."""
_FEWEST = 4
"""Finished candidates that importances are estimated from."""
_STATES = {FINISHED: TrialState.COMPLETE, FAILED: TrialState.COMPLETE, STOPPED: TrialState.PRUNED}


def propose(
    settings: SearchSettings,
    entry: int,
    searched: Searched,
    known: Sequence[Candidate],
    accepts: Callable[[dict[str, Any]], bool],
) -> Candidate | None:
    """The next candidate of an entry, given those that it has; None where its spaces seem to hold no other.

    The first one is the entry as it is written, where its spaces have that. The same for the same candidates.
    accepts: whether settings, by key, can be had and are new.
    """
    number = 1 + max((candidate.number for candidate in known), default=-1)
    if number == 0 and (written := searched.written) is not None and accepts(written):
        return Candidate(entry, number, written, {}, [])
    for attempt in range(_ATTEMPTS):
        study = _study(settings, searched.spaces, known, _seed(settings.seed, entry, number, attempt))
        study.ask(distributions(searched.spaces))
        trial = study.trials[-1]
        proposed = {key: _decoded(space, trial.params[key]) for key, space in searched.spaces.items()}
        if accepts(proposed):
            return Candidate(entry, number, proposed, dict(trial.system_attrs), [])
    return None


def importances(
    settings: SearchSettings, spaces: dict[str, Space], candidates: Sequence[Candidate], objective: int
) -> dict[str, float]:
    """Of each setting, what share of an objective's variance it explains (fANOVA); empty where that cannot be told."""
    finished = [candidate for candidate in candidates if candidate.state == FINISHED]
    if len(finished) < _FEWEST or len({candidate.values[objective] for candidate in finished}) == 1:
        return {}
    study = _study(settings, spaces, finished, 0)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(
        study, evaluator=evaluator, target=lambda trial: trial.values[objective]
    )
    return {key: float(share) for key, share in found.items()}


def distributions(spaces: dict[str, Space]) -> dict[str, BaseDistribution]:
    """Spaces as Optuna has them; choices as JSON, in which 1, 1.0 and true differ and lists are texts."""
    return {key: _distribution(space) for key, space in spaces.items()}


def _study(
    settings: SearchSettings, spaces: dict[str, Space], known: Sequence[Candidate], seed: int
) -> optuna.study.Study:
    study = optuna.create_study(
        sampler=_sampler(settings.sampler, seed), directions=["minimize"] * len(settings.objectives)
    )
    for candidate in known:
        study.add_trial(
            create_trial(
                state=_STATES.get(candidate.state, TrialState.RUNNING),
                params={key: _encoded(space, candidate.settings[key]) for key, space in spaces.items()},
                distributions=distributions(spaces),
                values=candidate.values or None,
                intermediate_values=candidate.rungs,
                system_attrs=candidate.attrs,
            )
        )
    return study


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is new in Optuna
        return {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=_GENERATION),
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        }[name]()


def _distribution(space: Space) -> BaseDistribution:
    if space.choice is not None:
        return CategoricalDistribution([json.dumps(value) for value in space.choice])
    if space.integer is not None:
        return IntDistribution(min(space.integer), max(space.integer))
    low, high = space.ends
    return FloatDistribution(low, high, log=space.log_uniform is not None)


def _encoded(space: Space, value: Any) -> Any:
    return value if space.choice is None else json.dumps(value)


def _decoded(space: Space, value: Any) -> Any:
    """The setting that a parameter of Optuna's is; numbers are short, for people, and stay in the space."""
    if space.choice is not None:
        return json.loads(value)
    low, high = space.ends
    return min(max(float(f"{value:.4g}"), low), high) if isinstance(value, float) else value


def _seed(*parts: int) -> int:
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8], 16)
