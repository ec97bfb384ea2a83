"""Networks that tests evaluate, without folders."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from harness.config.training import Training
from harness.data import load
from harness.evaluation.network import load_network, prepare_network
from harness.evaluation.taken_over import Answers
from harness.evaluation.verdicts import EvaluationResult, evaluate_images
from harness.settings import Evaluation, Radius, Recipe
from harness.storage import folder

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIONS = {"cnn5": {}, "cerdeq": {"margin": 0.1, "gain": None}}
STAGES = ("ibp", "crown-ibp", "crown", "alpha-crown")


def trained(name: str, count: int, **settings) -> tuple[nn.Module, Tensor, Tensor, Evaluation]:
    """Return the arguments of `evaluate` for a golden network."""
    own = {"model": name, "options": OPTIONS[name], "width": 0.05, "train": Recipe(eps=Radius("1/12"))}
    config = Training(dataset="digits", method="ibp", seed=0, **own)
    test, model = load("digits").test_images(count), load_network(config, GOLDEN / name / folder.WEIGHTS)
    default = {"eps": Radius("1/12"), "stages": STAGES, "attack_steps": 5, "attack_restarts": 2}
    return model, test.images, test.labels, Evaluation(**{**default, **settings})


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, evaluation: Evaluation, others: Sequence[Answers] = ()
) -> EvaluationResult:
    """Return the evaluation of images from the first one on."""
    network = prepare_network(model, evaluation.stages, 10)
    return evaluate_images(network, images, labels, 0, evaluation, others=others)
