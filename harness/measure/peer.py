"""auto_LiRPA's training step beside ours: the same network, batch, regularisers, clipping and optimiser.

It is no dependency: its released package is too old, so that its repository's folder must be on PYTHONPATH.
"""

from collections.abc import Callable, Mapping
from importlib import import_module, util
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq import margin_spec
from cerdeq.boxes import Box, clipped_ball
from cerdeq.equilibrium import FixedPoint
from harness.errors import require
from harness.measure.bench import EPS, RATE, Bench
from harness.methods import cross_entropy
from harness.training.augment import augmented
from harness.training.regularisers import balance, tightness
from harness.training.step import make_optimiser

NAME = "auto_LiRPA"
_CLIP_NORM, _REGULARISATION = 10.0, 0.5  # the recipe's
_PROGRESS = 0.3  # of eps: what the bounds are mixed by


def require_peer(name: str | None) -> None:
    """Raise SettingError where the peer that was asked for cannot be imported."""
    there = name is None or util.find_spec(name) is not None
    require("--against", name, there, f"{NAME} where Python can import it: its repository's folder on PYTHONPATH")


def steps_of(
    bench: Bench, name: str, methods: Mapping[str, tuple[str, dict[str, Any]]]
) -> dict[str, Callable[[], object]]:
    """Its steps of the network `name`; none where it has an equilibrium, which the peer cannot bound.

    Fused CROWN-IBP is left out: in it the loss is a part of the network, which takes a program of its own there.
    """
    if any(isinstance(module, FixedPoint) for module in bench.model(name).modules()):
        return {}
    return {title: _step(bench, name, method) for title, (method, _) in methods.items() if title != "crown-ibp"}


def _step(bench: Bench, name: str, method: str) -> Callable[[], object]:
    library = import_module(NAME)
    perturbations, nodes = import_module(f"{NAME}.perturbations"), import_module(f"{NAME}.bound_ops")
    model = bench.model(name)
    x = augmented(bench.images, *bench.choices)
    labels = bench.labels[bench.choices[0]]
    bounded = library.BoundedModule(model, x, device=bench.device)
    bounded.train()
    optimiser = make_optimiser(bounded, bench.device)
    std = torch.tensor(bench.info.std, device=bench.device).view(-1, 1, 1)

    def regulariser(radius: Tensor) -> Tensor:
        boxes = [
            Box((node.inputs[0].upper + node.inputs[0].lower) / 2, (node.inputs[0].upper - node.inputs[0].lower) / 2)
            for node in bounded.nodes()
            if isinstance(node, nodes.BoundRelu)
        ]
        return tightness(radius / std, boxes) + balance(boxes)

    def step() -> None:
        x = augmented(bench.images, *bench.choices)
        optimiser.zero_grad(set_to_none=True)
        ball = clipped_ball(x, EPS)
        region = perturbations.PerturbationLpNorm(norm=torch.inf, x_L=ball.lower, x_U=ball.upper)
        spec = margin_spec(labels, bench.info.classes).to(x)
        bounded(library.BoundedTensor(x, region))
        lower, _ = bounded.compute_bounds(IBP=True, C=spec, method=None)
        boxes = regulariser(ball.radius)
        if method == "crown-ibp":
            by_crown, _ = bounded.compute_bounds(IBP=False, C=spec, method="backward", bound_upper=False)
            lower = (1 - _PROGRESS) * by_crown + _PROGRESS * lower
        loss = cross_entropy(lower) + _REGULARISATION * (1 - _PROGRESS) * boxes
        loss.backward()
        nn.utils.clip_grad_norm_(bounded.parameters(), _CLIP_NORM)
        for group in optimiser.param_groups:
            group["lr"].fill_(RATE)
        optimiser.step()

    return step
