"""The contract of every registered network, met by walking the registry: whatever is added is tested unasked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_networks import FAMILIES, images, margins_in_training, small, with_statistics
from torch import nn

from baselines import DATASETS, build, network_names
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.equilibrium.weights import PARAMETRISATIONS

REPRESENTATIVE = [members[:3][-1] for members in FAMILIES.values()]
SMALL = [(name, "digits", {}) for name in network_names()]
LARGE = [(name, dataset, {}) for dataset in DATASETS if dataset != "digits" for name in REPRESENTATIVE]
VARIANTS = [
    ("cnn7", "digits", {"pool": True}),
    ("cerdeq", "mnist", {"pool": True, "equilibria": 2}),
    ("cerdeq", "digits", {"recurrent": False}),
    ("deqlate", "digits", {"recurrent": False, "equilibria": 2, "norm": False}),
    ("deq7", "digits", {"recurrent": False, "pool": True}),
    ("deq7", "digits", {"norm": False, "gain": None}),
    ("mondeq", "digits", {"pool": True}),
    *[("cerdeq", "digits", {"parametrisation": name}) for name in PARAMETRISATIONS],
    ("deqlate", "digits", {"parametrisation": "orthogonal", "groups": 4}),
    ("cerdeq", "digits", {"gradient": "unrolled", "warm_start": True}),
    ("cerdeq", "digits", {"margin_start": 0.9, "early_iterations": 2, "equilibria": 2}),
]
every_network = pytest.mark.parametrize(("name", "dataset", "options"), SMALL + LARGE + VARIANTS)


@every_network
def test_a_training_pass_is_the_forward_pass_and_moves_the_same_statistics(name, dataset, options):
    classes = DATASETS[dataset].classes
    model, x = small(name, dataset, **options), images(dataset, 3)
    labels = torch.randint(classes, (3,))
    twin = copy.deepcopy(model).train()
    margins = margins_in_training(model, dataset, x, labels)
    assert margins.center.shape == margins.radius.shape == (3, classes - 1)
    logits = twin(x)
    assert logits.shape == (3, classes)
    torch.testing.assert_close(margins.clean, torch.einsum("bkn,bn->bk", margin_spec(labels, classes).double(), logits))
    for key, value in twin.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(model.state_dict()[key], value, msg=lambda text, key=key: f"{key}: {text}")


@every_network
def test_every_parameter_has_a_finite_gradient_of_the_ibp_loss(name, dataset, options):
    model, labels = small(name, dataset, **options), torch.randint(DATASETS[dataset].classes, (3,))
    margins = margins_in_training(model, dataset, images(dataset, 3), labels)
    (F.softplus(-margins.box.lower).mean() + F.softplus(-margins.clean).mean()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), f"no gradient for {key}"
        if not key.endswith("bias"):
            assert parameter.grad.any(), f"the gradient for {key} is 0"


@every_network
@torch.no_grad()
def test_bounds_contain_the_forward_pass_and_a_loaded_network_is_the_saved_one(name, dataset, options):
    model, x = with_statistics(small(name, dataset, **options), dataset), images(dataset, 3)
    lower, upper = bound(model, LinfBall(x, 1e-3))
    noise = torch.sign(torch.randn(8, *x.shape, dtype=torch.float64))
    values = torch.stack([model(x)] + [model((x + 1e-3 * one).clamp(0, 1)) for one in noise])
    slack = 1e-8 * (1 + values.abs().max())
    assert lower.shape == upper.shape == (3, DATASETS[dataset].classes)
    assert (lower - slack <= values).all() and (values <= upper + slack).all()
    assert (lower < upper).all() and lower.isfinite().all() and upper.isfinite().all()

    other = small(name, dataset, **options).eval()
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", network_names())
def test_a_single_seed_gives_a_single_network(name):
    networks = []
    for _ in range(2):
        torch.manual_seed(5)
        networks.append(build(name, dataset="digits", width=0.06).state_dict())
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])


@pytest.mark.parametrize("dataset", DATASETS)
def test_pixels_are_normalised_by_the_first_layer(dataset):
    model, info = build("cnn7", dataset=dataset, width=0.02).double(), DATASETS[dataset]
    x = images(dataset, 2)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (info.mean, info.std))
    torch.testing.assert_close(model[0](x), (x - mean) / std, rtol=1e-6, atol=1e-6)
    assert len(info.mean) == len(info.std) == info.shape[0]


@pytest.mark.parametrize("name", network_names())
@pytest.mark.parametrize("width", [0.001, 0.1, 0.5])
def test_width_scales_every_channel_count(name, width):
    """Exactly, or to a multiple of the groups."""
    with torch.device("meta"):
        models = build(name, dataset="digits"), build(name, dataset="digits", width=width)
    full, thin = ({key: m for key, m in model.named_modules() if isinstance(m, nn.Conv2d)} for model in models)
    groups = max(m.groups for m in full.values())
    assert thin.keys() <= full.keys() and all("shortcut" in key for key in full.keys() - thin.keys())
    for key, module in thin.items():
        assert abs(module.out_channels - max(1, round(full[key].out_channels * width))) < groups
