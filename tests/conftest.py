"""Configure all tests: one process a core with one thread each, fixed seeds, tiny trainings and evaluations."""

import gc
import os

import pytest
import torch
from hypothesis import settings

from cerdeq.equilibrium import certificate
from harness.common.radius import Radius
from harness.config.training import Training
from harness.settings import Evaluation, Recipe

settings.register_profile("untimed", deadline=None)  # seconds are the machine's
settings.load_profile("untimed")
torch.set_num_threads(1)
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # other processes would import torch first
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"  # else a program is compiled for each extension of the processor

MOST_PROCESSES = 8  # each imports torch first, and the longest group of tests takes a sixth of all seconds
SLOWEST_FIRST = ["tests/harness/work/", "tests/pretended_gpu/", "tests/harness/", "tests/"]
LAUNCH = SLOWEST_FIRST[0]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Spread the whole suite over the cores; tests selected by name or marker, or run in a debugger, are not spread."""
    is_whole_suite = config.args_source is config.ArgsSource.TESTPATHS and "not gpu" in config.option.markexpr
    is_free = getattr(config.option, "numprocesses", 0) is None and not config.option.usepdb  # 0: without xdist
    cores = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    if is_whole_suite and is_free and cores > 1 and not hasattr(config, "workerinput"):
        config.option.numprocesses, config.option.loadscopereorder = cores, False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give a process one file at a time, and all tests that share Ray and MLflow stores to one process.

    Tests for a GPU lie in few files: those are spread one by one, by xdist's own scheduler.
    """
    if config.option.markexpr == "gpu":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return LAUNCH if nodeid.startswith(LAUNCH) else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_collection_modifyitems(config, items):
    """Run the slowest tests first, so that all processes end together: Ray, pretended GPU, harness, mathematics."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: next(i for i, path in enumerate(SLOWEST_FIRST) if item.nodeid.startswith(path)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # whatever the test before this one left: several threads wait for each other


@pytest.fixture(scope="module", autouse=True)
def _freeze_imported_objects():
    """Exclude imported modules from garbage collection, which each trial runs."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_perron_vectors():
    """Compute each Perron vector once: it takes half of the time of small equilibria. Proofs with it are not cached."""
    compute, cache = certificate._perron_vector, {}

    def cached(matrix, floor):
        key = matrix.shape, matrix.cpu().numpy().tobytes(), floor
        if key not in cache:
            cache[key] = compute(matrix, floor).cpu().numpy()
        return torch.tensor(cache[key], device=matrix.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "_perron_vector", cached)
        yield


@pytest.fixture(scope="session")
def tiny_training():
    """Return a function that makes a training of about a second on the digits, with changed fields."""

    def make(model: str = "cnn5", **changes) -> Training:
        compiled = "always" if torch.cuda.is_available() else "never"
        train = {"epochs": 3, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 2, "decay_epochs": ()}
        train |= {"compile": compiled, "eps": Radius("1/32")} | changes.pop("train", {})
        config = Training(
            dataset="digits", model=model, method="ibp", width=0.05, train_images=320, train=Recipe(**train), seed=0
        )
        return config.replace(**changes)

    return make


@pytest.fixture(scope="session")
def tiny_evaluation():
    """Return a function that makes an evaluation of 60 of the digits, with changed fields."""

    def make(**changes) -> Evaluation:
        settings = {"test_images": 60, "attack_steps": 2, "attack_restarts": 1, "batch_size": 40}
        return Evaluation(**{"eps": Radius("1/32"), "stages": ("ibp", "crown-ibp"), **settings, **changes})

    return make
