"""What came of a search: the best candidates, what the search found when, and how its winners are marked."""

from collections.abc import Sequence
from typing import Any

from harness.search.candidates import FAILED, FINISHED, OPEN, STOPPED, WORST, Candidate, Search


def best_of(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The finished candidate with the least objective, or, of two, all that no other beats in both, in order.

    Of those that are alike the first one.
    """
    finished = [candidate for candidate in candidates if candidate.state == FINISHED]
    first: dict[tuple[float, ...], Candidate] = {}
    for candidate in finished:
        if not any(_beats(other.values, candidate.values) for other in finished):
            first.setdefault(tuple(candidate.values), candidate)
    return [first[values] for values in sorted(first)]


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """The share of all pairs of errors, up to 100 % each, that one of these pairs is better than in both; 0 to 1."""
    volume, least = 0.0, WORST
    for one, other in sorted(map(tuple, points)):
        volume += (WORST - one) * max(0.0, least - other)
        least = min(least, other)
    return volume / WORST**2


def mark(search: Search, candidate: Candidate, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """How a candidate was chosen among those of its entry: for its trials' folders, with a `text` in words."""
    settings, states = search.settings, [other.state for other in candidates]
    seeds = f" with {settings.seeds} seeds each" if settings.seeds > 1 else ""
    counts = {"ended early": states.count(STOPPED), "failed": states.count(FAILED) + states.count(OPEN)}
    early = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    early = f" ({early})" if early else ""
    text = (
        f"{settings.sampler}, {len(candidates)} candidates{seeds}{early}, "
        f"judged on {settings.validation_images:,} images held out of training"
    )
    values = dict(zip(settings.objectives, candidate.values, strict=True))
    return {"text": text, "search": search.directory.name, "candidate": candidate.number, "validation": values}


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
