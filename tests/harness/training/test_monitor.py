"""What an epoch's row says of bounds and equilibria."""

import pytest
import torch

from baselines import build
from harness import folder, names
from harness.data import load
from harness.training import run_trial
from harness.training.monitor import monitored, parametrised

EQUILIBRIUM = [names.GAIN, names.MARGIN, names.RHO_BOUND, names.MISSED_RADIUS]


def row_of(config, model):
    data = load("digits").train
    return monitored(config, model, data.images[:100], data.labels[:100])


@pytest.mark.parametrize("name", ["perron", "nonnegative", "monotone", "orthogonal"])
def test_every_checkpoint_has_its_proof(name, tmp_path, tiny_trial):
    options = {"parametrisation": name, "margin": 0.2, "margin_start": 0.9, "gain": 0.7}
    run_trial(tiny_trial("cerdeq", options=options), directory=tmp_path)
    rows = folder.read_epochs(tmp_path)
    for row in rows:
        rate, margin, gain = (row[names.in_training(key)] for key in (names.RHO_BOUND, names.MARGIN, names.GAIN))
        assert 0 < rate <= 1 - margin and 0 < gain < 1
        assert row[names.in_training(names.MISSED_RADIUS)] < 50
    margins = [row[names.in_training(names.MARGIN)] for row in rows]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] == pytest.approx(0.2) and margins[0] > 0.2


def test_fewer_iterations_miss_more_of_the_radius(tiny_trial):
    missed = []
    for iterations in (1, 3, 30):
        torch.manual_seed(0)
        options = {"parametrisation": "nonnegative", "margin": 0.1, "gain": None, "iterations": iterations}
        config = tiny_trial("cerdeq", options=options)
        model = build("cerdeq", "digits", config.width, **options)
        with torch.no_grad():
            model.equilibrium.recurrence.parametrizations.weight.original.mul_(10)
        for _ in range(30):
            model.equilibrium.recurrence.weight  # noqa: B018  reading it in training follows the Perron vectors
        missed.append(row_of(config, model)[names.in_training(names.MISSED_RADIUS)])
    assert missed[0] > missed[1] > missed[2] and missed[0] > 20 and abs(missed[2]) < 5


def test_explicit_networks_have_no_such_columns(tiny_trial):
    model = build("cnn5", "digits", 0.1)
    row = row_of(tiny_trial("cnn5"), model)
    assert not set(map(names.in_training, EQUILIBRIUM)) & row.keys() and parametrised(model) == {}
    assert {"train/bound_width", "train/bound_width_relative", "train/bound_width/relu1"} <= row.keys()


def test_watching_leaves_the_network_as_it_was(tiny_trial):
    model = build("cerdeq", "digits", 0.1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    row_of(tiny_trial("cerdeq"), model)
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
