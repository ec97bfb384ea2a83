"""The stages of the verifier, by name.

To add a stage, add its name to `STAGES` in harness/config/settings.py. If it is a bound of cerdeq, nothing else is
needed; otherwise also add its record below.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from baselines import DATASETS
from cerdeq import LinfBall, margin_spec
from cerdeq.bounds import BOUNDS, Interval, lower_bounds
from harness.config.settings import BAB, CERTIFIED_BY_SEARCH, EvaluationSettings
from harness.evaluation.batch import Batch, StageResult
from harness.evaluation.branching import branch_and_bound, certificates

_IMAGES_OF_A_SLOW_STAGE = 20  # so that a kill loses little


@dataclass(frozen=True)
class Stage:
    """A stage of the verifier.

    run: returns what the stage finds of the undecided examples of a batch.
    slow: True if one image may take minutes; then batches and shards are small.
    """

    run: Callable[[Batch], StageResult]
    slow: bool = False


def images_at_once(settings: EvaluationSettings, usual: int) -> int:
    """Return how many images are evaluated before they are saved, which is `usual` unless a stage is slow."""
    slow = any(STAGES[stage].slow for stage in settings.stages)
    return min(usual, _IMAGES_OF_A_SLOW_STAGE) if slow else usual


def _bound(name: str, batch: Batch) -> StageResult:
    """Return lower bounds by one of cerdeq's bounds, with certificates if the settings ask for them."""
    config = batch.config

    def ask(examples: Tensor) -> Tensor:
        ball = LinfBall(batch.images[examples], config.eps)
        spec = margin_spec(batch.labels[examples], DATASETS[config.dataset].classes).to(batch.images)
        region = Interval(ball.center, ball.radius)
        network = batch.network
        return lower_bounds(network.program, region, spec, name, 0.0, narrow=network.program_float32).amin(1)

    lower = batch.ledger.numbers(name, ask, batch.undecided)
    wanted = config.evaluation.certificates and name in CERTIFIED_BY_SEARCH
    return StageResult(lower, batch.nan(), evidence=certificates(batch, lower > 0) if wanted else {})


STAGES = {name: Stage(partial(_bound, name)) for name in BOUNDS} | {BAB: Stage(branch_and_bound, slow=True)}
