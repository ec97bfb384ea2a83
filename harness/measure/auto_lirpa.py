"""The section `auto_lirpa`: CROWN and alpha-CROWN beside those of auto_LiRPA, where it can be imported."""

import argparse
import copy
import importlib
import io
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq import Box, LinfBall, bound, margin_spec
from harness.measure.steps import Step, median_seconds
from harness.memory import reuse_freed_memory

_METHODS = {"crown": "CROWN", "alpha-crown": "CROWN-Optimized"}
_SHAPE, _CLASSES, _EPS = (1, 28, 28), 10, 8 / 255
_ROUNDS = 3
_SEARCH = {"iteration": 20, "lr_alpha": 0.1}  # at its default rate of 0.5 its slopes hardly improve


def is_installed() -> bool:
    """Return whether auto_LiRPA can be imported."""
    return find_spec("auto_LiRPA") is not None


def measure_auto_lirpa(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each bound and each precision of auto_LiRPA, of one convolution and two linear layers.

    The network is untrained, images are random. Both bound both ends of all margins; ours are in float64 and count
    rounding. Differences are of lower ends, in logits: above 0 where ours are tighter.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 14 * 14, 100), nn.ReLU(), nn.Linear(100, _CLASSES),
    ).double().eval().requires_grad_(False).to(device)  # fmt: skip
    x = torch.rand(options.images, *_SHAPE, dtype=torch.float64).to(device)
    ball = LinfBall(x, _EPS)
    spec = margin_spec(model(x).argmax(1), _CLASSES).double()
    actions: dict[tuple[str, str], Step] = {}
    lower: dict[tuple[str, str], Tensor] = {}

    def action(key: tuple[str, str], ends: Step) -> None:
        lower[key] = ends()[0].detach().double()  # type: ignore[index]

    for name, method in _METHODS.items():
        actions[name, "ours"] = partial(action, (name, "ours"), partial(bound, model, ball, name, spec))
        for dtype in (torch.float64, torch.float32):
            key = name, str(dtype).removeprefix("torch.")
            actions[key] = partial(action, key, _auto_lirpa(model, ball, spec, method, dtype))
    with reuse_freed_memory():
        seconds = median_seconds(actions, _ROUNDS, device)
    return [
        {
            "bound": name,
            "auto_LiRPA in": precision,
            "s an example, ours": seconds[name, "ours"] / len(x),
            "s an example, auto_LiRPA": seconds[name, precision] / len(x),
            "times as fast": seconds[name, precision] / seconds[name, "ours"],
            "least difference": float((lower[name, "ours"] - lower[name, precision]).min()),
            "mean difference": float((lower[name, "ours"] - lower[name, precision]).mean()),
        }
        for name, precision in actions
        if precision != "ours"
    ]


def _auto_lirpa(model: nn.Module, ball: Box, spec: Tensor, method: str, dtype: torch.dtype) -> Step:
    """Return what bounds the margins by auto_LiRPA; its graph is made once, here."""
    library = importlib.import_module("auto_LiRPA")
    network = copy.deepcopy(model).to(dtype)
    center, low, high, rows = (tensor.to(dtype) for tensor in (ball.center, ball.lower, ball.upper, spec))
    bounded = library.BoundedModule(network, center[:1], device=center.device)
    bounded.set_bound_opts({"optimize_bound_args": _SEARCH})

    def ends() -> tuple[Tensor, Tensor]:
        x = library.BoundedTensor(center, library.PerturbationLpNorm(x_L=low, x_U=high))
        with redirect_stdout(io.StringIO()):  # it reports early stops
            return bounded.compute_bounds(x=(x,), C=rows, method=method)

    return ends
