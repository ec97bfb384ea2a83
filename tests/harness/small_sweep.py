"""A small sweep file that tests change, and what is read from it."""

import copy

import pytest
import yaml

from harness.common.errors import InputError
from harness.config.expansion import expand_file
from harness.config.file import read_file

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
        section = content
        for part in path:
            section = section[part] if isinstance(section, list) else section.setdefault(part, {})
        section[last] = value
    for key in remove:
        del content[key]
    return content


def write(directory, content, name="study.yaml"):
    path = directory / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def load_sweep(path, profile, has_gpu, assignments=()):
    """The study of a sweep file on registered data."""
    return expand_file(read_file(path, profile, lambda: has_gpu, assignments))


def trainings_of(tmp_path, content, profile="full", has_gpu=True):
    return load_sweep(write(tmp_path, content), profile, has_gpu).trainings


def refusal(directory, content, profile="full", assignments=()):
    """The message with which a sweep file is refused."""
    with pytest.raises(InputError) as error:
        load_sweep(write(directory, content), profile, True, assignments)
    return str(error.value)


def entry(method="ibp", model="cnn5", **keys):
    """An entry of `trials`."""
    return {"model": model, "method": method, **keys}
