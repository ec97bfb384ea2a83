"""A small sweep file that tests change, and what is read from it."""

import copy

import yaml

from harness.config.sweep_file import load_sweep

BASE = {
    "name": "study",
    "dataset": "digits",
    "eps": "1/16",
    "seeds": [0, 1],
    "train": {"epochs": 4, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 2, "decay_epochs": [3]},
    "trials": [{"model": "cnn5", "method": "ibp"}, {"model": "cerdeq", "method": "ibp"}],
}


def changed(*changes, remove=()):
    """BASE with (dotted key, value) pairs set and keys removed."""
    content = copy.deepcopy(BASE)
    for key, value in changes:
        *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        place = content
        for part in path:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        place[last] = value
    for key in remove:
        del content[key]
    return content


def write(directory, content, name="study.yaml"):
    path = directory / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def trials_of(tmp_path, content, profile="full", has_gpu=True):
    return load_sweep(write(tmp_path, content), profile, has_gpu).trials
