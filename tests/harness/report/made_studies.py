"""A sweep with made-up results of every kind that pages and figures show."""

from itertools import product

import numpy as np
import pandas as pd

from harness.common import names
from harness.common.radius import Radius
from harness.config.training import Training
from harness.evaluation.metrics import final_metrics
from harness.evaluation.verdicts import EvaluationResult
from harness.leaderboard.table import build_leaderboard
from harness.report.figures.section_data import SectionData
from harness.settings import Evaluation, Recipe
from harness.storage import folder, training_progress
from harness.storage.records import Result, make_record

STAGES = ("ibp", "crown-ibp")
EVALUATION = Evaluation(eps=Radius("1/16"), stages=STAGES)
IMAGES = 200
LAYERS = {"cnn5": 3, "cnn7": 5, "cerdeq": 4}


def add(
    sweep,
    certified,
    *,
    model="cnn5",
    method="ibp",
    seed=0,
    epochs=3,
    warnings=(),
    profile="full",
    is_main=True,
    eps="1/16",
    evaluation=(),
    **config,
):
    """A finished evaluation of a network; `certified`: which of its images are, the others are misclassified or unknown
    by halves.

    is_main: as in study.json. eps: of the evaluation; training has 1/16. evaluation: its changed settings.
    """
    train = config.pop("train", Recipe())
    train = train.replace(eps=None if "checkpoint" in config else train.eps or Radius("1/16"))
    config = Training(dataset="digits", model=model, method=method, seed=seed, train=train, **config)
    record, evaluation = make_record(config, "data"), EVALUATION.replace(eps=Radius(eps), **dict(evaluation))
    network_dir = folder.network_dir(sweep, record.key)
    folder.begin_network(network_dir, record)
    path = folder.begin_evaluation(network_dir, evaluation)
    if is_main:
        folder.add_to_study(network_dir, profile, evaluation)
    certified = np.asarray(certified)
    wrong = (~certified).cumsum() <= (~certified).sum() // 2
    kinds = np.where(certified, 0, np.where(wrong, 1, 2))
    table = pd.DataFrame({names.INDEX: range(len(certified)), names.LABEL: 3})
    table[names.VERDICT] = np.array([names.CERTIFIED, names.MISCLASSIFIED, names.UNKNOWN])[kinds]
    table[names.STAGE] = np.array(["ibp", "clean", "none"])[kinds]
    table[names.WIDTH] = np.linspace(0.1, 3, len(table))
    table.to_parquet(path / folder.VERDICTS)
    if not (network_dir / folder.EPOCHS).exists():
        for epoch in range(epochs):
            training_progress.write_epoch(network_dir, _epoch(model, epoch))
    layers = _widths(model, 0.5 + seed / 10)
    for number, layer in enumerate(_names(model), start=1):
        layers |= {names.layer_unstable(layer): 10.0 * number, names.layer_inactive(layer): 5.0}
    seconds = {stage: float(number) for number, stage in enumerate(("clean", "attack", *STAGES), start=1)}
    measured = final_metrics(EvaluationResult(table, layers, 0.0, 1.0, seconds, {}), STAGES)
    measured |= {names.PARAMETERS: 1000.0 * LAYERS[model], names.TRAIN_SECONDS: 10.0, names.EVALUATION_SECONDS: 10.0}
    measured |= {names.RHO_BOUND: 0.9} if model == "cerdeq" else {}
    folder.write_trained(network_dir, Result(record.key, {}, {}, {}, []))
    key = f"{record.key}/{evaluation.key}"
    folder.write_result(path, Result(key, measured, {"torch": "2.11"}, {}, list(warnings)))
    return path


def _epoch(model, epoch):
    scale = 100.0 / (1 + epoch)
    widths = _widths(model, scale) | {names.BOUND_WIDTH: scale * 50, names.BOUND_WIDTH_RELATIVE: scale}
    row = {names.EPOCH: epoch, names.TRAIN_EPS: epoch / 48}
    row |= {names.in_training(name): value for name, value in widths.items()}
    if epoch:
        row |= {names.TRAIN_LOSS: 2 / epoch, names.TRAIN_STANDARD_ERROR: 20.0 / epoch}
        row |= {names.TRAIN_CERTIFIED_ERROR: 40.0 / epoch}
    return row


def _names(model):
    return [*(f"relu{number}" for number in range(1, LAYERS[model])), "relu_linear"]


def _widths(model, scale):
    return {names.layer_width(layer): scale * 3.0**number for number, layer in enumerate(_names(model))}


def right(count, seed=0):
    """Which of the images are certified: so many, chosen by the seed."""
    return np.random.default_rng(seed).permutation(IMAGES) < count


def make(sweep):
    """Two explicit networks and CerDEQ, by two methods, three seeds."""
    for seed in range(3):
        for model, count in (("cnn5", 120), ("cnn7", 100), ("cerdeq", 140)):
            for method, depth, more in (("ibp", 5, seed * len(model)), ("crown-ibp", 3, -5 - seed)):
                options = {"depth": depth} if model == "cnn5" else {}
                add(sweep, right(count + more, seed), model=model, method=method, seed=seed, options=options)
    return sweep


def make_many(sweep, rows, seeds, images=1000, epochs=20):
    """So many rows, of networks, methods and learning rates, the later ones better."""
    kinds = list(product(LAYERS, ("ibp", "crown-ibp", "sabr", "mtl-ibp")))
    for row, seed in product(range(rows), range(seeds)):
        rate, (model, method) = 1e-4 * (1 + row // len(kinds)), kinds[row % len(kinds)]
        draw = np.random.default_rng([row, seed])
        certified = draw.permutation(images) < images * (0.3 + 0.6 * row / rows) + draw.integers(images // 50)
        train = Recipe(learning_rate=rate)
        add(sweep, certified, model=model, method=method, seed=seed, epochs=epochs, train=train)
    return sweep


def section_of(sweep):
    """What figures draw: the first section of a sweep's page."""
    sections = build_leaderboard(sweep).sections
    return SectionData(sections[0], sections)
