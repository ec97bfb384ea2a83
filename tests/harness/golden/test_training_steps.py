"""Twenty training steps of each method: where they move, so do all numbers, and RECIPE_VERSION must rise."""

import pytest
import torch

from baselines import build
from harness.config.training import RECIPE_VERSION
from harness.data import load
from harness.data.augment import draw
from harness.training.initialise import initialise
from harness.training.schedule import Ramp
from harness.training.step import Stepper

GOLDEN = {  # losses of steps 1, 11 and 20; the same to six digits on AVX2 and AVX-512, one thread and two
    (7, "cnn7", "ibp"): [2.9035480, 69.4536591, 30.5033836],
    (7, "cerdeq", "ibp"): [2.8759439, 15.5218115, 9.9330282],
    (7, "cnn7", "crown-ibp"): [2.7895181, 72.9551620, 31.7373219],
    (7, "cerdeq", "crown-ibp"): [2.8560605, 15.2414980, 9.5887833],
    (7, "cnn7", "sabr"): [2.8708127, 53.8597755, 24.6783867],
    (7, "cerdeq", "sabr"): [2.8707411, 12.7430220, 8.6122761],
    (7, "cnn7", "mtl-ibp"): [2.8414292, 37.7293053, 17.4935246],
    (7, "cerdeq", "mtl-ibp"): [2.8658631, 9.2519999, 6.3867064],
    (7, "cnn7", "pgd"): [2.3590791, 2.5045073, 2.5778103],
    (7, "cnn7", "plain"): [2.3590651, 2.1664655, 2.0639946],
}


def losses(config, steps: int = 20) -> list[float]:
    data = load("digits")
    torch.manual_seed(config.seed)
    model = build(config.model, "digits", config.width)
    initialise(model)
    model.to(memory_format=torch.channels_last).train()
    cpu = torch.device("cpu")
    stepper = Stepper(config, model, data.train.images, data.train.labels)
    draws = draw(len(data.train), padding=1, flip=True, seed=config.seed, epoch=1, device=cpu)
    # Wide enough for an attack to be felt, narrow enough for the bounds of untrained networks.
    ramp = Ramp(1 / 16 if config.method == "pgd" else 1 / 512, 1, 1, steps - 4)
    return [float(stepper(draws.batch(32 * step, 32), ramp(step), 5e-4)[0]) for step in range(steps)]


@pytest.mark.parametrize(("version", "model", "method"), GOLDEN)
def test_training_has_not_changed(version, model, method, tiny_training):
    assert version == RECIPE_VERSION, "record the new losses beside the new version"
    values = losses(tiny_training(model, method=method, width=0.1))
    assert [values[0], values[10], values[19]] == pytest.approx(GOLDEN[version, model, method], rel=2e-3)
