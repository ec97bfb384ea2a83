"""One call that checks whether a network can be trained, bounded and stored: for networks of plugins, too."""

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from baselines.datasets import DATASETS
from baselines.registry import Builder, build
from baselines.shared_tensors import complete, refuse_shared_memory
from cerdeq import LinfBall, bound, margin_spec
from cerdeq.bounds import Context, Interval, propagate, trace
from cerdeq.boxes import clipped_ball
from cerdeq.equilibrium import fold

_BOUNDS = ("ibp", "crown-ibp", "crown")
_IMAGES, _CORNERS, _EPS, _SEED = 3, 2, 1e-3, 5


class ContractError(AssertionError):
    """A network that breaks the contract; the message says how."""


def check_network(
    network: str | Builder, dataset: str = "digits", width: float = 0.1, bounds: Sequence[str] = _BOUNDS, **options: Any
) -> None:
    """Check a small copy of a network on random images, in float64.

    network: its name, or a function as `register` takes. bounds: the bounds to check; ("ibp",) if one of its operators
    has no linear rule. Raises ContractError, whatever `build` raises, and UnsupportedOperator for an operator
    without a rule.

    The contract: the network can be built without values, as sweeps are checked. One seed makes one network. In
    evaluation mode logits [B, K] are finite, the same each time, and depend on their own image alone. In training mode
    the bounding pass computes what the forward pass does and moves the same statistics. Every parameter has a finite
    gradient of the IBP loss, and no weight's is 0. Bounds are finite and contain the logits of sampled points of the
    ball. Stored weights, unfolded and folded, load as the same network; no two
    parameters lie in one memory, though one parameter may have two names.
    """
    with torch.random.fork_rng(devices=[]):
        first, second = (_build_small(network, dataset, width, options) for _ in range(2))
        _check_without_values(network, dataset, width, options)
        other = _build_small(network, dataset, width, options, seed=_SEED + 1)
        one, same = first.state_dict(), second.state_dict()
        is_same = one.keys() == same.keys() and all(torch.equal(one[key], same[key]) for key in one)
        _require(is_same, "two builds with the same seed differ: draw weights with torch only")
        _check_evaluation(with_statistics(other, dataset), dataset)
        _check_training(first, dataset)
        _check_bounds(other, dataset, bounds)
        _check_stored(other, first, second, dataset)


def images(dataset: str, count: int) -> Tensor:
    """Return random images [count, C, H, W], float64."""
    return torch.rand(count, *DATASETS[dataset].shape, dtype=torch.float64)


def margins_in_training(model: nn.Module, dataset: str, x: Tensor, labels: Tensor, eps: float = _EPS) -> Interval:
    """Return the margins [B, K - 1] of images x [B, C, H, W] by one IBP pass in training mode."""
    ball = clipped_ball(x, eps)
    spec = margin_spec(labels, DATASETS[dataset].classes)
    return propagate(trace(model.train()), Interval(ball.center, ball.radius, x), Context(sound=False), spec)


def with_statistics(model: nn.Sequential, dataset: str) -> nn.Sequential:
    """Return the model in evaluation mode, with batch norm statistics of random images and biases that are not 0."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        model.train()
        for _ in range(3):
            model(images(dataset, 4))
    return model.eval()


def _build_small(
    network: str | Builder, dataset: str, width: float, options: dict[str, Any], seed: int = _SEED
) -> nn.Sequential:
    torch.manual_seed(seed)
    return build(network, dataset, width, **options).double()


def _check_without_values(network: str | Builder, dataset: str, width: float, options: dict[str, Any]) -> None:
    """Check what sweeps are checked by, before anything is trained."""
    try:
        with torch.device("meta"):
            model = build(network, dataset, width, **options)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        message = f"it cannot be built on torch's device 'meta', where tensors have no values: {cause}"
        raise ContractError(message) from None
    try:
        refuse_shared_memory(model)
    except ValueError as error:
        raise ContractError(str(error)) from None


def _check_training(model: nn.Sequential, dataset: str) -> None:
    x, labels, classes = _batch(dataset)
    reference = copy.deepcopy(model).train()
    margins, logits = margins_in_training(model, dataset, x, labels), reference(x)
    clean = (margin_spec(labels, classes).double() @ logits.unsqueeze(2)).squeeze(2)
    _require_close("what the bounding pass computes of images in training", margins.clean_value(), clean)
    for key, value in reference.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            _require_close(f"{key} after the bounding pass in training", model.state_dict()[key], value)
    (F.softplus(-margins.box.lower).mean() + F.softplus(-margins.clean_value()).mean()).backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise ContractError(f"no finite gradient for {key}")
        _require(key.endswith("bias") or bool(parameter.grad.any()), f"the gradient for {key} is 0")


@torch.no_grad()
def _check_evaluation(model: nn.Sequential, dataset: str) -> None:
    x, _, classes = _batch(dataset)
    logits = model(x)
    message = f"logits of shape {tuple(logits.shape)}, of {len(x)} images and {classes} classes"
    _require(logits.shape == (len(x), classes), message)
    _require(bool(logits.isfinite().all()), "logits in evaluation mode are not finite")
    _require(torch.equal(model(x), logits), "logits in evaluation mode are not the same each time")
    _require_close("in evaluation mode, the logits of an image in another batch", model(x[:2]), logits[:2])


def _check_bounds(model: nn.Sequential, dataset: str, bounds: Sequence[str]) -> None:
    x, _, classes = _batch(dataset)
    values = _values(model, x, classes)
    slack = 1e-8 * (1 + values.abs().max())
    for name in bounds:
        with torch.no_grad():
            lower, upper = bound(model, LinfBall(x, _EPS), name)
        _require(lower.shape == upper.shape == (len(x), classes), f"bounds by {name} of shape {tuple(lower.shape)}")
        _require(bool(lower.isfinite().all() and upper.isfinite().all()), f"bounds by {name} are not finite")
        inside = (lower - slack <= values).all() and (values <= upper + slack).all()
        _require(bool(inside), f"bounds by {name} do not contain what a point of the ball gives")
        _require(bool((lower < upper).all()), f"bounds by {name} of a whole ball are single numbers")


def _values(model: nn.Sequential, x: Tensor, classes: int) -> Tensor:
    """Return logits [N, B, K] of x and of corners of its ball: random ones, and extreme ones of a linear logit."""
    x = x.clone().requires_grad_()
    logits = model(x)
    steep = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in range(min(classes, _CORNERS))]
    with torch.no_grad():
        signs = torch.stack([*steep, *torch.randn(_CORNERS, *x.shape, dtype=x.dtype)]).sign()
        points = torch.cat([x[None], (x + _EPS * torch.cat([signs, -signs])).clamp(0, 1)])
        return model(points.flatten(0, 1)).unflatten(0, points.shape[:2])


@torch.no_grad()
def _check_stored(model: nn.Sequential, first: nn.Sequential, second: nn.Sequential, dataset: str) -> None:
    """Check that weights survive storing. first, second: the same network with other weights."""
    x, _, _ = _batch(dataset)
    first.eval().load_state_dict(model.state_dict())
    _require(torch.equal(first(x), model(x)), "the loaded network is not the saved one")
    for network in (model, second.eval()):
        fold(network)
    with TemporaryDirectory() as directory:
        save_model(model, path := str(Path(directory, "weights.safetensors")))
        second.load_state_dict(complete(load_file(path), second))
    _require(torch.equal(second(x), model(x)), "the folded network changes when it is saved and loaded")


def _batch(dataset: str) -> tuple[Tensor, Tensor, int]:
    """Return images, labels and the number of classes."""
    classes = DATASETS[dataset].classes
    return images(dataset, _IMAGES), torch.randint(classes, (_IMAGES,)), classes


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)


def _require_close(name: str, value: Tensor, expected: Tensor) -> None:
    try:
        torch.testing.assert_close(value, expected)
    except AssertionError as error:
        raise ContractError(f"{name} is something else: {error}") from None
