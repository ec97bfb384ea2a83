"""Check what a trial says of its network: the parametrisation and margin of each recurrent W, and some metrics."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.nn.utils import parametrize

from baselines import build
from cerdeq.equilibrium import FixedPoint, fold
from cerdeq.equilibrium.weights import Monotone, NonNegative, Orthogonal, Parametrisation
from harness.checker.bounds.boxes import Array
from harness.checker.bounds.equilibrium import rate
from harness.common import names
from harness.storage import folder
from harness.sweep.trial_config import TrialConfig

_OF_EQUILIBRIA = "equilibrium/"
_NEAR = 1e-3  # of metrics, relative to 1 + the value: bounds of rho(|W|) end their iterations at different points
_SLACK = 1e-4  # of bounds that training computes in float32
_EQUAL, _SHARE, _ZERO = 0.02, 0.5, 0.01  # of singular values, relative to the largest one: see `_has_orthogonal_rows`


def check_labels(config: TrialConfig, weights: Mapping[str, Array], metrics: Mapping[str, float | None]) -> list[str]:
    """Check a network's stored weights, by their names in the file, and its metrics against the trial's config."""
    model = build(config.model, config.dataset, config.width, **config.options)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, FixedPoint)}
    own = {name: own for name, layer in layers.items() if (own := _parametrisations(layer)) is not None}
    stored = {name: weights[f"{name}.weight"].astype(np.float64) for name in layers}
    problems = [
        f"{folder.WEIGHTS}: {name}.weight: {why}"
        for name, parametrisations in own.items()
        for why in _contradictions(parametrisations, stored[name])
    ]
    expected = {names.MARGIN: min(kind.margins[1] for kind, *_ in own.values())} if own else {}
    if layers:
        expected[names.RHO_BOUND] = max(rate(weight) for weight in stored.values())
    if config.is_trained_elsewhere:
        fold(model)  # such trials count the parameters of the file
    expected[names.PARAMETERS] = sum(parameter.numel() for parameter in model.parameters())
    for name, value in expected.items():
        recorded = metrics.get(name)
        if recorded is not None and not abs(recorded - value) <= _NEAR * (1 + value):
            problems.append(f"{folder.RESULT}: {name}: recorded {recorded}, of this network {value:.6g}")
    others = [name for name in metrics if name.startswith(_OF_EQUILIBRIA) and not layers]
    return problems + [f"{folder.RESULT}: {name}: recorded, but the network has no equilibrium" for name in others]


def _parametrisations(layer: FixedPoint) -> Any:
    """Return the parametrisations of an untrained layer's W; None if it has none of ours."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    own: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    return own if isinstance(own[0], Parametrisation) else None


def _contradictions(parametrisations: Any, weight: Array) -> list[str]:
    """Return what contradicts an untrained layer's parametrisation in its trained W [C, C, ...]."""
    kind, groups = parametrisations[0], len(weight) // parametrisations.original.shape[1]
    matrix, limit = np.abs(weight).reshape(*weight.shape[:2], -1).sum(2), 1 - kind.margins[1]
    size = float(np.abs(np.linalg.eigvals(matrix)).max())
    problems = []
    if isinstance(kind, Monotone):
        size = float(np.linalg.eigvalsh((matrix + matrix.T) / 2).max())
    if not size <= limit * (1 + _SLACK):
        problems.append(f"the spectral radius of |W| is {size:.4f}, and the margin allows {limit:.4f}")
    if isinstance(kind, NonNegative) and (weight < 0).any():
        problems.append(f"{int((weight < 0).sum())} entries are below 0, and the parametrisation is nonnegative")
    has_one_gain = kind.gain_logit is None or kind.gain_logit.dim() == 0
    if isinstance(kind, Orthogonal) and has_one_gain and not _has_orthogonal_rows(weight, groups):
        problems.append("the rows are not orthogonal, and the parametrisation is")
    return problems


def _has_orthogonal_rows(weight: Array, groups: int) -> bool:
    """Return whether W is block diagonal, and most singular values of its blocks equal the largest one.

    All are equal but for rows that training has made nearly dependent; of another W, hardly two are.
    """
    size = len(weight) // groups
    blocks = weight.reshape(groups, size, groups, size, -1).swapaxes(1, 2).copy()
    own = np.arange(groups)
    values = np.linalg.svd(blocks[own, own].reshape(groups, size, -1), compute_uv=False).ravel()
    large = values[values > _ZERO * values.max()]
    blocks[own, own] = 0
    return not values.any() or (not blocks.any() and bool((large >= (1 - _EQUAL) * values.max()).mean() >= _SHARE))
