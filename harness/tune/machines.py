"""What the machines have, and how many items they do at a time."""

import torch

from harness.common.errors import require
from harness.machine.device import best_device, count_cores


def machines_at(ray_address: str | None) -> list[dict[str, float]]:
    """Return the "CPU" and "GPU" of this machine, or of each machine of a Ray cluster. Raises InputError."""
    if ray_address is not None:
        from harness.tune.ray_connection import machines_of_cluster  # here, since a finished sweep needs no Ray

        return machines_of_cluster(ray_address)
    gpus = torch.cuda.device_count() if best_device().type == "cuda" else 0
    return [{"CPU": count_cores(), "GPU": gpus}]


def check_fits(machines: list[dict[str, float]], cpu: int, gpu: float) -> None:
    """Raise SettingError unless a machine has what an item reserves: Ray would wait for it for ever."""
    most = max((machine["GPU"] for machine in machines), default=0)
    require("resources.gpu", gpu, gpu <= most, f"at most {most:g}, the GPUs of one machine")
    most = max((machine["CPU"] for machine in machines if machine["GPU"] >= gpu), default=0)
    beside = f" with {gpu:g} GPU" if gpu else ""
    require("resources.cpu", cpu, cpu <= most, f"at most {most:g}, the CPUs of one machine{beside}")


def count_fitting(machines: list[dict[str, float]], cpu: int, gpu: float) -> int:
    """Return how many items that reserve these CPUs and GPUs the machines do at a time."""
    needs = [(name, count) for name, count in (("CPU", cpu), ("GPU", gpu)) if count]
    return sum(min(int(machine[name] / count) for name, count in needs) for machine in machines)
