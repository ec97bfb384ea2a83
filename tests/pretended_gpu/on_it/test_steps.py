"""Every network and every method takes captured steps: what a capture forbids, the pretended GPU refuses."""

import pytest
from controls import counted
from steppers import BOUNDING, choices_of, stepper_of, take_steps

pytestmark = pytest.mark.filterwarnings("default")  # as of Triton and Inductor

METHODS = [*BOUNDING, ("plain", {}), ("pgd", {"attack_steps": 2}), ("sabr", {}), ("mtl-ibp", {})]
METHODS += [("taps", {"latent_steps": 2}), ("staps", {"latent_steps": 2})]
FEW_ITERATIONS = {"iterations": 3, "backward_iterations": 2}  # what is checked is the same for each
NETWORKS = {
    "fc": {"hidden": [8]}, "cnn5": {}, "cnn7": {}, "tied9": {}, "resnet9": {}, "resnext": {}, "wideresnet8": {},
    "densenet": {},
    "cerdeq": FEW_ITERATIONS, "deqlate": FEW_ITERATIONS, "deq7": FEW_ITERATIONS,
    "deqscales": FEW_ITERATIONS, "deqdense": FEW_ITERATIONS, "mondeq": FEW_ITERATIONS,
}  # fmt: skip
EVERY = [(network, *method) for network in NETWORKS for method in METHODS]
OFTEN = [case for case in EVERY if case[0] == "cnn5" or (case[0] in ("resnet9", "cerdeq") and case[1:] == METHODS[0])]
COMPILED_OFTEN = [("fc", "ibp", {})]  # few kernels
VARIANTS = {
    "float32, unclipped": {"train": {"precision": "float32", "clip_norm": None}},
    "bf16 in parts": {"train": {"precision": "bf16", "accumulate": 4}},
    "TF32, an average in parts": {"train": {"precision": "tf32", "accumulate": 2, "ema_decay": 0.9}},
    "regularisers": {"train": {"regularisation": 0.5, "l1": 1e-5, "kappa": 0.5}},
}
EQUILIBRIA = {
    "growing iterations, grouped": {"early_iterations": 2, "parametrisation": "orthogonal", "groups": 2},
    "unrolled, nonnegative": {"gradient": "unrolled", "parametrisation": "nonnegative"},
    "warm start": {"parametrisation": "monotone", "warm_start": True},
}
LAUNCHES = 12  # of a captured step: copies of the batch's choices, one graph, the report


def sampled(cases):
    """Every case, those that are not in `cases` marked as slow."""
    return [pytest.param(*case, marks=() if case in cases else pytest.mark.slow) for case in EVERY]


def assert_captured(stepper):
    """The first step captures the graph; the second one replays it, and the host waits for nothing."""
    batch = choices_of(stepper)
    stepper(batch, 1 / 32, 5e-4)
    with counted() as counts:
        stepper(batch, 1 / 32, 5e-4)
    assert counts["synchronisations"] == 0, "a step waits for the device"
    assert counts["launches"] <= LAUNCHES


@pytest.mark.parametrize(("network", "method", "options"), sampled(OFTEN))
def test_a_step_is_captured(tiny_training, network, method, options):
    config = tiny_training(network, method=method, method_options=options, options=NETWORKS[network], width=0.05)
    assert_captured(stepper_of(config, "cuda"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("network", "method"), [("cnn5", "ibp"), pytest.param("cerdeq", "crown-ibp", marks=pytest.mark.slow)]
)
def test_a_step_is_captured_whatever_the_training_settings(tiny_training, network, method, variant):
    config = tiny_training(network, method=method, options=NETWORKS[network], width=0.05, **VARIANTS[variant])
    assert_captured(stepper_of(config, "cuda"))


@pytest.mark.parametrize("variant", EQUILIBRIA)
def test_a_step_is_captured_whatever_the_equilibrium(tiny_training, variant):
    options = FEW_ITERATIONS | EQUILIBRIA[variant]
    assert_captured(stepper_of(tiny_training("cerdeq", options=options, width=0.05), "cuda"))


def test_iterations_that_grow_are_captured_anew(tiny_training):
    options = {"iterations": 6, "backward_iterations": 2, "early_iterations": 2}
    stepper = stepper_of(tiny_training("cerdeq", options=options, width=0.05), "cuda")
    with counted() as counts:
        take_steps(stepper, 5)
    assert len(stepper.graphs) == 1, "older graphs hold memory"
    assert counts["graphs"] > 1


@pytest.mark.parametrize(("network", "method", "options"), sampled(COMPILED_OFTEN))
def test_a_compiled_step_is_captured(tiny_training, network, method, options):
    config = tiny_training(network, method=method, method_options=options, options=NETWORKS[network], width=0.05)
    stepper = stepper_of(config, "cuda", compiled=True)
    assert_captured(stepper)
    assert stepper.compiled
