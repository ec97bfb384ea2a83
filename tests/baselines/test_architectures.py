"""The architectures: layers and numbers of parameters as published, and what ties the networks to each other."""

import re

import pytest
import torch
from small_networks import DEPTHS, small
from torch import nn

from baselines import build
from baselines.contract import images, with_statistics
from cerdeq import LinfBall, bound
from cerdeq.bounds import trace
from cerdeq.equilibrium import Equilibrium, fold


def parameters_of(name, dataset, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, dataset=dataset, **options).parameters())


@pytest.mark.parametrize(
    ("name", "dataset", "published", "exact"),
    [
        ("cnn7", "cifar10", 17.19e6, 17_192_650),
        ("cnn7", "tiny-imagenet", 17.29e6, 17_290_120),
        ("cnn7", "mnist", 13.26e6, 13_259_338),
        ("wideresnet8", "cifar10", 21.55e6, 21_547_882),
        ("resnext", "cifar10", 17.61e6, 17_611_018),
        ("densenet", "cifar10", 7.90e6, 7_902_058),
        ("fc", "mnist", 0.43e6, 425_410),
        ("cnn-a", "mnist", 0.17e6, 166_406),
        ("cnn-a", "cifar10", 0.21e6, 214_918),
    ],
)
def test_published_networks_have_the_published_number_of_parameters(name, dataset, published, exact):
    """Xu et al. 2020, Shi et al. 2021; of the last three, the tensors of published checkpoints."""
    assert parameters_of(name, dataset) == exact and round(exact / 1e4) == round(published / 1e4)


@pytest.mark.parametrize(("name", "depth"), [(name, depth) for name in DEPTHS for depth in DEPTHS[name]])
def test_depth_counts_every_use_of_a_weighted_layer(name, depth):
    with torch.device("meta"):
        steps = trace(build(name, "cifar10", depth=depth).eval()).steps
    weighted = [step.target for step in steps if isinstance(step.target, nn.Conv2d | nn.Linear)]
    weighted = [layer for layer in weighted if getattr(layer, "kernel_size", None) != (1, 1)]  # those are shortcuts
    relus = [step for step in steps if isinstance(step.target, nn.ReLU)]
    assert len(weighted) == depth and len(relus) == depth - 1
    assert len(set(weighted)) == (7 if name == "tied" else depth), "a tied network has one W"


def test_tied_networks_of_all_depths_have_cerdeqs_parameters():
    """Without a gain, which only its W has."""
    counts = {parameters_of("tied", "cifar10", depth=depth) for depth in DEPTHS["tied"]}
    assert counts == {parameters_of("cerdeq", "cifar10", gain=None)}


@pytest.mark.parametrize(
    ("name", "explicit", "options"),
    [
        ("convdeq", "conv", {"layers": 1}),
        ("convdeq", "conv", {"layers": 3}),
        ("deqdense", "cnn7", {}),
        ("fcdeq", "fc", {"hidden": [400]}),
        ("fcdeq", "fc", {"hidden": [200, 400]}),
    ],
)
def test_a_dense_equilibrium_with_w_at_zero_is_the_explicit_layer_from_the_same_seed(name, explicit, options):
    networks = []
    for each in (name, explicit):
        torch.manual_seed(1)
        networks.append(small(each, "digits", **options).eval())
    model, expected = networks
    x = images("digits", 2)
    assert not torch.allclose(model(x), expected(x))
    set_w_to_zero(model)
    torch.testing.assert_close(model(x), expected(x))


@torch.no_grad()
def set_w_to_zero(model):
    for module in model.modules():
        if isinstance(module, Equilibrium):
            module.recurrence.parametrizations.weight.original.zero_()


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3, 100])
def test_fctied_is_fcdeq_after_many_steps_and_fc_if_w_is_zero(steps):
    """From the same weights; those of `fcdeq` have rho(|W|) of at most 0.45."""
    options = {"hidden": [12, 8]}
    equilibrium = build("fcdeq", "digits", **options, margin=0.1).eval()
    tied, explicit = build("fctied", "digits", **options, steps=steps), build("fc", "digits", **options)
    fold(equilibrium)
    tied.load_state_dict(equilibrium.state_dict())
    x = images("digits", 20).float()
    assert torch.allclose(tied(x), equilibrium(x), atol=1e-6) == (steps == 100)
    tied.linear2.recurrence.weight.zero_()
    explicit.load_state_dict(
        {key.replace(".inject", ""): value for key, value in tied.state_dict().items()}, strict=False
    )
    torch.testing.assert_close(tied(x), explicit(x))


@pytest.mark.parametrize("dataset", ["digits", "tiny-imagenet"])
def test_an_injection_can_see_the_image_again(dataset):
    """If the stem's last layer is 0, the logits still depend on the image."""
    for image in (False, True):
        model = small("cerdeq", dataset, image=image).eval()
        stem = model.equilibrium.inject[0].stem if image else model
        with torch.no_grad():
            stem.norm3.weight.zero_()
        logits = model(images(dataset, 2))
        assert torch.allclose(logits[0], logits[1]) != image


def test_a_network_without_recurrence_is_the_network_with_w_at_zero():
    assert parameters_of("deqlate", "cifar10", recurrent=False) == parameters_of("cnn7", "cifar10")
    cases = [(name, {}) for name in ("cerdeq", "deqlate", "deq7", "deqscales", "deqsmall")]
    for name, options in [*cases, ("cerdeq", {"image": True})]:
        model, explicit = small(name, "digits", **options), small(name, "digits", recurrent=False, **options)
        with_statistics(model, "digits")
        set_w_to_zero(model)
        state = {re.sub(r"(equilibrium\d?).inject", r"\1.0", key): value for key, value in model.state_dict().items()}
        left = explicit.eval().load_state_dict(state, strict=False)
        assert not left.missing_keys and all("recurrence" in key for key in left.unexpected_keys)
        x = images("digits", 2)
        torch.testing.assert_close(model(x), explicit(x))
        torch.testing.assert_close(bound(model, LinfBall(x, 0.05)), bound(explicit, LinfBall(x, 0.05)))


@pytest.mark.parametrize("name", ["cerdeq", "deqlate"])
def test_a_network_has_as_many_equilibria_as_asked_one_or_two(name):
    for count in (1, 2):
        model = small(name, "digits", equilibria=count)
        assert sum(isinstance(module, Equilibrium) for module in model.modules()) == count
    with pytest.raises(ValueError, match="equilibria must be 1 or 2"):
        small(name, "digits", equilibria=3)


def test_mondeq_is_the_published_layout():
    """Wei and Kolter 2022: DEQ-7, m = 1/2, no gain, the injection relu(norm(U x)) + b."""
    with torch.device("meta"):
        model = build("mondeq")
    kinds = [type(module).__name__ for module in model.equilibrium.inject]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Bias"]
    part = model.equilibrium.recurrence.parametrizations.weight[0]
    assert type(part).__name__ == "Monotone" and part.margins == (0.5, 0.5) and part.gain_logit is None
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.stride[0]) for m in convolutions] == [(128, 2), (128, 1), (128, 1)]
    assert model.equilibrium.inject[0].out_channels == 64 and model.linear.out_features == 512
