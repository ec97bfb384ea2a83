"""A search's Optuna studies, one for each entry of the sweep. Each candidate is a trial of its entry's study.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from harness.config.search import Searched, SearchSettings
from harness.config.trial import RECIPE_VERSION, digest_content, rows
from harness.storage.files import DamagedFileError

optuna.logging.set_verbosity(optuna.logging.WARNING)

JOURNAL = "optuna.journal"
_BUDGET = {"trials", "hours"}


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
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return [optuna.load_study(study_name=row, storage=storage) for row in optuna.get_all_study_names(storage)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def begin_studies(search_dir: Path, settings: SearchSettings, entries: Sequence[Searched]) -> list[Study]:
    """Load or create the studies, called by their entries' rows, for writing. Raises as `load_studies` does."""
    path = search_dir / JOURNAL
    _repair_journal(path)
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


def _repair_journal(path: Path) -> None:
    """Remove what a killed process left: a lock, which Optuna would wait for, and a last line without its end."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
