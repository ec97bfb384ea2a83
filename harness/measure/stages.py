"""What judging costs: the attack and each of the verifier's bounds, on an untrained network."""

import argparse
import copy
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import BOUNDS, Interval, lower_bounds, trace
from cerdeq.bounds.narrow import in_float32
from cerdeq.equilibrium import fold
from harness.attacks.pgd import worst_point
from harness.config.settings import EvaluationSettings
from harness.evaluation.verdicts import searcher
from harness.measure.bench import Bench
from harness.measure.machine import synchronise
from harness.training.batch_norm import recompute_statistics

_EPS = Fraction(2, 255)
_ATTACK_STEPS = 10
_EXAMPLES, _OF_DEAR = 50, 1  # how many are timed; of crown and alpha-crown, on a CPU


def evaluation(options: argparse.Namespace, bench: Bench, peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Seconds an example of each network: a 10-step attack from one start, and each bound alone, as judging asks it.

    Hardly an example is proved: these are prices of what is left open to the end.
    """
    rows = []
    for name in options.models:
        model = bench.model(name)
        recompute_statistics(model, bench.images[: 4 * options.batch_size], options.batch_size)
        fold(model.eval())
        exact = copy.deepcopy(model).double()
        for stage in ("attack", *BOUNDS):
            dear = bench.device.type == "cpu" and "crown" in stage and stage != "crown-ibp"
            count = _OF_DEAR if dear else _EXAMPLES
            x, labels = bench.images[:count].double() / 255, bench.labels[:count]
            action = _attack(model, x, labels) if stage == "attack" else _bound(exact, x, labels, stage, bench)
            started = time.perf_counter()
            action()
            synchronise(bench.device)
            seconds = (time.perf_counter() - started) / count
            rows.append({"network": name, "stage": stage, "s an example": seconds, "examples": count})
    return rows


def _attack(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], object]:
    settings = EvaluationSettings(attack="margin", attack_steps=_ATTACK_STEPS, attack_restarts=1)
    return partial(worst_point, searcher(model), x.float(), labels, _EPS, settings, 0, torch.arange(len(x)))


def _bound(model: nn.Module, x: Tensor, labels: Tensor, stage: str, bench: Bench) -> Callable[[], object]:
    ball, spec = LinfBall(x, _EPS), margin_spec(labels, bench.info.classes).to(x)
    linear, region = BOUNDS[stage].linear, Interval(ball.center, ball.radius)
    narrow = in_float32(model, linear)
    return partial(lower_bounds, trace(model, linear), region, spec, stage, target=0.0, narrow=narrow)
