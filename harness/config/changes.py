"""What differs between a trial of a sweep file and those that lie in its directory."""

from collections.abc import Iterable
from typing import Any

from harness.config.trial import Trial, flatten, setting_text


def nearest_changes(trial: Trial, others: Iterable[Trial]) -> list[str] | None:
    """Return in what a trial differs from the nearest of others of its network, method and seed; None without such.

    Each as 'train.learning_rate 0.01, was 0.005' or 'plugin my_package.nets changed'. Profiles are left out where
    something else differs, which is what they change.
    """
    alike = [other for other in others if _kind(other) == _kind(trial)]
    changes = [_changes(_flat(trial), _flat(other)) for other in alike]
    return min(changes, key=len, default=None)


def _kind(trial: Trial) -> tuple[str, str, int]:
    return trial.model, trial.method, trial.seed


def _flat(trial: Trial) -> dict[str, Any]:
    return flatten(trial.model_dump(mode="json", exclude={"source", "named", "model", "method", "seed"}))


def _text(name: str, settings: dict[str, Any]) -> str:
    return setting_text(name, settings[name]) if name in settings else "not set"


def _changes(own: dict[str, Any], other: dict[str, Any]) -> list[str]:
    names = [name for name in own | other if own.get(name) != other.get(name)]
    names = [name for name in names if name != "profile"] or names
    return [
        f"plugin {name.removeprefix('plugins.')} changed"
        if name.startswith("plugins.") and own.get(name) and other.get(name)
        else f"{name} {_text(name, own)}, was {_text(name, other)}"
        for name in names
    ]
