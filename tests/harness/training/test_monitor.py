"""The metrics of bounds and equilibria in an epoch's row."""

import copy

import pytest
import torch

from baselines import build
from cerdeq import margin_spec
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.boxes import clipped_ball
from cerdeq.equilibrium.weights import PARAMETRISATIONS
from harness.common import names
from harness.data import load
from harness.training.initialise import initialise
from harness.training.loop import train
from harness.training.monitor import monitor_bounds, monitor_untrained


def row_of(config, model):
    data = load("digits").train
    return monitor_bounds(config, model, data.images[:100], data.labels[:100])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "perron" else pytest.mark.slow) for name in PARAMETRISATIONS]
)
def test_every_checkpoint_has_its_proof(name, tmp_path, tiny_training):
    options = {"parametrisation": name, "margin": 0.2, "margin_start": 0.9, "gain": 0.7}
    data, rows = load("digits").train, []
    config = tiny_training("cerdeq", options=options)
    train(config, data.images[:320], data.labels[:320], tmp_path, rows.append)
    assert [row[names.EPOCH] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        rate, margin, gain = (row[names.in_training(key)] for key in (names.RHO_BOUND, names.MARGIN, names.GAIN))
        assert 0 < rate <= 1 - margin and 0 < gain < 1
        assert row[names.in_training(names.MISSED_RADIUS)] < 50
    margins = [row[names.in_training(names.MARGIN)] for row in rows]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] == pytest.approx(0.2) and margins[0] > 0.2


@pytest.mark.parametrize("model", ["resnet9", pytest.param("tied9", marks=pytest.mark.slow)])
def test_an_untrained_network_is_monitored_with_the_statistics_of_the_images(tiny_training, model):
    """As the training pass, in float64, whose batch norm takes them; running statistics give other widths."""
    config, data = tiny_training(model), load("digits").train
    images, labels = data.images[:100], data.labels[:100]
    network = build(model, "digits", config.width)
    initialise(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    row = monitor_untrained(config, network, images, labels)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()) and network.training

    x, ctx = images.double() / 255, Context(sound=False)
    ball = clipped_ball(x, 1 / 32)
    with torch.no_grad():
        margins = propagate(
            trace(copy.deepcopy(network).double()), Interval(ball.center, ball.radius, x), ctx, margin_spec(labels, 10)
        )
    expected = {names.BOUND_WIDTH: margins.radius} | {
        names.layer_width(name): box.radius for name, box in ctx.preactivations.items()
    }
    for name, radius in expected.items():
        assert row[names.in_training(name)] == pytest.approx(2 * float(radius.mean()), rel=0.01), name
    by_running = row_of(config, network)[names.in_training(names.BOUND_WIDTH)]
    assert abs(by_running / row[names.in_training(names.BOUND_WIDTH)] - 1) > 0.5


def test_monitoring_leaves_the_network_as_it_was(tiny_training):
    model = build("cerdeq", "digits", 0.1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    row_of(tiny_training("cerdeq"), model)
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
