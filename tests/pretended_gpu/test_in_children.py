"""Runs the tests in on_it/ in processes that begin on the pretended GPU, which takes loading libraries first."""

import pytest
from pretended import HERE, problem, run_python

FILES = sorted(path.name for path in (HERE / "on_it").glob("test_*.py"))


pytestmark = pytest.mark.skipif(problem() is not None, reason=str(problem()))


def run_tests(path, marker):
    done = run_python(
        "-m", "pytest", "-q", "-m", f"{marker} and not gpu", "-p", "no:cacheprovider", str(path),
        timeout=7000, PRETEND_TRUE="1",
    )  # fmt: skip
    assert done.returncode in (0, 5), f"{done.stdout}\n{done.stderr}"  # 5: it has none of this marker


@pytest.mark.timeout(900)
def test_fast_tests_on_the_pretended_gpu():
    """In one process: each would import torch first."""
    run_tests(HERE / "on_it", "not slow")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("file", FILES)
def test_slow_tests_on_the_pretended_gpu(file):
    run_tests(HERE / "on_it" / file, "slow")
