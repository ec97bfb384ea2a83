"""The contract of every registered network, met by walking the registry: whatever is added is tested unasked."""

import copy
import inspect
import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines import DATASETS, UnknownNameError, build, names, options_of, register, registry
from baselines.resnet import BasicBlock
from baselines.resnext import GroupedBlock
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.boxes import clipped_ball
from cerdeq.equilibrium import Equilibrium, contraction, fold

torch.set_num_threads(1)

FAMILIES: dict[str, list[str]] = {}
for _name in names():
    FAMILIES.setdefault(_name.rstrip("0123456789"), []).append(_name)
REPRESENTATIVE = [members[:3][-1] for members in FAMILIES.values()]
SMALL = [(name, "digits", {}) for name in names()]
LARGE = [(name, dataset, {}) for dataset in DATASETS if dataset != "digits" for name in REPRESENTATIVE]
VARIANTS = [
    ("cnn7", "digits", {"pool": True}),
    ("cerdeq", "mnist", {"pool": True, "equilibria": 2}),
    ("cerdeq", "digits", {"recurrent": False}),
    ("deqlate", "digits", {"recurrent": False, "equilibria": 2, "norm": False}),
    ("deq7", "digits", {"recurrent": False, "pool": True}),
    ("deq7", "digits", {"norm": False, "gain": None}),
    ("mondeq", "digits", {"pool": True}),
    *[("cerdeq", "digits", {"parametrisation": name}) for name in ("nonnegative", "monotone", "orthogonal")],
    ("deqlate", "digits", {"parametrisation": "orthogonal", "groups": 4}),
    ("cerdeq", "digits", {"gradient": "unrolled", "warm_start": True}),
    ("cerdeq", "digits", {"margin_start": 0.9, "early_iterations": 2, "equilibria": 2}),
]
WIDTH = {"digits": 0.06, "mnist": 0.04, "cifar10": 0.04, "tiny-imagenet": 0.02}


def small(name, dataset, **options):
    return build(name, dataset=dataset, width=WIDTH[dataset], **options).double()


def images(dataset, count):
    return torch.rand(count, *DATASETS[dataset].shape, dtype=torch.float64)


def margins_in_training(model, dataset, x, labels, eps=1e-3):
    """One IBP pass in training mode: the margins' Interval."""
    ball = clipped_ball(x, eps)
    spec = margin_spec(labels, DATASETS[dataset].classes)
    return propagate(trace(model.train()), Interval(ball.center, ball.radius, x), Context(sound=False), spec)


def with_statistics(model, dataset):
    """In evaluation mode, its batch norm statistics those of data and its biases not 0."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        model.train()
        for _ in range(3):
            model(images(dataset, 4))
    return model.eval()


@pytest.mark.parametrize(("name", "dataset", "options"), SMALL + LARGE + VARIANTS)
def test_contract(name, dataset, options):
    """Shape; a finite gradient for every parameter under the IBP loss; bounds that contain the forward pass; saving."""
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

    (F.softplus(-margins.box.lower).mean() + F.softplus(-margins.clean).mean()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), f"no gradient for {key}"
        if not key.endswith("bias"):
            assert parameter.grad.any(), f"the gradient for {key} is 0"

    with_statistics(model, dataset)
    with torch.no_grad():
        lower, upper = bound(model, LinfBall(x, 1e-3))
        noise = torch.sign(torch.randn(8, *x.shape, dtype=torch.float64))
        values = torch.stack([model(x)] + [model((x + 1e-3 * one).clamp(0, 1)) for one in noise])
        slack = 1e-8 * (1 + values.abs().max())
        assert lower.shape == upper.shape == (3, classes)
        assert (lower - slack <= values).all() and (values <= upper + slack).all()
        assert (lower < upper).all() and lower.isfinite().all() and upper.isfinite().all()

        other = small(name, dataset, **options).eval()
        assert not torch.equal(other(x), model(x))
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", names())
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


# ---------------------------------------------------------------------------------------------------------------------
# The architectures of the papers


def parameters_of(name, dataset, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, dataset=dataset, **options).parameters())


def cnn7_parameters(channels, size, classes):
    """By hand: 3x3 convolutions 64 64 128 128 128 with bias and batch norm, linear 512 with batch norm, classifier."""
    total, inputs = 0, channels
    for outputs in (64, 64, 128, 128, 128):
        total += 9 * inputs * outputs + outputs + 2 * outputs
        inputs = outputs
    return total + (128 * size * size * 512 + 512) + 2 * 512 + (512 * classes + classes)


@pytest.mark.parametrize(
    ("dataset", "published", "exact", "by_hand"),
    [
        ("cifar10", 17.19e6, 17_192_650, cnn7_parameters(3, 16, 10)),
        ("tiny-imagenet", 17.29e6, 17_290_120, cnn7_parameters(3, 16, 200)),
        ("mnist", 13.26e6, 13_259_338, cnn7_parameters(1, 14, 10)),
    ],
)
def test_cnn7_has_the_published_number_of_parameters(dataset, published, exact, by_hand):
    assert parameters_of("cnn7", dataset) == by_hand == exact
    assert round(exact / 1e4) == round(published / 1e4)


def test_cnn7_is_the_published_network():
    with torch.device("meta"):
        for dataset, last in (("cifar10", 1), ("tiny-imagenet", 2), ("mnist", 1)):
            layers = [m for m in build("cnn7", dataset=dataset).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
            assert [m.out_channels for m in convolutions] == [64, 64, 128, 128, 128]
            assert [m.stride[0] for m in convolutions] == [1, 1, 2, 1, last]
            assert all(m.kernel_size == (3, 3) and m.padding == (1, 1) for m in convolutions)
            assert [m.out_features for m in layers[5:]] == [512, DATASETS[dataset].classes]


@pytest.mark.parametrize(
    ("name", "published", "exact"),
    [
        ("wideresnet8", 21.55e6, 21_547_882),
        ("resnext", 17.61e6, 17_611_018),
        ("densenet", 7.90e6, 7_902_058),
    ],
)
def test_published_networks_have_the_published_number_of_parameters(name, published, exact):
    """Xu et al. 2020, Shi et al. 2021; CIFAR-10."""
    assert parameters_of(name, "cifar10") == exact and round(exact / 1e4) == round(published / 1e4)


@pytest.mark.parametrize(
    ("name", "channels", "features"),
    [
        ("wideresnet8", [16, 160, 320, 640], 640 * 16 * 16),
        ("resnext", [16, 32, 32, 64, 64, 128, 128], 128 * 16 * 16),
    ],
)
def test_published_networks_for_tiny_imagenet(name, channels, features):
    """Shi et al. 2021."""
    with torch.device("meta"):
        model = build(name, dataset="tiny-imagenet")
    found = [model.conv1.out_channels] + [m.norm1.num_features for m in model if isinstance(m, BasicBlock)]
    found += [m.norm3.num_features for m in model if isinstance(m, GroupedBlock)]
    assert found == channels and model.linear.in_features == features


@pytest.mark.parametrize("name", [*FAMILIES["cnn"], *FAMILIES["resnet"]])
def test_depth_counts_the_weighted_layers(name):
    with torch.device("meta"):
        model = build(name, dataset="cifar10")
    modules = [m for key, m in model.named_modules() if "shortcut" not in key]
    weighted = [m for m in modules if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = [m for m in modules if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    relus = [m for m in modules if isinstance(m, nn.ReLU)]
    depth = int(re.sub(r"\D", "", name))
    assert len(weighted) == depth and len(norms) == len(relus) == depth - 1


@pytest.mark.parametrize("name", FAMILIES["tied"])
def test_depth_of_a_tied_network_counts_every_use_of_a_layer(name):
    with torch.device("meta"):
        steps = trace(build(name, dataset="cifar10").eval()).steps
    weighted = [step.target for step in steps if isinstance(step.target, nn.Conv2d | nn.Linear)]
    relus = [step for step in steps if isinstance(step.target, nn.ReLU)]
    depth = int(name.removeprefix("tied"))
    assert len(weighted) == depth and len(relus) == depth - 1
    assert len(set(weighted)) == 7, "conv1, conv2, conv3, injection, W, linear, classifier"


def test_tied_networks_of_all_depths_have_cerdeqs_parameters():
    """Without a gain, which only its W has."""
    assert {parameters_of(name, "cifar10") for name in FAMILIES["tied"]} == {
        parameters_of("cerdeq", "cifar10", gain=None)
    }


def test_deep_tied_networks_tend_to_the_equilibrium():
    """With rho(|W|) < 1, at that rate or faster: outputs, and the bounds of IBP, verified ones being a little wider."""
    equilibrium, x = small("cerdeq", "digits", margin=0.4, gain=None), images("digits", 3)
    fold(with_statistics(equilibrium, "digits"))
    rate = contraction(equilibrium.equilibrium.recurrence.weight).rate
    assert 0.5 < rate <= 0.6
    state = {key.replace("equilibrium.", "unrolled."): value for key, value in equilibrium.state_dict().items()}
    depths, errors = (7, 9, 11, 13, 25), []
    with torch.no_grad():
        expected = torch.stack([equilibrium(x), *bound(equilibrium, LinfBall(x, 0.01))])
        for depth in depths:
            model = small(f"tied{depth}", "digits").eval()
            model.load_state_dict(state)
            found = torch.stack([model(x), *bound(model, LinfBall(x, 0.01))])
            errors.append((found - expected).abs().amax((1, 2)))
    for (depth, error), (deeper, less) in itertools.pairwise(zip(depths[:-1], errors[:-1], strict=True)):
        assert (less < rate ** (deeper - depth) * error).all()
    assert (errors[0] > 1e-4).all() and errors[-1][0] < 1e-10 and (errors[-1] < 1e-6).all()


@pytest.mark.parametrize("name", sorted({*names()} - {"wideresnet8", "densenet"}))
def test_large_images_are_halved_once_more(name):
    """Heads see as many features of Tiny ImageNet as of CIFAR-10, or a study of depth would compare heads."""
    sizes = []
    for dataset in ("cifar10", "tiny-imagenet"):
        with torch.device("meta"):
            sizes.append(build(name, dataset=dataset).linear.in_features)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", names())
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


def as_deqlate(state):
    """The names of CNN-7's weights in deqlate."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("conv5.", "equilibrium.inject.0.").replace("norm5.", "equilibrium.inject.1.")
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("dataset", ["digits", "mnist", "tiny-imagenet"])
def test_deqlate_without_its_recurrence_is_cnn7(dataset):
    cnn7, deqlate = small("cnn7", dataset), small("deqlate", dataset)
    with_statistics(cnn7, dataset)
    left = deqlate.load_state_dict(as_deqlate(cnn7.state_dict()), strict=False)
    assert not left.unexpected_keys and all("recurrence" in key for key in left.missing_keys)
    deqlate.eval()
    with torch.no_grad():
        deqlate.equilibrium.recurrence.parametrizations.weight.original.zero_()
        x = images(dataset, 2)
        torch.testing.assert_close(deqlate(x), cnn7(x))
        torch.testing.assert_close(bound(deqlate, LinfBall(x, 0.01)), bound(cnn7, LinfBall(x, 0.01)))
        torch.testing.assert_close(deqlate.train()(x), cnn7.train()(x))
        labels = torch.tensor([0, 1])
        ours, theirs = (margins_in_training(model, dataset, x, labels) for model in (deqlate, cnn7))
        torch.testing.assert_close((ours.center, ours.radius, ours.clean), (theirs.center, theirs.radius, theirs.clean))


# ---------------------------------------------------------------------------------------------------------------------
# Names and options


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("cnn_7", "cnn7"), ("resnet-9", "resnet9"), ("deqlat", "deqlate"), ("CerDEQ", "cerdeq"), ("CNN7", "cnn7")],
)
def test_an_unknown_network_names_the_nearest_and_all(wrong, near):
    with pytest.raises(UnknownNameError) as error:
        build(wrong, dataset="digits")
    assert wrong in str(error.value) and f"did you mean {near!r}" in str(error.value)
    assert all(name in str(error.value) for name in names())
    with pytest.raises(UnknownNameError):
        options_of(wrong)


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"did you mean 'cifar10'.*Known: .*digits"):
        build("cnn7", dataset="cifar-10")
    with pytest.raises(UnknownNameError, match="did you mean 'tiny-imagenet'"):
        build("cnn7", dataset="tinyimagenet")


def test_a_name_like_nothing_lists_what_there_is():
    with pytest.raises(UnknownNameError, match="Known: ") as error:
        build("qqqqqqqq")
    assert "did you mean" not in str(error.value) and isinstance(error.value, ValueError)


def test_an_unknown_option_names_the_known_ones():
    with pytest.raises(TypeError, match=r"'depth'.*none"):
        build("resnet9", dataset="digits", depth=9)
    with pytest.raises(TypeError, match=r"'marign'.*margin"):
        build("cerdeq", dataset="digits", marign=0.3)


@pytest.mark.parametrize("name", ["cerdeq", "deqlate"])
@pytest.mark.parametrize(
    "options",
    [
        {"margin": 0},
        {"margin": 1.5},
        {"gain": 0},
        {"gain": 2.0},
        {"parametrisation": "peron"},
        {"iterations": 0},
        {"backward_iterations": -1},
    ],
)
def test_an_option_out_of_range_is_refused(name, options):
    with pytest.raises(ValueError, match=r"margin|gain|parametrisation|iterations"):
        build(name, dataset="digits", width=0.05, **options)


@pytest.mark.parametrize("width", [0, -1, -0.5, float("nan")])
def test_a_width_that_makes_no_sense_is_refused(width):
    with pytest.raises(ValueError, match="width"):
        build("cnn7", dataset="digits", width=width)


def test_options_reach_the_equilibrium():
    given = {"margin": 0.11, "gain": 0.77, "iterations": 3, "backward_iterations": 4}
    model = build("deqlate", dataset="digits", width=0.05, **given)
    part = next(m for m in model.modules() if isinstance(m, Equilibrium)).recurrence
    weight = part.parametrizations.weight[0]
    assert (part.iterations, part.backward_iterations, weight.margin) == (3, 4, 0.11)
    assert weight.gain.item() == pytest.approx(0.77)
    assert set(options_of("deqlate")) == set(options_of("cerdeq")) >= set(given)
    assert build("deqlate", dataset="digits", width=0.05, gain=None) is not None


def test_options_of_shows_defaults():
    assert options_of("cerdeq")["margin"].default == 0.3
    assert options_of("resnet9") == {} and not {"width", "channels", "options"} & options_of("cerdeq").keys()


def test_every_option_of_an_equilibrium_is_an_option_of_its_networks():
    layer = set(inspect.signature(Equilibrium).parameters) - {"channels", "inject", "kernel_size"}
    for name in ("cerdeq", "deqlate", "deq7"):
        assert layer | {"pool", "norm", "recurrent"} <= options_of(name).keys()


def test_the_twin_is_the_network_with_w_at_zero():
    for name in ("cerdeq", "deqlate", "deq7"):
        model, twin = small(name, "digits"), small(name, "digits", recurrent=False)
        with_statistics(model, "digits")
        with torch.no_grad():
            model.equilibrium.recurrence.parametrizations.weight.original.zero_()
        state = {key.replace("equilibrium.inject", "equilibrium.0"): value for key, value in model.state_dict().items()}
        left = twin.eval().load_state_dict(state, strict=False)
        assert not left.missing_keys and all("recurrence" in key for key in left.unexpected_keys)
        x = images("digits", 2)
        torch.testing.assert_close(model(x), twin(x))
        torch.testing.assert_close(bound(model, LinfBall(x, 0.05)), bound(twin, LinfBall(x, 0.05)))


def test_a_twin_has_no_options_of_a_recurrence():
    with pytest.raises(ValueError, match=r"recurrent.*margin"):
        build("cerdeq", dataset="digits", recurrent=False, margin=0.2)


@pytest.mark.parametrize("name", ["cerdeq", "deqlate"])
def test_one_or_two_equilibria(name):
    for count in (1, 2):
        model = small(name, "digits", equilibria=count)
        assert sum(isinstance(module, Equilibrium) for module in model.modules()) == count
    with pytest.raises(ValueError, match="equilibria must be 1 or 2"):
        small(name, "digits", equilibria=3)


def test_pooling_quarters_the_linear_layer():
    for name in ("cnn7", "cerdeq", "deqlate", "deq7", "mondeq"):
        with torch.device("meta"):
            sizes = [build(name, pool=pool).linear.in_features for pool in (False, True)]
        assert sizes == [128 * 16 * 16, 128 * 8 * 8]


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


def test_registering(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @register("mine")
    def mine(shape, classes, width=1.0, hidden: int = 4):
        """A linear network."""
        features = shape[0] * shape[1] * shape[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    assert "mine" in names() and set(options_of("mine")) == {"hidden"}
    assert build("mine", dataset="digits", hidden=7)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="registered twice"):
        register("mine")(mine)
