"""Whole networks on the pretended GPU, with values that the CPU computes, end as networks on the CPU do."""

import sys

import pytest
import torch
from one_network import train_and_evaluate
from values import uncaptured_values

from harness.common import names
from harness.storage import folder, training_progress

pytestmark = pytest.mark.filterwarnings("default")
NOT_COMPILED = {"compile": "never"}  # compiled kernels and graphs have no values here


def run(config, evaluation, network_dir):
    train_and_evaluate(config, [evaluation], network_dir)
    return folder.read_result(folder.evaluation_dir(network_dir, evaluation))


@pytest.mark.parametrize(
    ("network", "options"),
    [("conv", {}), pytest.param("cerdeq", {"iterations": 5, "backward_iterations": 5}, marks=pytest.mark.slow)],
)
def test_a_network_ends_as_on_a_cpu(tiny_training, tiny_evaluation, tmp_path, monkeypatch, network, options):
    settings = {**NOT_COMPILED, "precision": "float32", "epochs": 2, "ramp_epochs": 1}
    config = tiny_training(network, width=0.05, train_images=128, options=options, train=settings)
    with uncaptured_values():
        result = run(config, tiny_evaluation(), tmp_path / "gpu")
    for module in ("training.train", "evaluation.ranges"):
        monkeypatch.setattr(sys.modules[f"harness.{module}"], "best_device", lambda: torch.device("cpu"))
    expected = run(config, tiny_evaluation(), tmp_path / "cpu")
    assert result.environment["device"] == "NVIDIA H200 (pretended)" != expected.environment["device"]
    assert result.warnings == expected.warnings
    for name in (names.CERTIFIED_ERROR, names.STANDARD_ERROR, names.ATTACK_ERROR):
        assert abs(result.metrics[name] - expected.metrics[name]) < 4, name
    losses = [
        [row.get(names.TRAIN_LOSS) for row in training_progress.read_epochs(tmp_path / device)]
        for device in ("gpu", "cpu")
    ]
    assert losses[0][1:] == pytest.approx(losses[1][1:], rel=1e-3)
