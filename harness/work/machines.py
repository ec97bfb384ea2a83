"""The CPUs and GPUs of this machine or of a Ray cluster, and how many items of work fit on them."""

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from harness.common.errors import InputError, require
from harness.machine.device import best_device, count_cores

_DASHBOARD = ("aiohttp_cors", "colorful", "opencensus", "prometheus_client")  # what ray[default] alone installs


@dataclass(frozen=True)
class RayOptions:
    """How Ray runs items.

    cpu, gpu: what each item reserves; items with a fraction of a GPU share it.
    at_once: the most items that are started at a time; None for as many as fit, and one more that waits.
    address: of a running cluster; None starts one on this machine.
    dashboard: whether the Ray that is started has its dashboard.
    """

    cpu: int
    gpu: float
    at_once: int | None
    address: str | None = None
    dashboard: bool = False


def machines_at(ray_address: str | None) -> list[dict[str, float]]:
    """Return the "CPU" and "GPU" of this machine, or of each machine of a Ray cluster. Raises InputError."""
    if ray_address is not None:
        if "RAY_AUTH_TOKEN" not in os.environ and not (Path.home() / ".ray/auth_token").exists():
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the cluster asks for no token, or cannot be joined
        from harness.work import ray_connection  # here, since a finished sweep needs no Ray, which keeps that mode

        with ray_connection.connected_to_ray(ray_address):
            return ray_connection.machines_of_ray()
    gpus = torch.cuda.device_count() if best_device().type == "cuda" else 0
    return [{"CPU": count_cores(), "GPU": gpus}]


def check_dashboard() -> None:
    """Raise InputError if packages that Ray's dashboard needs are missing: Ray would say so after half a minute."""
    if missing := [name for name in _DASHBOARD if find_spec(name) is None]:
        raise InputError(f'--dashboard: needs {", ".join(missing)}: uv pip install "ray[default]"')


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


def share_machine(count: int, workers: int | None) -> RayOptions | None:
    """Return how so many items are done on this machine, one for each GPU or core; None for one at a time.

    workers: how many at a time, if that is asked for.
    """
    gpus = torch.cuda.device_count()
    at_once = min(count, workers or gpus or count_cores())
    gpu = 1 / math.ceil(at_once / gpus) if gpus and at_once else 0.0  # a worker's share is of one GPU alone
    return RayOptions(cpu=1, gpu=gpu, at_once=at_once) if at_once > 1 else None
