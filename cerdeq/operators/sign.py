"""Sign, a step from -1 to 1 with 0 at 0: interval rule, and constant lines."""

import torch
from torch import Tensor

from cerdeq.boxes import Box, outward_ends
from cerdeq.operators.backward import Backward, Pulled, dot, slack
from cerdeq.operators.interval import Context, Interval
from cerdeq.operators.record import Operator


def _ends(box: Box, sound: bool) -> tuple[Tensor, Tensor]:
    """Return the signs at both ends of a box; -1 and 1 where it has overflowed."""
    low, high = outward_ends(box) if sound else (box.lower, box.upper)
    return low.sign().nan_to_num(-1.0), high.sign().nan_to_num(1.0)


def sign_interval(ctx: Context, x: Interval) -> Interval:
    """Return the box between the signs at both ends; halves of them are exact."""
    low, high = _ends(x.box, ctx.sound)
    return Interval((low + high) / 2, (high - low) / 2, None if x.clean is None else x.clean.sign())


def sign_backward(ctx: Backward, coefficients: Tensor, x: Interval) -> Pulled:
    """Return no coefficients, and the constant of the signs at both ends."""
    low, high = _ends(x.box, ctx.sound)
    constant = dot(ctx, coefficients.clamp(min=0), low) + dot(ctx, coefficients.clamp(max=0), high)
    return Pulled((torch.zeros_like(coefficients),), constant - slack(ctx, coefficients, torch.ones_like(low), 2))


def is_undecided(box: Box) -> Tensor:
    """Return where a box contains numbers of different signs."""
    return box.lower.sign() != box.upper.sign()


RECORDS = (
    Operator("sign", sign_interval, (torch.sign, Tensor.sign), {}, sign_backward, needs_tighter_box=is_undecided),
)
