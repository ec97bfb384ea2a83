"""Counts what a training step costs on a GPU, on the pretended one: kernels, launches, bytes, FLOPs and a roofline.

    uv run python tests/pretended_gpu/pretended.py tests/pretended_gpu/count_costs.py cnn7 cerdeq

Compiling takes one to ten minutes a row, the first time; `--eager` leaves it out.
"""

import argparse
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from controls import counted, read_counters
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from harness.measure.timed_networks import TimedNetworks

EPS, RATE = 0.01, 5e-4
BANDWIDTH = 4.8e12  # bytes a second, of an H200
PEAKS = {"float32": 67e12, "TF32": 495e12, "bf16": 990e12}  # FLOPs a second, dense
SECONDS_A_KERNEL = 3e-6  # within a CUDA graph, however little the kernel does
EPOCH = 50_000  # images
NETWORKS = ("cnn7", "resnet9", "cerdeq", "mondeq")
METHODS = ("ibp", "crown-ibp")
ATTACKING = ("pgd", "sabr", "mtl-ibp")  # counted for cnn7


@dataclass
class Kernel:
    """What an operator's kernels do in one call: FLOPs of products, bytes read and written."""

    flops: int
    bytes: int
    launches: int
    in_loss: bool

    def seconds(self, peak: float) -> float:
        """Return how long it takes at least: what it computes, moves, or its launches."""
        return max(self.flops / peak, self.bytes / BANDWIDTH, self.launches * SECONDS_A_KERNEL)


@dataclass
class Cost:
    """Counts of one step.

    eager, captured, compiled: kernels. host: launches by the host of the captured step (eager, compiled).
    waits: synchronisations of all steps. kernels: of the eager step. fused: bytes of each kernel that Inductor makes.
    """

    network: str
    method: str
    eager: int = 0
    captured: int = 0
    compiled: int | None = None
    host: list[int] = field(default_factory=list)
    waits: int = 0
    kernels: list[Kernel] = field(default_factory=list)
    fused: list[int] = field(default_factory=list)

    def compiled_kernels(self) -> list[Kernel]:
        """Return the kernels of the compiled step: products, fused kernels, and what is not compiled."""
        unchanged = [kernel for kernel in self.kernels if kernel.flops or not kernel.in_loss]
        return unchanged + [Kernel(0, size, 1, True) for size in self.fused]


class Recorded(TorchDispatchMode):
    """Records every operator that launches a kernel. in_loss: set while a loss is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.in_loss = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = read_counters()["launches"]
        result = function(*args, **(kwargs or {}))
        launches = read_counters()["launches"] - before
        if launches:
            size = _bytes_touched((args, kwargs, result))
            for argument, value in zip(function._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    size += _bytes_touched(value)  # read and written
            formula = flop_registry.get(function._overloadpacket)
            flops = formula(*args, **(kwargs or {}), out_val=result) if formula else 0
            in_backward = torch._C._current_graph_task_id() != -1
            self.kernels.append(Kernel(flops, size, launches, self.in_loss or in_backward))
        return result


def _bytes_touched(values: Any) -> int:
    """Return the bytes of the tensors in `values`; what is broadcast or occurs twice counts once."""
    tensors = {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}.values()
    return sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors)


def recorded_kernels(stepper: Any, choices: tuple[Tensor, ...], method: str) -> list[Kernel]:
    """Return the kernels of an eager step. The method has no attack: its gradients would count as the loss's."""
    loss = stepper.losses[method]
    with Recorded() as record:

        def marked(*arguments: Any) -> Any:
            record.in_loss = True
            try:
                return loss(*arguments)
            finally:
                record.in_loss = False

        stepper.losses = {method: marked}
        stepper.eager(choices, method)
    stepper.losses = {method: loss}
    return record.kernels


@contextmanager
def fused_kernels() -> Iterator[list[int]]:
    """Yield a list that receives the bytes read and written by each kernel that Inductor generates in the block."""
    import torch._functorch.config as autograd_settings
    import torch._inductor.config as settings
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import ExternKernelSchedulerNode

    sizes: list[int] = []
    compile_graph = GraphLowering.compile_to_module

    def compile_and_count(graph: Any) -> Any:
        result = compile_graph(graph)
        made = [node for node in graph.scheduler.nodes if not isinstance(node, ExternKernelSchedulerNode)]
        sizes.extend(size for node in made if (size := node.get_read_write_buffers_sizes()))
        return result

    GraphLowering.compile_to_module = compile_and_count
    try:
        # A graph of the cache would not be counted.
        with settings.patch(fx_graph_cache=False), autograd_settings.patch(enable_autograd_cache=False):
            yield sizes
    finally:
        GraphLowering.compile_to_module = compile_graph


def captured_kernels(stepper: Any, choices: tuple[Tensor, ...]) -> tuple[int, int, int]:
    """Return the kernels in a step's graph, launches by the host and synchronisations of its replay."""
    stepper(choices, EPS, RATE)
    assert stepper.failed_optimisations == [], stepper.failed_optimisations
    in_graph = read_counters()["captured"]
    with counted() as counts:
        stepper(choices, EPS, RATE)
    return in_graph, counts["launches"], counts["synchronisations"]


def cost_of(networks: TimedNetworks, network: str, method: str, compiles: bool) -> Cost:
    """Count the steps of a network by a method, eager, captured and compiled."""
    cost = Cost(network, method)
    stepper: Any = networks.step(network, method, {}).func
    stepper.captured = False
    stepper(networks.batch, EPS, RATE)
    with counted() as counts:
        stepper(networks.batch, EPS, RATE)
    cost.eager, cost.waits = counts["launches"], counts["synchronisations"]
    if method in METHODS:
        cost.kernels = recorded_kernels(stepper, networks.batch, method)
    for compiled in (False, True)[: 1 + compiles]:
        del stepper  # its graph's memory is the host's here
        gc.collect()
        torch.cuda.empty_cache()
        stepper = networks.step(network, method, {}, compiled=compiled).func
        with fused_kernels() as cost.fused:
            in_graph, launches, waits = captured_kernels(stepper, networks.batch)
        cost.captured, cost.compiled = (cost.captured, in_graph) if compiled else (in_graph, None)
        cost.host.append(launches)
        cost.waits += waits
    return cost


def table(header: str, rows: list[list[object]]) -> str:
    """Return a table in Markdown. header: its columns, divided by |."""
    lines = [[cell.strip() for cell in header.split("|")], ["---"] * (header.count("|") + 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def counts_table(costs: list[Cost]) -> str:
    """Return the kernels and launches of each cost."""
    rows: list[list[object]] = [
        [
            cost.network, cost.method, cost.eager, cost.captured,
            "" if cost.compiled is None else cost.compiled, " / ".join(map(str, cost.host)), cost.waits,
        ]
        for cost in costs
    ]  # fmt: skip
    header = "network | method | eager | captured | compiled and captured | launches by the host | synchronisations"
    return table(header, rows)


def roofline_table(costs: list[Cost], batch: int) -> str:
    """Return what bounds the eager and the compiled steps of each cost, captured, on an H200."""
    rows: list[list[object]] = []
    for cost in costs:
        kinds = {"eager": cost.kernels}
        if cost.compiled is not None:
            kinds["compiled"] = cost.compiled_kernels()
        for kind, kernels in kinds.items() if cost.kernels else ():
            launches = cost.compiled if kind == "compiled" else cost.captured
            rows.append([cost.network, cost.method, kind, *_roofline(kernels, launches or 0, batch)])
    header = (
        "network | method | step | TFLOP | GB | products GB | arithmetic, ms: float32 / TF32 / bf16 | memory, ms"
        " | launches, ms | sum over kernels, ms: float32 / TF32 | images/s: float32 / TF32 | 160 epochs, h"
    )
    return table(header, rows)


def _roofline(kernels: list[Kernel], launches: int, batch: int) -> list[object]:
    flops, size = sum(kernel.flops for kernel in kernels), sum(kernel.bytes for kernel in kernels)
    products = sum(kernel.bytes for kernel in kernels if kernel.flops)
    arithmetic = [f"{1e3 * flops / peak:.2f}" for peak in PEAKS.values()]
    peaks = (PEAKS["float32"], PEAKS["TF32"])
    seconds = [sum(kernel.seconds(peak) for kernel in kernels) for peak in peaks]
    return [
        f"{flops / 1e12:.2f}", f"{size / 1e9:.1f}", f"{products / 1e9:.1f}", " / ".join(arithmetic),
        f"{1e3 * size / BANDWIDTH:.2f}", f"{1e3 * launches * SECONDS_A_KERNEL:.2f}",
        " / ".join(f"{1e3 * time:.2f}" for time in seconds),
        " / ".join(f"{batch / time:,.0f}" for time in seconds),
        " / ".join(f"{160 * EPOCH * time / batch / 3600:.2f}" for time in seconds),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *ATTACKING], help="attacking ones: of cnn7 alone")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.set_defaults(dataset="cifar10", width=1.0)
    options = parser.parse_args()
    os.environ.setdefault("PRETEND_TRUE", "1")  # assertions on the device hold
    networks, costs = TimedNetworks(options, torch.device("cuda")), []
    for network in options.networks:
        for method in options.methods:
            if method in METHODS or network == "cnn7":
                costs.append(cost_of(networks, network, method, not options.eager))
                print(counts_table(costs[-1:]).splitlines()[-1], flush=True)
    print("", counts_table(costs), "", roofline_table(costs, options.batch_size), sep="\n")


if __name__ == "__main__":
    main()
