"""Networks that are easily read as another function: refused, or bounded soundly, by the certifier and the checker."""

import numpy as np
import pytest
import torch
from readings import BOTH, CERTIFIER, READINGS

from cerdeq import Box as TorchBox
from cerdeq import bound, margin_spec
from harness.checker.bounds.boxes import Box
from harness.checker.bounds.linear import lower_bounds
from harness.checker.bounds.maps import UnknownLayerError
from harness.checker.bounds.network import read_network
from harness.checker.bounds.regions import tight_region

EPS, LABEL = 0.1, 1


def margins_by_certifier(model, x, radius):
    """Return lower and upper bounds of margins of images x over balls, or why the network is refused."""
    spec = margin_spec(torch.full((len(x),), LABEL), 3).double()
    try:
        return bound(model, TorchBox(x, torch.full_like(x, radius)), "crown-ibp", spec)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: the model itself fails, one image alone
        return str(error)


def margins_by_checker(model, x, radius):
    try:
        network = read_network(model)
        network.refuse_other_logits(model, x.numpy())
    except (UnknownLayerError, RuntimeError, ValueError) as error:  # ValueError: shapes that do not fit
        return str(error)
    spec, ends = np.delete(np.eye(3)[LABEL] - np.eye(3), LABEL, 0), []
    for image in x.numpy():
        region = tight_region(network, Box(image[None], np.full_like(image[None], radius)))
        box = network.margins(region.values, np.array([LABEL]))
        low, high = np.split(lower_bounds(network, region, {len(network.steps): np.concatenate([spec, -spec])}, {}), 2)
        ends.append((np.maximum(low, box.lower[0]), np.minimum(-high, box.upper[0])))
    return tuple(torch.from_numpy(np.stack(side)) for side in zip(*ends, strict=True))


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: reading.name)
def test_networks_are_read_as_they_are_or_refused(reading):
    torch.manual_seed(1)
    x = torch.rand(2, *reading.shape).double()
    for margins_by, bounds_it in ((margins_by_certifier, (BOTH, CERTIFIER)), (margins_by_checker, (BOTH,))):
        for radius in (0.0, EPS):
            result = margins_by(reading.build(), x, radius)
            assert isinstance(result, str) != (reading.outcome in bounds_it), (margins_by, result)
            if isinstance(result, str):
                continue
            lower, upper = result
            spec = margin_spec(torch.full((2,), LABEL), 3).double()
            points = x + radius * torch.randn(50, *x.shape).double().sign()
            logits = reading.build()(points.flatten(0, 1)).unflatten(0, points.shape[:2])
            margins = (spec @ logits[..., None])[..., 0]
            assert (lower <= margins + 1e-9).all() and (margins <= upper + 1e-9).all()
            assert radius > 0 or (upper - lower).max() < 1e-8


def test_a_global_hook_is_refused():
    model = next(reading for reading in READINGS if reading.outcome == BOTH).build()
    x = torch.rand(2, 2, 4, 4).double()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: 2 * output)
    try:
        assert "global forward hooks" in margins_by_certifier(model, x, EPS)
        assert "global forward hooks" in margins_by_checker(model, x, EPS)
    finally:
        hook.remove()


def test_an_own_forward_of_the_whole_network_is_refused():
    model = next(reading for reading in READINGS if reading.outcome == BOTH).build()
    plain, x = model.forward, torch.rand(2, 2, 4, 4).double()
    for name in ("forward", "_call_impl"):
        setattr(model, name, lambda images: 2 * plain(images))
        for margins_by in (margins_by_certifier, margins_by_checker):
            assert "define forward in the class" in margins_by(model, x, EPS)
        delattr(model, name)
