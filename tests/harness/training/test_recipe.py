"""The training step, and the settings of the recipe that every training method shares."""

import json

import pytest
import torch
from steppers import choices_of, stepper_of, take_steps, train_network
from torch import nn

from baselines import build
from harness.data import load
from harness.data.augment import augment
from harness.evaluation.network import load_network
from harness.storage.folder import CHECKPOINT, EPOCHS, WEIGHTS
from harness.training import objective
from harness.training.loop import train
from harness.training.monitor import recompute_statistics


def loss_of(config, eps: float = 0.01) -> float:
    stepper = stepper_of(config)
    x, labels = stepper.images[:32].float() / 255, stepper.labels[:32]
    torch.manual_seed(1)
    adversary = stepper.attacks[config.method](x, labels, torch.tensor(eps))
    return stepper.losses[config.method](x, labels, torch.tensor(eps), adversary)[0].item()


def trained(config, folder):
    """The network that training ends with, the images, and the rows of all epochs."""
    data, rows = load(config.dataset), []
    images, labels = data.train.images[:320], data.train.labels[:320]
    return train(config, images, labels, folder, rows.append), images, rows


def gradient_norm(stepper) -> float:
    return float(torch.stack([parameter.grad.norm() for parameter in stepper.model.parameters()]).norm())


def test_the_trained_network_normalises_pixels_as_the_recipe_says(tiny_training, tmp_path):
    config = tiny_training(train={"mean": (0.25,), "std": (0.5,)})
    train_network(config, tmp_path, lambda row: None)
    for network in (trained(config, tmp_path / "again")[0], load_network(config, tmp_path / WEIGHTS)):
        x = torch.rand(2, 1, 8, 8).to(network.normalize.mean)
        torch.testing.assert_close(network.normalize(x), (x - 0.25) / 0.5)
    default_network = build(config.model, config.data_info, config.width)
    assert default_network.normalize.std.item() != 0.5


def test_the_tightness_regulariser_sees_the_radius_of_the_normalised_input(tiny_training, monkeypatch):
    radii = []
    monkeypatch.setattr(objective, "tightness", lambda entry, boxes: radii.append(entry.unique()) or entry.sum())
    for std in ((0.5,), None):
        loss_of(tiny_training(train={"std": std, "regularisation": 0.5}))
    default = build("cnn5", "digits", 0.1).normalize.std
    for radius, std in zip(radii, (torch.tensor(0.5), default), strict=True):
        torch.testing.assert_close(radius.max(), 0.01 / std.flatten()[0].to(radius))


@pytest.mark.parametrize("method", ["mtl-ibp", pytest.param("sabr", marks=pytest.mark.slow)])
def test_kappa_mixes_the_clean_cross_entropy_in(tiny_training, method):
    robust, natural, mixed = (
        loss_of(tiny_training(method=method, train={"kappa": kappa, "regularisation": 0.0}))
        for kappa in (0.0, 1.0, 0.2)
    )
    clean = loss_of(tiny_training(method="plain", train={"regularisation": 0.0}))
    assert natural == pytest.approx(clean, rel=1e-5)
    assert mixed == pytest.approx(0.8 * robust + 0.2 * natural, rel=1e-5)


def test_kappa_moves_with_eps_from_its_start(tiny_training):
    def at(eps, **kappas):
        return loss_of(tiny_training(train={"eps": "1/20", "regularisation": 0.0, **kappas}), eps)

    for eps, kappa in ((0.05 / 4, 0.8), (0.05, 0.2)):
        assert at(eps, kappa_start=1.0, kappa=0.2) == pytest.approx(at(eps, kappa=kappa), rel=1e-5)


def test_l1_is_the_sum_of_absolute_weights(tiny_training):
    without, with_l1 = (loss_of(tiny_training(train={"l1": weight})) for weight in (0.0, 1e-3))
    model = stepper_of(tiny_training()).model
    weights = sum(m.weight.abs().sum().item() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert with_l1 - without == pytest.approx(1e-3 * weights, rel=1e-3)


def test_the_regularisers_fade_with_eps(tiny_training):
    for eps, is_gone in ((0.02, False), (0.05, True)):
        weighted, free = (
            loss_of(tiny_training(train={"eps": "1/20", "regularisation": weight}), eps) for weight in (0.5, 0.0)
        )
        assert (abs(weighted - free) < 1e-5) == is_gone


def test_regularisers_can_leave_equilibria_out(tiny_training):
    losses = [
        loss_of(tiny_training("cerdeq", train={"regularise_equilibria": included, "regularisation": weight}), 1e-3)
        for included in (True, False)
        for weight in (0.0, 0.5)
    ]
    assert losses[0] == losses[2] == min(losses)
    assert losses[1] != losses[3]


def test_gradients_are_clipped(tiny_training):
    clipped, free, loose = (stepper_of(tiny_training(train={"clip_norm": norm})) for norm in (0.1, None, 1e9))
    take_steps(clipped, 1)
    assert gradient_norm(clipped) == pytest.approx(0.1, rel=1e-3)
    torch.testing.assert_close(take_steps(free, 2), take_steps(loose, 2), rtol=0, atol=0)
    assert gradient_norm(free) > 0.1


def test_gradients_whose_squares_overflow_are_clipped(tiny_training, monkeypatch):
    """Their sum of squares is infinite, and by its root all gradients would be 0."""
    stepper = stepper_of(tiny_training(train={"clip_norm": 0.1}))
    differentiate = stepper._differentiate

    def steep(*arguments):
        report = differentiate(*arguments)
        for parameter in stepper.model.parameters():
            parameter.grad.mul_(1e25)
        return report

    monkeypatch.setattr(stepper, "_differentiate", steep)
    take_steps(stepper, 1)
    assert gradient_norm(stepper) == pytest.approx(0.1, rel=1e-3)


def test_gradients_accumulate_over_parts_with_batch_norm_over_each(tiny_training):
    in_parts = stepper_of(tiny_training(train={"accumulate": 2, "clip_norm": None}))
    choices = choices_of(in_parts)
    report = in_parts(choices, 0.01, 0.0)
    single = stepper_of(tiny_training(train={"clip_norm": None}))
    gradients, reports = [], []
    for part in (slice(0, 32), slice(32, 64)):
        reports.append(single(tuple(choice[part] for choice in choices), 0.01, 0.0))
        gradients.append([parameter.grad.clone() for parameter in single.model.parameters()])
    for parameter, first, second in zip(in_parts.model.parameters(), *gradients, strict=True):
        torch.testing.assert_close(parameter.grad, (first + second) / 2, rtol=1e-4, atol=1e-6)
    total = sum(reports)
    torch.testing.assert_close(report, torch.stack([total[0] / 2, total[1], total[2]]))


def test_the_average_over_steps_is_a_plain_mean_at_first_then_forgets(tiny_training):
    stepper = stepper_of(tiny_training("cerdeq", train={"ema_decay": 0.7}))
    expected = {}
    for step in range(1, 6):
        stepper(choices_of(stepper), 0.01, 1e-2)
        share = max(1 / step, 0.3)
        for name, value in stepper.model.state_dict().items():
            expected[name] = (1 - share) * expected.get(name, torch.zeros(())) + share * value
    for name, value in stepper.averaged.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    for latest, mean in zip(stepper.model.parameters(), stepper.averaged.parameters(), strict=True):
        assert not torch.equal(latest, mean)


def test_an_equilibrium_s_schedules_follow_eps_in_the_average_too(tiny_training):
    options = {"margin": 0.2, "margin_start": 0.8, "iterations": 9, "early_iterations": 1}
    stepper = stepper_of(tiny_training("cerdeq", options=options, train={"eps": "1/10", "ema_decay": 0.99}))
    for network in stepper.networks:
        point, values = network.equilibrium.recurrence, []
        for eps in (1e-6, 0.05, 0.1):
            stepper(choices_of(stepper, 16), eps, 5e-4)
            values.append((point.iterations, round(point.parametrizations.weight[0].margin.item(), 3)))
        assert values == [(1, 0.8), (5, 0.5), (9, 0.2)]


def test_the_average_is_what_training_returns(tiny_training, tmp_path):
    average, _, _ = trained(tiny_training(train={"ema_decay": 0.9}), tmp_path)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert all(torch.equal(value, saved["averaged"][name]) for name, value in average.state_dict().items())
    assert any(not torch.equal(value, saved["model"][name]) for name, value in average.state_dict().items())


def test_statistics_are_means_over_whole_batches():
    model = build("cnn5", "digits", 0.1)
    for images in load("digits").train.images[:200].split(100):  # the second time, of the second images alone
        recompute_statistics(model, images, 32)
        hidden = model.conv1(model.normalize(images[:96].float() / 255)).detach()
        means, variances = zip(*((h.mean((0, 2, 3)), h.var((0, 2, 3))) for h in hidden.split(32)), strict=True)
        torch.testing.assert_close(model.norm1.running_mean, torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.norm1.running_var, torch.stack(variances).mean(0), rtol=1e-5, atol=1e-6)


def test_recomputing_statistics_changes_nothing_else(tiny_training, tmp_path):
    """W included; and the statistics behind an equilibrium are those of its exact one."""
    options = {"margin_start": 0.9, "early_iterations": 2, "iterations": 4, "backward_iterations": 4}
    (before, images, _), (after, _, _) = (
        trained(tiny_training("cerdeq", options=options, train={"recompute_statistics": flag}), tmp_path / str(flag))
        for flag in (False, True)
    )
    for name, value in before.state_dict().items():
        is_changed = not torch.equal(value, after.state_dict()[name])
        assert is_changed == ("running" in name) or "num_batches" in name, name
    after.eval()
    hidden = images.float() / 255
    for name, module in after.named_children():
        if name == "norm_linear":
            break
        hidden = module(hidden)
    torch.testing.assert_close(after.norm_linear.running_mean, hidden.mean(0), rtol=0.2, atol=0.1)


def test_the_ramp_ends_at_the_training_radius(tiny_training, tmp_path):
    _, _, rows = trained(tiny_training(train={"eps": "1/16"}), tmp_path)
    assert rows[-1]["train/eps"] == 1 / 16


@pytest.mark.parametrize("method", ["sabr", "mtl-ibp"])
def test_rows_have_a_certified_error_only_if_the_method_bounds_the_ball(tiny_training, tmp_path, method):
    train_network(tiny_training(method=method, width=0.05, train={"epochs": 1, "ramp_epochs": 1}), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / EPOCHS).read_text().splitlines()]
    assert (rows[-1]["train/certified_error"] is None) == (method != "mtl-ibp")
    assert rows[-1]["train/bound_width"] > 0 and rows[-1]["train/loss"] > 0


def test_adversarial_images_are_of_the_augmented_batch(tiny_training):
    stepper, arguments = stepper_of(tiny_training(method="pgd")), []
    attack, loss = stepper.attacks["pgd"], stepper.losses["pgd"]
    stepper.attacks["pgd"] = lambda *inputs: arguments.append(attack(*inputs)) or arguments[0]
    stepper.losses["pgd"] = lambda *inputs: (arguments.extend(inputs), loss(*inputs))[1]
    stepper(choices_of(stepper), 0.01, 0.0)
    adversary, x, _, _, adversary_of_loss = arguments
    assert adversary_of_loss is adversary
    torch.testing.assert_close(x, augment(stepper.images, *choices_of(stepper)))
    assert 0 < (adversary - x).abs().max() <= 0.01 + 1e-6
