"""Counts the kernels and launches of a training step on a GPU, on the pretended one.

    uv run python tests/pretended_gpu/pretended.py tests/pretended_gpu/count_costs.py cnn7 cerdeq

Compiling takes one to ten minutes a row, the first time; `--eager` leaves it out.
"""

import argparse
import gc
import os

import torch
from controls import counted, read_counters

from harness.bench.steps import StepKind, TimedNetworks

EPS, RATE = 0.01, 5e-4
NETWORKS = ("cnn7", "resnet9", "cerdeq", "mondeq")
METHODS = ("ibp", "crown-ibp")
ATTACKING = ("pgd", "sabr", "mtl-ibp")  # counted for cnn7
TITLES = ["network", "method", "eager", "captured", "compiled and captured", "host launches", "waits"]


def captured_kernels(stepper, choices) -> tuple[int, int, int]:
    """Return the kernels in a step's graph, launches by the host and synchronisations of its replay."""
    stepper(choices, EPS, RATE)
    in_graph = read_counters()["captured"]
    with counted() as counts:
        stepper(choices, EPS, RATE)
    return in_graph, counts["launches"], counts["synchronisations"]


def count_step(networks: TimedNetworks, network: str, method: str, compiles: bool) -> list[object]:
    """Return a row of the table: the counts of a network's step by a method, eager, captured and compiled."""
    stepper = networks.stepper(network, StepKind(method, {}))
    stepper.captured = False
    stepper(networks.batch, EPS, RATE)
    with counted() as counts:
        stepper(networks.batch, EPS, RATE)
    kernels, host, waits = [], [], counts["synchronisations"]
    for compiled in (False, True)[: 1 + compiles]:
        del stepper  # its graph's memory is the host's here
        gc.collect()
        torch.cuda.empty_cache()
        stepper = networks.stepper(network, StepKind(method, {}, compiled=compiled))
        in_graph, launches, more_waits = captured_kernels(stepper, networks.batch)
        kernels.append(in_graph)
        host.append(launches)
        waits += more_waits
    captured, compiled_kernels = [*kernels, ""][:2]
    return [network, method, counts["launches"], captured, compiled_kernels, " / ".join(map(str, host)), waits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *ATTACKING], help="attacking ones: of cnn7 alone")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.set_defaults(dataset="cifar10", width=1.0)
    options = parser.parse_args()
    os.environ.setdefault("PRETEND_TRUE", "1")  # assertions on the device hold
    networks = TimedNetworks(options, torch.device("cuda"))
    print(f"| {' | '.join(TITLES)} |", "| --- " * len(TITLES) + "|", sep="\n")
    for network in options.networks:
        for method in options.methods:
            if method in METHODS or network == "cnn7":
                row = count_step(networks, network, method, not options.eager)
                print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
