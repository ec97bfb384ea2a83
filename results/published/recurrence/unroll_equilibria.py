"""How many steps of its recurrence does a trained equilibrium network use?

    python results/published/recurrence/unroll_equilibria.py results/recurrence --data-dir DIR

In place of each equilibrium z = relu(W z + h), K steps from z = relu(h): 0 steps are W = 0, many the equilibrium.
The table has a row for each network of the sweep that has equilibria: rho(|W|) by its proved bound, then the standard
error and the certified error by IBP of the explicit networks with 0, 1, 2, ... steps, in percent of the first test
images.
"""

import argparse
import copy
import os
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from baselines.tied import Unrolled
from cerdeq.equilibrium import FixedPoint, contraction, replace_fixed_points
from harness.common.terminal import new_console, print_table
from harness.data import load
from harness.evaluation.ibp import count_without_attack
from harness.evaluation.network import load_network
from harness.storage import folder

STEPS = (0, 1, 2, 3, 5, 10, 20)


def unroll(layer: FixedPoint, steps: int) -> nn.Module:
    """Return the module from h, [B, N] of a dense W or [B, C, H, W] of a convolution, to z after so many steps."""
    outputs, inputs, *kernel = layer.weight.shape
    recurrence: nn.Module = nn.Linear(inputs, outputs, bias=False)
    if kernel:
        recurrence = nn.Conv2d(inputs, outputs, kernel, padding=kernel[0] // 2, bias=False)
    recurrence.weight = nn.Parameter(layer.weight.detach())
    return Unrolled(nn.Identity(), recurrence, steps)


def errors_of(network: nn.Module, steps: int, x: Tensor, labels: Tensor, eps: Fraction, classes: int) -> str:
    """Return 'standard / certified' in percent of a copy of the network with so many steps, in place of equilibria."""
    unrolled = copy.deepcopy(network)
    replace_fixed_points(unrolled, lambda layer: unroll(layer, steps))
    pairs = zip(x.split(500), labels.split(500), strict=True)
    counts = torch.tensor([count_without_attack(unrolled, *pair, eps, classes) for pair in pairs])
    standard, certified = (100 * (1 - counts.sum(0) / len(x))).tolist()
    return f"{standard:.2f} / {certified:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="results/<sweep>")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("CERDEQ_DATA", "data"))
    parser.add_argument("--images", type=int, default=10_000, help="how many of the first test images")
    options = parser.parse_args()
    rows = []
    for network_dir in folder.network_folders(options.directory):
        config = folder.read_training(network_dir / folder.TRAINING).config
        if not (network_dir / folder.TRAINED).exists():
            continue
        network = load_network(config, network_dir / folder.WEIGHTS)
        rates = [contraction(layer.weight).rate for layer in network.modules() if isinstance(layer, FixedPoint)]
        if not rates:
            continue
        test = load(config.data_source, options.data_dir).test
        x, labels = test.images[: options.images].double() / 255, test.labels[: options.images]
        eps = folder.main_evaluation(network_dir).eps
        errors = [errors_of(network, steps, x, labels, eps, config.data_info.classes) for steps in STEPS]
        rows.append([config.label, f"{max(rates):.3f}", *errors])
    columns = ["network", "rho bound", *(f"{steps} steps" for steps in STEPS)]
    print_table(new_console(), columns, sorted(rows))


if __name__ == "__main__":
    main()
