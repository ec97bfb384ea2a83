"""Do items of work one after the other in this process, or side by side under Ray."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from harness.common.errors import error_line
from harness.machine.freed_memory import free_memory
from harness.tune.items import Item, Items, Listener, Work
from harness.tune.machines import RayOptions


class FailedFast(Exception):  # noqa: N818
    """An item has failed, and no other is wanted: a listener raises it under --fail-fast."""


def run_items(
    items: Items, work: Work, listener: Listener, ray: RayOptions | None, directory: Path | None = None
) -> bool:
    """Do items under Ray or, without its options, in this process; return False if `FailedFast` has ended that.

    An item that fails ends no other one. directory: where Ray writes what it knows, if that is to stay. Raises as
    `run_on_ray` does.
    """
    try:
        if ray is None:
            while (item := items.take()) is not None:
                _do_here(items, item, work, listener)
        else:
            if "harness.tune.ray_tune" not in sys.modules:
                listener.on_text("connects to Ray" if ray.address else "loads Ray and starts it: about 15 s")
            from harness.tune.ray_tune import run_on_ray  # here, since it takes seconds

            run_on_ray(items, work, listener, ray, directory)
    except FailedFast:
        listener.on_text("a network failed: the others are stopped")
        return False
    return True


def _do_here(items: Items, item: Item, work: Work, listener: Listener) -> None:
    error, result = None, dict[str, Any]()
    listener.on_start(item)
    try:
        result = work(item, partial(listener.on_report, item))
    except Exception as cause:
        error = error_line(cause)
    free_memory()
    items.end(item)
    listener.on_end(item, error, result)
