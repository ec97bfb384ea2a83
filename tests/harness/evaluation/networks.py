"""Networks that tests evaluate, without folders."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from harness.data import load
from harness.evaluation.network import load_network, prepare_network
from harness.evaluation.taken_over import Answers
from harness.evaluation.verdicts import EvaluationResult, evaluate_images
from harness.settings import Evaluation
from harness.storage import folder

GOLDEN = Path(__file__).parents[1] / "golden"


def trained(name: str, count: int, **settings) -> tuple[nn.Module, Tensor, Tensor, Evaluation]:
    """Return the arguments of `evaluate` for a golden network."""
    config = folder.read_training(GOLDEN / name / folder.TRAINING).config
    (directory,) = folder.evaluation_folders(GOLDEN / name)
    test, model = load("digits").test_images(count), load_network(config, GOLDEN / name / folder.WEIGHTS)
    return model, test.images, test.labels, folder.read_evaluation(directory).config.replace(**settings)


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, evaluation: Evaluation, others: Sequence[Answers] = ()
) -> EvaluationResult:
    """Return the evaluation of images from the first one on."""
    network = prepare_network(model, evaluation.stages, 10)
    return evaluate_images(network, images, labels, 0, evaluation, others=others)
