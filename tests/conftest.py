"""Shared by all tests: a process a core with a thread each, fixed seeds, the small data set, tiny trials."""

import dataclasses
import gc
import os

import pytest
import torch

from cerdeq.equilibrium import certificate
from harness.config.settings import EvaluationSettings, TrainSettings
from harness.config.trial import TrialConfig

torch.set_num_threads(1)

MOST_PROCESSES = 8  # each imports torch first, and the longest group of tests takes a sixth of the whole
HARNESS, LAUNCH = "tests/harness/", "tests/harness/launch/"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """The suite as a whole is spread over the cores; what was asked for by name, marker or debugger is not."""
    whole = config.args_source is config.ArgsSource.TESTPATHS and "not gpu" in config.option.markexpr
    free = getattr(config.option, "numprocesses", 0) is None and not config.option.usepdb  # 0: without xdist
    cores = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    if whole and free and cores > 1 and not hasattr(config, "workerinput"):
        config.option.numprocesses, config.option.loadscopereorder = cores, False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process does a file in one go, or all of what shares Ray and MLflow stores."""
    from xdist.scheduler import LoadScopeScheduling

    class Rooms(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return LAUNCH if nodeid.startswith(LAUNCH) else nodeid.partition("::")[0]

    return Rooms(config, log)


def pytest_collection_modifyitems(config, items):
    """What takes longest first, so that all processes end together: Ray, then training, then mathematics."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (not item.nodeid.startswith(LAUNCH), not item.nodeid.startswith(HARNESS)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _what_is_imported_is_no_garbage():
    """Trials collect theirs, and would look through all modules and tests each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _perron_vectors_are_found_once():
    """The search for one takes half of the time of small equilibria; what is proved with it is proved each time."""
    search, found = certificate._perron_vector, {}

    def remembered(matrix, floor):
        key = matrix.shape, matrix.cpu().numpy().tobytes(), floor
        if key not in found:
            found[key] = search(matrix, floor).cpu().numpy()
        return torch.tensor(found[key], device=matrix.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "_perron_vector", remembered)
        yield


@pytest.fixture(scope="session")
def tiny_trial():
    """A function of changed fields to a trial of a second on the digits."""

    def make(model: str = "cnn5", **changes) -> TrialConfig:
        train = {"epochs": 3, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 2, "decay_epochs": ()}
        train |= changes.pop("train", {})
        config = TrialConfig(
            sweep="tiny",
            profile="full",
            dataset="digits",
            eps="1/32",
            seed=0,
            model=model,
            method="ibp",
            width=0.1,
            train_images=320,
            train=TrainSettings(**train),
            evaluation=EvaluationSettings(
                stages=("ibp", "crown-ibp"), test_images=60, attack_steps=2, attack_restarts=1, batch_size=40
            ),
        )
        return dataclasses.replace(config, **changes)

    return make
