"""Networks and steps on CUDA, where nothing on a CPU can stand for it."""

import pytest
import torch
from one_network import train_and_evaluate
from safetensors.torch import load_file
from steppers import Killed, kill, stepper_of, take_steps, train_network

from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import BOUNDS, Interval, lower_bounds, trace
from harness.common import names
from harness.data import load
from harness.evaluation.network import load_network, prepare_network
from harness.evaluation.verdicts import evaluate_images
from harness.machine.freed_memory import free_memory
from harness.storage import folder

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default"), pytest.mark.timeout(1200)]

CASES = {
    "an average": ("cnn5", {"train": {"ema_decay": 0.9}}),
    "a batch in parts": ("cnn5", {"train": {"accumulate": 4}}),
    "both": ("cerdeq", {"train": {"accumulate": 2, "ema_decay": 0.9}}),
    "several graphs": ("cerdeq", {"options": {"early_iterations": 2}}),
    "two methods": ("cnn5", {"method": "crown-ibp", "method_options": {"final_beta": 0.0}}),
}


@pytest.mark.parametrize("case", CASES)
def test_captured_steps_are_eager_ones(tiny_training, case):
    """Averages, parts of batches, and graphs that take turns, each on the state that the last one left."""
    model, changes = CASES[case]
    changes = {**changes, "train": {"precision": "float32", "eps": "1/20", **changes.get("train", {})}}
    config = tiny_training(model, width=0.1, **changes)
    captured, eager = (stepper_of(config, "cuda") for _ in range(2))
    eager.captured = False
    reports = [take_steps(stepper, 6) for stepper in (captured, eager)]
    torch.testing.assert_close(*reports, rtol=2e-2, atol=2e-2, equal_nan=True)
    assert captured.captured
    for network, other in zip(captured.networks, eager.networks, strict=True):
        expected = other.state_dict()
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=5e-2, atol=5e-3, msg=name)


@pytest.mark.parametrize("model", ["cnn5", "cerdeq"])
def test_a_training_that_was_killed_ends_with_the_very_same_weights(tiny_training, tmp_path, model):
    config = tiny_training(model, width=0.1, train={"ema_decay": 0.9, "accumulate": 2})
    train_network(config, tmp_path / "unbroken")
    with pytest.raises(Killed):
        train_network(config, tmp_path / "broken", kill, save_seconds=0)
    train_network(config, tmp_path / "broken")
    unbroken, broken = (load_file(tmp_path / name / folder.WEIGHTS) for name in ("unbroken", "broken"))
    assert all(torch.equal(unbroken[name], broken[name]) for name in unbroken)


@pytest.mark.parametrize("precision", ["tf32", "float32", "bf16"])
@pytest.mark.parametrize("model", ["cnn5", "cerdeq"])
def test_a_network_is_evaluated_as_on_a_cpu(tiny_training, tiny_evaluation, tmp_path, model, precision):
    """In TF32 the solve of a monitored equilibrium would miss its tolerance, were it on outside the steps."""
    config = tiny_training(model, width=0.1, train={"precision": precision, "recompute_statistics": True})
    evaluation = tiny_evaluation()
    train_and_evaluate(config, [evaluation], tmp_path)
    result = folder.read_result(folder.evaluation_dir(tmp_path, evaluation))
    assert result.warnings == [] and not result.environment["device"].startswith("CPU")
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
    images = load("digits").test_images(60)
    network = prepare_network(load_network(config, tmp_path / folder.WEIGHTS), evaluation.stages, 10)
    verdicts = evaluate_images(network, images.images, images.labels, 0, evaluation).verdicts
    certified = 100 * float((verdicts[names.VERDICT] != names.CERTIFIED).mean())
    assert abs(certified - result.metrics[names.CERTIFIED_ERROR]) < 4, "an attack's float32 search may go elsewhere"


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("model", ["cnn7", "resnet9", "cerdeq"])
def test_sound_bounds_are_those_of_a_cpu(tiny_training, model, method):
    """Each bound holds, so that neither may exceed the other by more than rounding and the searches' guesses do."""
    network = stepper_of(tiny_training(model, width=0.1)).model.double().eval()
    images = load("digits").test.images[:6].double() / 255
    spec = margin_spec(load("digits").test.labels[:6], 10).double()
    bounds = []
    for device in ("cpu", "cuda"):
        program = trace(network.to(device), linear=True)
        ball = LinfBall(images.to(device), 0.01)
        region = Interval(ball.center, ball.radius)
        bounds.append(lower_bounds(program, region, spec.to(device), method).cpu())
    scale = bounds[0].abs().mean().item()
    searched = method == "alpha-crown" or model == "cerdeq"
    torch.testing.assert_close(*bounds, rtol=0, atol=scale * (1e-2 if searched else 1e-9))


def test_a_training_that_does_not_fit_fails_and_the_process_goes_on(tiny_training, tmp_path):
    """A share of the memory that nothing fits: both attempts run out of it."""
    free_memory()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            train_network(tiny_training(width=0.1), tmp_path)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert train_network(tiny_training(width=0.1), tmp_path).warnings == []
