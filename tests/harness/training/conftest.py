"""A network whose training was not interrupted, trained once for all tests that compare with one."""

import functools

import pytest
from one_network import train_and_evaluate

from harness.common import names


@pytest.fixture(scope="session")
def whole_network(tiny_training, tiny_evaluation, tmp_path_factory):
    """A function of a model to the folder of a tiny network, which no test may change, and its epochs' rows."""

    @functools.cache
    def of(model):
        rows, network_dir = [], tmp_path_factory.mktemp(f"whole-{model}")
        train_and_evaluate(tiny_training(model), [tiny_evaluation()], network_dir, rows.append)
        return network_dir, [row for row in rows if names.EPOCH in row]

    return of
