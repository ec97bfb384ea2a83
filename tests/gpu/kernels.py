"""List the kernels of a captured training step of CNN-7 by IBP, with their time, and what the step could reach.

uv run python tests/gpu/kernels.py OUT
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from harness.bench.steps import KINDS, TimedNetworks
from harness.machine.device import tf32

STEPS = 20


def main() -> None:
    out, device = Path(sys.argv[1]), torch.device("cuda")
    for batch_size in (128, 512):
        options = argparse.Namespace(dataset="cifar10", width=1.0, batch_size=batch_size)
        for kind in ("ibp eager", "ibp compiled", "ibp bf16 compiled"):
            step = TimedNetworks(options, device).step("cnn7", KINDS[kind])
            with tf32(device, enabled=True):
                for _ in range(3):
                    step()
                torch.cuda.synchronize()
                with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                    for _ in range(STEPS):
                        step()
                    torch.cuda.synchronize()
            averages = profiler.key_averages()
            table = averages.table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=90)
            (out / f"kernels-{kind.replace(' ', '-')}-{batch_size}.txt").write_text(table)
            print(f"{kind}, batch {batch_size}, {STEPS} steps\n{table}", flush=True)


if __name__ == "__main__":
    main()
