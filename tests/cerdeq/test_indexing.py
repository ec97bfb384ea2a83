"""Indices, chunks and splits: what moves the batch or is not constant is refused."""

import pytest
import torch
from oracles import Lambda, random_box

from cerdeq import bound
from cerdeq.bounds import BOUNDS, UnsupportedOperator

TWO = torch.tensor([0, 1])
MOVE_THE_BATCH = {
    "an image": lambda x: x[0],
    "images": lambda x: x[:1],
    "images by a list": lambda x: x[[0, 1]],
    "a new dimension first": lambda x: x[None],
    "every dimension from the end": lambda x: x[..., 0:2, :, :, :],
    "a list and a number": lambda x: x[:, 0, :, [0, 1]],
    "two lists": lambda x: x[:, TWO, :, TWO],
    "a list from the end": lambda x: x[..., TWO],
    "true": lambda x: x[:, True],
    "chunk": lambda x: x.chunk(2)[0],
    "split": lambda x: torch.split(x, 1, dim=-4)[0],
    "select": lambda x: x.select(0, 0),
    "narrow": lambda x: torch.narrow(x, 0, 0, 1),
    "index_select": lambda x: x.index_select(0, TWO),
    "nothing but the batch": lambda x: x.flatten(1)[:, 0],
}


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("name", MOVE_THE_BATCH)
def test_what_moves_the_batch_is_refused(name, method):
    model = Lambda(lambda module, x: torch.relu(MOVE_THE_BATCH[name](x))).eval()
    with pytest.raises((UnsupportedOperator, ValueError), match=r"the batch|one list beside slices|does not take"):
        bound(model, random_box(2, 2, 2, 2), method)


@pytest.mark.parametrize("method", BOUNDS)
def test_repeated_elements_add_up(method):
    """y = x_0 + x_0 - 2 x_0 is 0: the coefficients of all three copies come back to the same element."""
    model = Lambda(lambda module, x: x[:, [0, 0, 0]]).eval()
    lower, upper = bound(model, random_box(3, 4), method, torch.tensor([[[1.0, 1.0, -2.0]]]).double().expand(3, 1, 3))
    if method != "ibp":
        assert -1e-13 < lower.min() <= 0 <= upper.max() < 1e-13
