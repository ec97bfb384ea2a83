"""A trial that was not interrupted, trained once for all tests that compare with one."""

import functools

import pytest

from harness.common import names
from harness.training import train_and_certify


@pytest.fixture(scope="session")
def whole_trial(tiny_trial, tmp_path_factory):
    """A function of a network to the folder of a tiny trial of it, which no test may change, and its epochs' rows."""

    @functools.cache
    def of(model):
        rows, trial_dir = [], tmp_path_factory.mktemp(f"whole-{model}")
        train_and_certify(tiny_trial(model), directory=trial_dir, report=rows.append)
        return trial_dir, [row for row in rows if names.EPOCH in row]

    return of
