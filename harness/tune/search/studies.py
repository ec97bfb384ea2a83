"""A search's Optuna studies, one for each entry of the sweep, and what their samplers propose.

Each candidate is a trial of its entry's study.

The search's directory, results/<sweep>/search/<sampler>-<hash>/, reads like a sweep's directory:

    search.json       the settings of the search and the entries of the sweep that are searched
    optuna.journal    Optuna's storage
    trials/<key>/     the training of a candidate, a folder for each of its seeds, with candidate.json (see rungs.py)

A candidate is RUNNING until training has ended for all its seeds. Then it is COMPLETE, or PRUNED if it was stopped
early. Its user attributes are `settings` (by key, as in a sweep file), `as_written` for the entry's own settings, and
`failure` if training fails in the same way each time. Only the process that holds the directory's lock writes.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from harness.storage.files import DamagedFileError, read_bytes
from harness.sweep.search import Searched, SearchSettings, Space
from harness.sweep.trial import RECIPE_VERSION, digest_content, rows

optuna.logging.set_verbosity(optuna.logging.WARNING)

JOURNAL = "optuna.journal"
_BUDGET = {"trials", "hours"}
_ATTEMPTS = 100
"""An entry's spaces count as exhausted once a sampler has proposed so many rejected settings in a row."""
_GENERATION = 10
"""Candidates in a generation of NSGA-II. The first generation is random, and budgets here are small."""


def search_json(
    settings: SearchSettings, entries: Sequence[Searched], seeds: Sequence[int], fingerprint: str
) -> dict[str, Any]:
    """Return the content of search.json. seeds: of each candidate. fingerprint: of the data."""
    return {
        "settings": settings.model_dump(mode="json"),
        "entries": [digest_content(entry.base) for entry in entries],
        "seeds": list(seeds),
        "fingerprint": fingerprint,
        "recipe_version": RECIPE_VERSION,
    }


def search_directory(sweep_dir: Path, content: dict[str, Any]) -> Path:
    """Return the directory of the search with this search.json; the budget does not matter."""
    settings = {key: value for key, value in content["settings"].items() if key not in _BUDGET}
    digest = hashlib.sha256(json.dumps(content | {"settings": settings}, sort_keys=True).encode()).hexdigest()
    return sweep_dir / "search" / f"{settings['sampler']}-{digest[:8]}"


def load_studies(search_dir: Path) -> list[Study]:
    """Load the studies in the order of the sweep file's entries; an empty list before the search has begun.

    Raises DamagedFileError.
    """
    path = search_dir / JOURNAL
    if not path.exists():
        return []
    read_bytes(path)  # refuses a pipe, at which Optuna would wait
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return [optuna.load_study(study_name=row, storage=storage) for row in optuna.get_all_study_names(storage)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def begin_studies(search_dir: Path, settings: SearchSettings, entries: Sequence[Searched]) -> list[Study]:
    """Load or create the studies, called by their entries' rows, for writing. Raises as `load_studies` does."""
    path = search_dir / JOURNAL
    Path(f"{path}.lock").unlink(missing_ok=True)  # of a process that was killed; Optuna would wait for it
    if path.exists():
        os.truncate(path, read_bytes(path).rfind(b"\n") + 1)  # such a process may leave half a line
    load_studies(search_dir)
    storage = JournalStorage(JournalFileBackend(str(path)))
    directions, asha = [StudyDirection.MINIMIZE] * len(settings.objectives), settings.asha
    pruner = optuna.pruners.SuccessiveHalvingPruner(asha.min_epochs, asha.factor) if asha else None
    studies = [
        optuna.create_study(storage=storage, study_name=row, directions=directions, pruner=pruner, load_if_exists=True)
        for row in rows([entry.base for entry in entries])
    ]
    for study in studies:
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            if "settings" not in trial.user_attrs:  # the process was killed while Optuna proposed it
                study.tell(trial.number, state=TrialState.FAIL)
    return studies


def candidates_of(study: Study) -> list[FrozenTrial]:
    """Return the candidates of an entry. Proposals that were rejected are not among them."""
    return [trial for trial in study.trials if "settings" in trial.user_attrs]


def has_failed(candidate: FrozenTrial) -> bool:
    """Return whether training fails in the same way each time."""
    return "failure" in candidate.user_attrs


def stored_trial(study: Study, number: int) -> optuna.Trial:
    """Return a trial that can be written to, also one of an earlier process, for which Optuna has no public call."""
    return optuna.Trial(study, study.trials[number]._trial_id)


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
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
    raise ValueError(f"unknown sampler {name!r}")


def _seed(*parts: int) -> int:
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8], 16)
