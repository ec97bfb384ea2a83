"""The section `auto_lirpa`: CROWN beside auto_LiRPA's, where that can be imported.

Its alpha-CROWN is left out: at commit a050a3d under torch 2.15 its search changes no bound, and stops early.
"""

import argparse
import copy
import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq import Box, LinfBall, bound, margin_spec
from harness.bench.steps import median_seconds
from harness.machine.freed_memory import reuse_freed_memory

_SHAPE, _CLASSES, _EPS = (1, 28, 28), 10, 8 / 255
_ROUNDS = 5


def is_installed() -> bool:
    """Return whether auto_LiRPA can be imported."""
    return find_spec("auto_LiRPA") is not None


def measure_auto_lirpa(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each precision of auto_LiRPA, of CROWN on one convolution and two linear layers.

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
    compute: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {"ours": partial(bound, model, ball, "crown", spec)}
    compute |= {
        str(dtype).removeprefix("torch."): _auto_lirpa(model, ball, spec, dtype)
        for dtype in (torch.float64, torch.float32)
    }
    lower: dict[str, Tensor] = {}

    def store_lower(name: str) -> None:
        lower[name] = compute[name]()[0].detach().double()

    with reuse_freed_memory():
        seconds = median_seconds({name: partial(store_lower, name) for name in compute}, _ROUNDS, device)
    return [
        {
            "auto_LiRPA in": precision,
            "s an example, ours": seconds["ours"] / len(x),
            "s an example, auto_LiRPA": seconds[precision] / len(x),
            "times as fast": seconds[precision] / seconds["ours"],
            "smallest difference": float((lower["ours"] - lower[precision]).min()),
            "mean difference": float((lower["ours"] - lower[precision]).mean()),
        }
        for precision in ("float64", "float32")
    ]


def _auto_lirpa(model: nn.Module, ball: Box, spec: Tensor, dtype: torch.dtype) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return what bounds the margins by auto_LiRPA; its graph is made once, here."""
    library = importlib.import_module("auto_LiRPA")
    network = copy.deepcopy(model).to(dtype)
    center, low, high, rows = (tensor.to(dtype) for tensor in (ball.center, ball.lower, ball.upper, spec))
    bounded = library.BoundedModule(network, center[:1], device=center.device)

    def compute_bounds() -> tuple[Tensor, Tensor]:
        x = library.BoundedTensor(center, library.PerturbationLpNorm(x_L=low, x_U=high))
        return bounded.compute_bounds(x=(x,), C=rows, method="CROWN")

    return compute_bounds
