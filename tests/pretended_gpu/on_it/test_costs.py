"""A step's kernels do not become many more unnoticed: docs/gpu-cost.md says what they cost."""

from argparse import Namespace

import pytest
import torch
from count_costs import captured_kernels
from steppers import choices_of, stepper_of

from harness.bench import steps

pytestmark = pytest.mark.filterwarnings("default")
HOST = 12  # launches of a captured step: copies of the batch's choices, one graph, the report
MOST = {("cnn7", "ibp"): 1850, ("cnn7", "crown-ibp"): 3300, ("cerdeq", "ibp"): 1950}  # a tenth above what was counted
MOST_AN_ITERATION = {"iterations": 14, "backward_iterations": 12}


def counts_of(tiny_training, network, method="ibp", compiled=False, **options):
    stepper = stepper_of(tiny_training(network, method=method, width=0.05, options=options), "cuda", compiled=compiled)
    return captured_kernels(stepper, choices_of(stepper))


@pytest.mark.slow
@pytest.mark.parametrize(("network", "method"), MOST)
def test_a_captured_step_has_few_kernels(tiny_training, network, method):
    kernels, launches, waits = counts_of(tiny_training, network, method)
    assert waits == 0
    assert launches <= HOST
    assert kernels <= MOST[network, method]


@pytest.mark.slow
@pytest.mark.parametrize("counts", MOST_AN_ITERATION)
def test_an_iteration_of_an_equilibrium_has_few_kernels(tiny_training, counts):
    few, many = ({"iterations": 4, "backward_iterations": 4} | {counts: count} for count in (4, 14))
    kernels = [counts_of(tiny_training, "cerdeq", **options)[0] for options in (few, many)]
    assert 0 < kernels[1] - kernels[0] <= 10 * MOST_AN_ITERATION[counts]


def test_the_benchmark_takes_steps_in_the_recipe_s_tf32(monkeypatch):
    def tf32_is_on():
        return torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32

    states = []
    monkeypatch.setattr(steps.TimedNetworks, "step", lambda *_: lambda: states.append(tf32_is_on()))
    monkeypatch.setattr(steps, "shares_of_time", lambda step, device: {})  # the profiler needs a real card
    options = Namespace(models=["cnn5"], kinds=[steps.PLAIN], rounds=1, dataset="digits", width=0.05, batch_size=8)
    steps.measure_steps(options, torch.device("cuda"))
    assert states and all(states) and not tf32_is_on()
