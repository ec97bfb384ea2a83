"""Options of the recipe that every training method shares."""

import json

import pytest
import torch
from steppers import stepper_of
from torch import nn

from baselines import build
from harness.data import load
from harness.storage.folder import CHECKPOINT, EPOCHS
from harness.training import run_trial
from harness.training.augment import augment, draw
from harness.training.batch_norm import recompute_statistics
from harness.training.loop import train

CPU = torch.device("cpu")
CHOICES = draw(320, 0, False, 0, 1, CPU).batch(0, 64)


def loss_of(config, eps: float = 0.01) -> float:
    stepper = stepper_of(config)
    x, labels = stepper.images[:32].float() / 255, stepper.labels[:32]
    torch.manual_seed(1)
    adversary = stepper.attacks[config.method](x, labels, torch.tensor(eps))
    return stepper.losses[config.method](x, labels, torch.tensor(eps), adversary)[0].item()


@pytest.mark.parametrize("method", ["ibp", "mtl-ibp", "sabr"])
def test_kappa_mixes_the_clean_cross_entropy_in(tiny_trial, method):
    robust, natural, mixed = (
        loss_of(tiny_trial(method=method, train={"kappa": kappa, "regularisation": 0.0})) for kappa in (0.0, 1.0, 0.2)
    )
    clean = loss_of(tiny_trial(method="plain", train={"regularisation": 0.0}))
    assert natural == pytest.approx(clean, rel=1e-5)
    assert mixed == pytest.approx(0.8 * robust + 0.2 * natural, rel=1e-5)


def test_l1_is_the_sum_of_absolute_weights(tiny_trial):
    without, with_l1 = (loss_of(tiny_trial(train={"l1": weight})) for weight in (0.0, 1e-3))
    model = stepper_of(tiny_trial()).model
    weights = sum(m.weight.abs().sum().item() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert with_l1 - without == pytest.approx(1e-3 * weights, rel=1e-3)


def test_gradients_accumulate_over_parts_with_batch_norm_over_each(tiny_trial):
    train = {"accumulate": 2, "clip_norm": None}
    whole = stepper_of(tiny_trial(train=train))
    report = whole(CHOICES, 0.01, 0.0)
    parts = stepper_of(tiny_trial(train={"clip_norm": None}))
    gradients, losses, counts = [], [], []
    for part in (slice(0, 32), slice(32, 64)):
        choices = tuple(choice[part] for choice in CHOICES)
        single = parts(choices, 0.01, 0.0)
        gradients.append([parameter.grad.clone() for parameter in parts.model.parameters()])
        losses.append(single[0])
        counts.append(single[1:])
    for parameter, first, second in zip(whole.model.parameters(), *gradients, strict=True):
        torch.testing.assert_close(parameter.grad, (first + second) / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(report[0], sum(losses) / 2)
    torch.testing.assert_close(report[1:], sum(counts))


@pytest.mark.parametrize("model", ["cnn5", "cerdeq"])
def test_the_average_over_steps_is_a_plain_mean_at_first_then_forgets(tiny_trial, model):
    """The plain mean of the networks after each step at first, then an older one's share falls."""
    stepper = stepper_of(tiny_trial(model, train={"ema_decay": 0.7}), averaged=True)
    expected = {}
    for step in range(1, 6):
        stepper(CHOICES, 0.01, 1e-2)
        share = max(1 / step, 0.3)
        for name, value in stepper.model.state_dict().items():
            expected[name] = (1 - share) * expected.get(name, torch.zeros(())) + share * value
    for name, value in stepper.averaged.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    for latest, mean in zip(stepper.model.parameters(), stepper.averaged.parameters(), strict=True):
        assert not torch.equal(latest, mean)


def test_the_average_has_the_margin_of_the_schedule(tiny_trial):
    options = {"margin": 0.3, "margin_start": 0.9}
    stepper = stepper_of(tiny_trial("cerdeq", options=options, train={"ema_decay": 0.99}), averaged=True)
    for eps in (1e-6, 1 / 64, 1 / 32):
        stepper(CHOICES, eps, 5e-4)
    for network in (stepper.model, stepper.averaged):
        shape = network.equilibrium.recurrence.parametrizations.weight[0]
        assert shape.margin.item() == pytest.approx(0.3)


def trained(config, folder, **changes):
    data = load(config.dataset)
    images, labels = data.train.images[:320], data.train.labels[:320]
    return train(config, images, labels, folder, CPU, lambda row: None), images


def test_the_average_is_what_training_returns(tiny_trial, tmp_path):
    average, _ = trained(tiny_trial(train={"ema_decay": 0.9}), tmp_path)
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert torch.equal(average.classifier.weight, kept["averaged"]["classifier.weight"])
    assert not torch.equal(average.classifier.weight, kept["model"]["classifier.weight"])


def test_recomputed_statistics_are_those_of_the_training_set(tiny_trial, tmp_path):
    for name, given in (("with", True), ("without", False)):
        model, images = trained(tiny_trial(train={"recompute_statistics": given}), tmp_path / name)
        model.eval()
        hidden = model.conv1(model.normalize(images.float() / 255))
        kept, expected = model.norm1.running_mean, hidden.mean((0, 2, 3))
        assert torch.allclose(kept, expected, rtol=1e-3, atol=1e-5) == given


def test_statistics_are_means_over_whole_batches():
    model = build("cnn5", "digits", 0.1)
    for images in load("digits").train.images[:200].split(100):  # the second time, of the second images alone
        recompute_statistics(model, images, 32)
        hidden = model.conv1(model.normalize(images[:96].float() / 255)).detach()
        means, variances = zip(*((h.mean((0, 2, 3)), h.var((0, 2, 3))) for h in hidden.split(32)), strict=True)
        torch.testing.assert_close(model.norm1.running_mean, torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.norm1.running_var, torch.stack(variances).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parametrisation", ["perron", pytest.param("monotone", marks=pytest.mark.slow)])
def test_recomputing_statistics_moves_nothing_else(tiny_trial, tmp_path, parametrisation):
    """W included; and the statistics behind an equilibrium are those of its exact one."""
    options = {"parametrisation": parametrisation, "margin_start": 0.9, "early_iterations": 2}
    before, after = (
        trained(tiny_trial("cerdeq", options=options, train={"recompute_statistics": given}), tmp_path / str(given))
        for given in (False, True)
    )
    (before, images), (after, _) = before, after
    for name, value in before.state_dict().items():
        moved = not torch.equal(value, after.state_dict()[name])
        assert moved == ("running" in name) or "num_batches" in name, name
    after.eval()
    hidden = images.float() / 255
    for name, module in after.named_children():
        if name == "norm_linear":
            break
        hidden = module(hidden)
    torch.testing.assert_close(after.norm_linear.running_mean, hidden.mean(0), rtol=0.2, atol=0.1)


def test_the_ramp_ends_at_the_radius_trained_for(tiny_trial, tmp_path):
    config = tiny_trial(eps="1/32", train={"eps": "1/16"})
    assert config.train_eps == 1 / 16
    rows = []
    data = load(config.dataset)
    train(config, data.train.images[:320], data.train.labels[:320], tmp_path, CPU, rows.append)
    assert rows[-1]["train/eps"] == 1 / 16
    judged = tiny_trial(eps="1/32")
    assert judged.train_eps == 1 / 32


@pytest.mark.parametrize("method", ["sabr", "mtl-ibp"])
def test_rows_say_certified_error_only_of_methods_that_bound_the_ball(tiny_trial, tmp_path, method):
    result = run_trial(tiny_trial(method=method, width=0.05, train={"epochs": 1, "ramp_epochs": 1}), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / EPOCHS).read_text().splitlines()]
    assert (rows[-1]["train/certified_error"] is None) == (method != "mtl-ibp")
    assert rows[-1]["train/bound_width"] > 0 and rows[-1]["train/loss"] > 0
    assert result.metrics["standard_error"] <= result.metrics["certified_error"] <= 100


def test_the_images_attacked_are_the_augmented_ones(tiny_trial):
    """The loss is given the adversary of the very batch it is of."""
    stepper = stepper_of(tiny_trial(method="pgd"))
    seen = {}
    attack, loss = stepper.attacks["pgd"], stepper.losses["pgd"]
    stepper.attacks["pgd"] = lambda x, *rest: seen.setdefault("adversary", attack(x, *rest))
    stepper.losses["pgd"] = lambda *given: (seen.update(x=given[0], given=given[3]), loss(*given))[1]
    stepper(CHOICES, 0.01, 0.0)
    assert seen["given"] is seen["adversary"]
    torch.testing.assert_close(seen["x"], augment(stepper.images, *CHOICES))
    assert 0 < (seen["given"] - seen["x"]).abs().max() <= 0.01 + 1e-6
