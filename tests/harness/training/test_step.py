"""The training step: what it minimises and how its gradients are scaled."""

import pytest
import torch
from steppers import stepper_of, take_steps

from harness.training.augment import draw


def test_crown_ibp_goes_on_as_ibp_when_beta_is_spent(tiny_trial):
    spent = stepper_of(tiny_trial(method="crown-ibp"))
    kept = stepper_of(tiny_trial(method="crown-ibp", method_options={"final_beta": 0.5}))
    assert set(spent.losses) == {"crown-ibp", "ibp"} and set(kept.losses) == {"crown-ibp"}
    asked = []
    for name in spent.losses:
        spent.losses[name] = lambda *a, loss=spent.losses[name], name=name: (asked.append(name), loss(*a))[1]
    choices = draw(64, 0, False, 0, 1, torch.device("cpu")).batch(0, 64)
    for eps in (float(spent.config.train_eps) / 2, float(spent.config.train_eps)):
        spent(choices, eps, 5e-4)
    assert asked == ["crown-ibp", "ibp"]


def test_the_regularisers_fade_with_eps(tiny_trial):
    config = tiny_trial(eps="1/20")
    weighted, free = stepper_of(config), stepper_of(tiny_trial(eps="1/20", train={"regularisation": 0.0}))
    choices = draw(64, 0, False, 0, 1, torch.device("cpu")).batch(0, 64)
    for eps, same in ((0.02, False), (0.05, True)):
        with torch.no_grad():
            first, second = (
                stepper.losses["ibp"](stepper.images[choices[0]] / 255, stepper.labels[choices[0]], torch.tensor(eps))[
                    0
                ]
                for stepper in (weighted, free)
            )
        assert (abs(float(first - second)) < 1e-5) == same


def test_gradients_are_clipped(tiny_trial):
    stepper = stepper_of(tiny_trial(train={"clip_norm": 0.1}))
    take_steps(stepper, 1, 64)
    norm = torch.stack([p.grad.norm() for p in stepper.model.parameters()]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-3)


def test_gradients_are_left_as_they_are_where_nothing_clips_them(tiny_trial):
    free, loose = (stepper_of(tiny_trial(train={"clip_norm": norm})) for norm in (None, 1e9))
    torch.testing.assert_close(take_steps(free, 2, 64), take_steps(loose, 2, 64), rtol=0, atol=0)
    norm = torch.stack([p.grad.norm() for p in free.model.parameters()]).norm()
    assert float(norm) > 0.1


def test_an_equilibrium_s_schedules_follow_eps(tiny_trial):
    options = {"margin": 0.2, "margin_start": 0.8, "iterations": 9, "early_iterations": 1}
    stepper = stepper_of(tiny_trial("cerdeq", eps="1/10", options=options))
    point, choices = stepper.model.equilibrium.recurrence, draw(300, 2, True, 0, 1, torch.device("cpu")).batch(0, 16)
    seen = []
    for eps in (1e-6, 0.05, 0.1):
        stepper(choices, eps, 5e-4)
        seen.append((point.iterations, round(point.parametrizations.weight[0].margin.item(), 3)))
    assert seen == [(1, 0.8), (5, 0.5), (9, 0.2)]


def test_regularisers_can_leave_equilibria_out(tiny_trial):
    losses = {}
    for counted in (True, False):
        for weight in (0.0, 0.5):
            train = {"regularise_equilibria": counted, "regularisation": weight}
            stepper = stepper_of(tiny_trial("cerdeq", train=train))
            x = stepper.images[:32].float() / 255
            losses[counted, weight] = stepper.losses["ibp"](x, stepper.labels[:32], torch.tensor(1e-3))[0].item()
    assert losses[True, 0.0] == losses[False, 0.0]
    assert losses[True, 0.5] != losses[False, 0.5] and min(losses.values()) == losses[True, 0.0]
