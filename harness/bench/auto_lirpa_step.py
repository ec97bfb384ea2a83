"""Training steps by auto_LiRPA's bounds, as its own examples write them, beside ours.

Its loss fusion is left out: at commit a050a3d under torch 2.15 it exports an operator that it does not bound.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cerdeq.bounds import unchecked_margin_spec
from cerdeq.boxes import clipped_ball
from harness.data.augment import augment
from harness.methods import cross_entropy
from harness.training.step import image_layout, make_optimiser

_CLIP_NORM = 10.0


def auto_lirpa_step(
    model: nn.Module, method: str, images: Tensor, labels: Tensor, classes: int, eps: float, rate: float,
    batch: tuple[Tensor, ...],
) -> Callable[[], None]:  # fmt: skip
    """Return a training step by `ibp` or `crown-ibp`: bounds of a batch's margins, cross entropy, clipping, Adam.

    The network, the batch, the loss and the optimiser are those of our step, but for the regularisers, which
    auto_LiRPA's own training code computes outside of the library, and the count of certified examples.
    """
    library = importlib.import_module("auto_LiRPA")
    labels = labels[batch[0]]
    spec = unchecked_margin_spec(labels, classes).float()
    bounded = library.BoundedModule(model, augment(images, *batch), device=images.device)
    optimiser = make_optimiser(bounded, images.device)
    for group in optimiser.param_groups:
        group["lr"] = torch.tensor(rate, device=images.device)

    def step() -> None:
        x = augment(images, *batch).contiguous(memory_format=image_layout(model))
        box = clipped_ball(x, eps)
        ball = library.PerturbationLpNorm(x_L=box.lower, x_U=box.upper)
        optimiser.zero_grad(set_to_none=True)
        lower, _ = bounded.compute_bounds(x=(library.BoundedTensor(x, ball),), IBP=True, C=spec, method=None)
        if method == "crown-ibp":
            crown, _ = bounded.compute_bounds(IBP=False, C=spec, method="backward", bound_upper=False)
            lower = (lower + crown) / 2
        cross_entropy(lower).backward()
        nn.utils.clip_grad_norm_(bounded.parameters(), _CLIP_NORM)
        optimiser.step()

    return step
