"""A search's directory, results/<sweep>/search/<sampler>-<hash>/, the only truth about it; it reads like a sweep's.

    search.json          how is searched, and the entries of the sweep that are
    trials/<key>/        a candidate's trial, one for each of its seeds: an ordinary folder, and in it
        candidate.json     which candidate it is, its settings, and how it was compared with others on its way

A sampler's state is made from these folders whenever it is asked, so that a kill changes nothing.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.config.search import Searched, SearchSettings, Space
from harness.config.trial import RECIPE_VERSION, TrialConfig, digest_content, from_dict, rows
from harness.search.rungs import CANDIDATE, SEARCH, read_record
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, parsed, write_json

FINISHED, STOPPED, FAILED, OPEN = "finished", "stopped", "failed", "open"
WORST = 100.0
"""Every error of a candidate that fails so always, such as one that diverges."""
_BUDGET = {"trials", "hours"}


@dataclass(frozen=True)
class Entry:
    """An entry that is searched.

    written: its trial as it is written. settings: what that has of those that are searched; None where one of them is
    outside its space. spaces: by key.
    """

    written: TrialConfig
    settings: dict[str, Any] | None
    spaces: dict[str, Space]


@dataclass(frozen=True)
class Search:
    """What search.json holds, and where."""

    directory: Path
    settings: SearchSettings
    entries: list[Entry]

    @property
    def rows(self) -> list[str]:
        """What its entries are called."""
        return rows([entry.written for entry in self.entries])


@dataclass(frozen=True)
class Candidate:
    """Settings that were proposed for an entry, and what came of them.

    entry, number: of which entry it is which candidate, from 0.
    settings: by key. attrs: what the sampler keeps of it.
    places: its trials' folders, one a seed.
    state: finished, stopped by comparison, failed as it would again, or open.
    values: of each objective, where it is finished or failed.
    rungs: after epochs, what its certified error was by IBP when it was compared.
    """

    entry: int
    number: int
    settings: dict[str, Any]
    attrs: dict[str, Any]
    places: list[Path]
    state: str = OPEN
    values: list[float] = field(default_factory=list)
    rungs: dict[int, float] = field(default_factory=dict)


def search_of(
    sweep_directory: Path,
    settings: SearchSettings,
    searched: Sequence[Searched],
    seeds: Sequence[int],
    fingerprint: str,
) -> tuple[Search, dict[str, Any]]:
    """The search with these settings, and its search.json; one with another budget alone is the same.

    seeds: what candidates are trained with.
    """
    entries = [Entry(entry.base, entry.written, entry.spaces) for entry in searched]
    content = {
        "settings": settings.model_dump(mode="json"),
        "entries": [
            {"config": digest_content(entry.written), "settings": entry.settings, "spaces": _as_json(entry.spaces)}
            for entry in entries
        ],
        "seeds": list(seeds),
        "fingerprint": fingerprint,
        "recipe_version": RECIPE_VERSION,
    }
    identity = {**content, "settings": settings.model_dump(mode="json", exclude=_BUDGET)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    directory = sweep_directory / "search" / f"{settings.sampler}-{digest}"
    return Search(directory, settings, entries), content


def read_search(directory: Path) -> Search:
    """Read search.json. Raises DamagedFileError."""

    def parse(content: dict[str, Any]) -> Search:
        settings = SearchSettings.model_validate_json(json.dumps(content["settings"]))
        entries = [
            Entry(
                from_dict(entry["config"]),
                entry["settings"],
                {key: Space.model_validate_json(json.dumps(space)) for key, space in entry["spaces"].items()},
            )
            for entry in content["entries"]
        ]
        return Search(directory, settings, entries)

    return parsed(directory / SEARCH, parse)


def claim(search: Search, candidate: Candidate, trials: Sequence[folder.Trial]) -> Candidate:
    """Make the folders of a candidate's trials, one a seed; those that are there stay as they are."""
    places = [folder.place(search.directory, trial.key) for trial in trials]
    told = {name: getattr(candidate, name) for name in ("entry", "number", "settings", "attrs")}
    for place, trial in zip(places, trials, strict=True):
        if not (place / folder.TRIAL).exists():
            write_json(place / CANDIDATE, told | {"rungs": {}, "stopped": False})
            folder.claim(place, trial)
    return Candidate(**told, places=places)


def candidates_of(search: Search) -> list[Candidate]:
    """All candidates of a search, by entry and number.

    Raises DamagedFileError, also where folders cannot be of one search: of entries that it does not have, or more of a
    candidate, or with other settings, than it has seeds.
    """
    records: dict[tuple[int, int], list[tuple[Path, dict[str, Any]]]] = {}
    for place in folder.trial_folders(search.directory):
        record = read_record(place)
        found = records.setdefault((record["entry"], record["number"]), [])
        found.append((place, record))
        fits = 0 <= record["entry"] < len(search.entries) and record["number"] >= 0
        alike = all(other["settings"] == record["settings"] for _, other in found)
        if not (fits and alike and len(found) <= search.settings.seeds):
            told = f"candidate {record['number']} of entry {record['entry']}"
            raise DamagedFileError(f"{place / CANDIDATE} is of no candidate here, or another has its number: {told}")
    return [_candidate(search.settings, found) for _, found in sorted(records.items(), key=lambda item: item[0])]


def hours(candidates: Sequence[Candidate]) -> float:
    """What training and judging of candidates has taken so far."""
    seconds = 0.0
    for place in (place for candidate in candidates for place in candidate.places):
        seconds += sum(row.get(names.TRAIN_EPOCH_SECONDS, 0.0) for row in folder.read_epochs(place))
        result = folder.read_result(place)
        seconds += (result.metrics.get(names.EVALUATION_SECONDS) or 0.0) if result else 0.0
    return seconds / 3600


def _candidate(settings: SearchSettings, found: list[tuple[Path, dict[str, Any]]]) -> Candidate:
    record = found[0][1]
    told = {name: record[name] for name in ("entry", "number", "settings", "attrs")}
    rungs = {int(epochs): value for epochs, value in record["rungs"].items()}
    known = Candidate(**told, places=[place for place, _ in found], rungs=rungs)
    if record["stopped"]:
        return Candidate(**vars(known) | {"state": STOPPED})
    each = [_values(place, settings.objectives) for place in known.places]
    if len(each) < settings.seeds or None in each:
        return known
    means = [sum(values) / len(each) for values in zip(*(values for values in each if values), strict=True)]
    failed = any(folder.read_result(place) is None for place in known.places)
    return Candidate(**vars(known) | {"state": FAILED if failed else FINISHED, "values": means})


def _values(place: Path, objectives: Sequence[str]) -> list[float] | None:
    """A trial's objectives; the worst ones where it fails always, None where they are not known yet."""
    if (result := folder.read_result(place)) is not None:
        values = [result.metrics.get(name) for name in objectives]
        return [WORST if value is None else value for value in values]
    failure = folder.read_failure(place)
    return [WORST] * len(objectives) if failure and failure["repeats"] else None


def _as_json(spaces: dict[str, Space]) -> dict[str, Any]:
    return {key: space.model_dump(mode="json", exclude_none=True) for key, space in spaces.items()}
