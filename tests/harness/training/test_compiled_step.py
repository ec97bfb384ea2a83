"""The compiled, and on CUDA captured, training step against the eager one."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from steppers import BOUNDING, choices_of, stepper_of, take_step, take_steps

from cerdeq.equilibrium.weights import PARAMETRISATIONS
from harness.training import objective

EXPRESSIVE = ("sabr", "mtl-ibp", "cc-ibp", "exp-ibp", "cc-dist", "ad-cert")
EVERY = [(model, *method) for model in ("cnn5", "resnet9", "cerdeq") for method in BOUNDING]
EVERY += [("cerdeq", method, {}) for method in (*EXPRESSIVE, "pgd", "plain")]
EVERY += [("densenet", "plain", {})]  # concatenates lists
SAMPLE = [("fcdeq", "mtl-ibp", {}), ("fcdeq", "cc-dist", {})]  # of a warm start; compiling takes seconds
TRACED = [
    pytest.param(*case, marks=() if case in SAMPLE else pytest.mark.slow)
    for case in SAMPLE + EVERY
    if case[0] != "cnn5"
]
ONCE = {"iterations": 2, "backward_iterations": 1}  # compiling takes as long as there are iterations, and layers
FEW = {"cerdeq": ONCE, "fc": {"hidden": [8, 8]}, "fcdeq": {"hidden": [8], **ONCE}}
WARM = {"parametrisation": "monotone", "warm_start": True}


LATENT = [("taps", {"latent_steps": 1}), ("staps", {"latent_steps": 1, "attack_steps": 1})]
ATTACKED = [(name, {"attack_steps": 1}) for name in EXPRESSIVE]
EQUILIBRIA = [{"parametrisation": name} for name in PARAMETRISATIONS]
EQUILIBRIA += [{"gradient": "unrolled"}, {"warm_start": True}]


def cases_of(explicit, equilibrium):
    """Return each method on an explicit network, and each kind of equilibrium."""
    cases = [(explicit, method, {}, options) for method, options in [*BOUNDING, *ATTACKED, *LATENT]]
    return [*cases, *((equilibrium, "ibp", own, {}) for own in EQUILIBRIA), (equilibrium, "crown-ibp", {}, {})]


LARGE = [pytest.param(*case, marks=pytest.mark.slow) for case in cases_of("cnn5", "cerdeq")]
GIVES_NOTHING_UP = [*cases_of("fc", "fcdeq"), ("conv", "crown-ibp", {}, {}), *LARGE]


@pytest.mark.parametrize(("model", "method", "own", "options"), GIVES_NOTHING_UP)
def test_no_step_falls_back_to_eager_code(tiny_training, monkeypatch, model, method, own, options):
    """Each loss and each attack is one graph for Dynamo, on this Python. A type such as `list[Tensor]()` was not."""
    torch.compiler.reset()
    traced = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    monkeypatch.setattr(objective, "compiled_loss", traced)
    own = FEW.get(model, {}) | own
    stepper = stepper_of(tiny_training(model, method=method, method_options=options, options=own), compiled=True)
    stepper(choices_of(stepper), (1.0 if (method, options) in LATENT else 0.9) / 32, 5e-4)  # 1: eps has grown


def on_a_gpu(test):
    """What compiles there takes minutes, and its libraries warn of things that no test is about."""
    for mark in (pytest.mark.gpu, pytest.mark.timeout(1200), pytest.mark.filterwarnings("default")):
        test = mark(test)
    return test


def assert_compiled_steps_are_eager_ones(config, count: int, backend: str, first: int = 0):
    """The loss is one graph: fullgraph refuses anything that is not. first: step; eps grows until step 3."""
    torch.compiler.reset()
    eager, compiled = stepper_of(config), stepper_of(config)
    compiled.losses = {
        name: torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)
        for name, loss in compiled.losses.items()
    }
    reports = []
    for stepper in (eager, compiled):
        torch.manual_seed(0)
        reports.append(torch.stack([take_step(stepper, index) for index in range(first, first + count)]))
    assert reports[0][:, 0].isfinite().all(), "losses; what a method does not bound is NaN"
    torch.testing.assert_close(*reports, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize(("model", "method", "options"), TRACED)
def test_the_compiled_loss_takes_the_same_steps(tiny_training, model, method, options):
    """An equilibrium's crown-ibp has every rule, so that only its gradients are compiled, too."""
    backend = "aot_eager" if (model, method) == ("cerdeq", "crown-ibp") else "eager"
    own = FEW.get(model, {}) | (WARM if (model, method, options) in SAMPLE else {})
    config = tiny_training(model, method=method, method_options=options, options=own)
    assert_compiled_steps_are_eager_ones(config, 4, backend)


@pytest.mark.parametrize("method", ["taps", pytest.param("staps", marks=pytest.mark.slow)])
def test_the_compiled_loss_on_latent_points_takes_the_same_steps(tiny_training, method):
    """Once eps has grown: before that, IBP or SABR trains."""
    assert_compiled_steps_are_eager_ones(
        tiny_training("fc", method=method, options=FEW["fc"], width=1.0), 2, "eager", 4
    )


@pytest.mark.parametrize(
    ("model", "method", "backend"),
    [("fc", "ibp", "aot_eager"), pytest.param("cerdeq", "crown-ibp", "eager", marks=pytest.mark.slow)],
)
def test_the_compiled_loss_takes_the_same_step_in_bf16(tiny_training, model, method, backend):
    config = tiny_training(model, method=method, train={"precision": "bf16"}, options=FEW.get(model, {}))
    assert_compiled_steps_are_eager_ones(config, 2, backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"parametrisation": "nonnegative"}, WARM, {"parametrisation": "orthogonal", "groups": 2, "gradient": "unrolled"}],
)
@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_the_compiled_loss_of_every_kind_of_equilibrium_is_the_eager_one(method, options, tiny_training):
    config = tiny_training("cerdeq", method=method, width=0.05, options=FEW["cerdeq"] | options)
    assert_compiled_steps_are_eager_ones(config, 1, "eager")


@on_a_gpu
@pytest.mark.parametrize(("model", "method", "options"), EVERY)
def test_the_captured_step_is_the_eager_one(tiny_training, model, method, options):
    """On CUDA: compiled and captured against eager, state included; warming up must leave no trace.

    Each eager step begins with the captured one's weights: Adam's first steps enlarge differences of rounding.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    config = tiny_training(model, method=method, method_options=options, width=0.1)
    captured, eager = stepper_of(config, "cuda", compiled=True), stepper_of(config, "cuda")
    eager.captured = False
    states, reports, eager_reports = [copy.deepcopy(captured.model.state_dict())], [], []
    torch.manual_seed(0)
    for index in range(6):
        reports.append(take_step(captured, index))
        states.append(copy.deepcopy(captured.model.state_dict()))
    torch.manual_seed(0)
    for index, (before, after) in enumerate(pairwise(states)):
        eager.model.load_state_dict(before)
        eager_reports.append(take_step(eager, index))
        for name, expected in eager.model.state_dict().items():
            torch.testing.assert_close(after[name], expected, rtol=5e-2, atol=5e-3, msg=f"step {index}: {name}")
    torch.testing.assert_close(torch.stack(reports), torch.stack(eager_reports), rtol=2e-2, atol=2e-2, equal_nan=True)


@on_a_gpu
@pytest.mark.parametrize("model", ["cnn7", "resnet9", "cerdeq"])
def test_the_captured_step_in_bf16_is_close_to_the_eager_one(tiny_training, model):
    """On CUDA the compiler rounds less often than eager code does."""
    config = tiny_training(model, method="crown-ibp", train={"precision": "bf16"}, width=0.1)
    captured, eager = stepper_of(config, "cuda", compiled=True), stepper_of(config, "cuda")
    eager.captured = False
    first, second = (take_steps(stepper, 3)[:, 0] for stepper in (captured, eager))
    torch.testing.assert_close(first, second, rtol=5e-2, atol=5e-2)
