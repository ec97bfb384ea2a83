"""Provides small random networks, and properties of random boxes and constraints."""

import numpy as np
import torch
from torch import nn

from harness.common.errors import InputError
from harness.vnnlib.brackets import parse
from harness.vnnlib.version1 import property_of

INPUTS, HIDDEN, OUTPUTS = 2, 6, 3


def network_of(seed):
    """Return a network whose numbers are eighths, and its weights in NumPy."""
    random = np.random.default_rng(seed)
    weights = [random.integers(-8, 9, shape) / 8 for shape in [(HIDDEN, INPUTS), HIDDEN, (OUTPUTS, HIDDEN), OUTPUTS]]
    layers = [nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS)]
    for layer, weight, bias in zip(layers[::2], weights[::2], weights[1::2], strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(weight).float(), torch.tensor(bias).float()
    network = nn.Sequential(*layers).eval()
    network.input_shape = (INPUTS,)
    return network, weights


def run(network, points):
    with torch.no_grad():
        return network(torch.from_numpy(points)).numpy()


def property_text(random):
    """Return a property of random boxes and constraints, all numbers tenths: two boxes, conjunctions of up to four."""
    lines = [
        f"(declare-const {kind}_{n} Real)" for kind, count in (("X", INPUTS), ("Y", OUTPUTS)) for n in range(count)
    ]
    for n in range(INPUTS):
        low, high = sorted(random.integers(-12, 13, 2))
        lines += [f"(assert (>= X_{n} {low / 10}))", f"(assert (<= X_{n} {high / 10}))"]
    lines.append(f"(assert (or (<= X_0 {random.integers(-12, 13) / 10}) (>= X_0 {random.integers(-12, 13) / 10})))")
    cases = []
    for _ in range(random.integers(1, 4)):
        constraints = []
        for _ in range(random.integers(1, 5)):
            a, b = random.permutation(OUTPUTS)[:2]
            right = [f"Y_{b}", f"(+ (* {random.integers(-9, 10) / 10} Y_{b}) {random.integers(-9, 10) / 10})"]
            constraints.append(f"({random.choice(['<=', '>='])} Y_{a} {right[random.integers(2)]})")
        cases.append(f"(and {' '.join(constraints)})")
    return "\n".join([*lines, f"(assert (or {' '.join(cases)}))"])


def property_of_seed(seed):
    """Return a property of `property_text`; None if its boxes are empty."""
    try:
        return property_of(parse(property_text(np.random.default_rng(seed))))
    except InputError:
        return None
