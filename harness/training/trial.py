"""One trial from config to result: train, fold, save, judge. Needs neither Ray nor MLflow nor pydantic."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from baselines import build
from cerdeq.equilibrium import fold
from harness import folder, names
from harness.data import Data, load
from harness.environment import describe_environment
from harness.evaluation.equilibria import recurrence_report
from harness.evaluation.verdicts import Judgement, judge
from harness.settings import SettingError, TrialConfig
from harness.training.loop import train
from harness.training.monitor import parametrised

_COLLAPSED = 0.99


def run_trial(
    config: TrialConfig,
    directory: Path,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    data_dir: str | None = None,
) -> folder.TrialResult:
    """Train and evaluate `config` in its folder `directory`, going on from the checkpoint there.

    report: called with each epoch's row. data_dir: as --data-dir. A finished folder's result is returned as it is.
    Raises SettingError where the folder holds another trial, DataError, NonFiniteLossError and SoundnessError; any
    error in training or evaluation also leaves failure.json.
    """
    directory = Path(directory)
    data = load(config.dataset, data_dir)
    trial = folder.make_trial(config, data.fingerprint)
    folder.claim(directory, trial)
    finished = folder.read_result(directory)
    if finished is not None:
        return finished
    (directory / folder.FAILURE).unlink(missing_ok=True)
    try:
        result = _run(trial, directory, data, report)
    except Exception as error:
        folder.write_failure(directory, error)
        raise
    folder.write_result(directory, result)
    return result


def load_network(config: TrialConfig, weights: Path) -> nn.Sequential:
    """The trained network whose folded weights lie in a safetensors file: float64, in evaluation mode."""
    model = build(config.model, config.dataset, config.width, **config.options)
    fold(model)
    model.load_state_dict(load_file(weights))
    return model.double().eval()


def _run(
    trial: folder.Trial, directory: Path, data: Data, report: Callable[[dict[str, Any]], None]
) -> folder.TrialResult:
    config = trial.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, held_out = data.training_images(config.train_images, config.validation_images)
    judged = held_out or data.test_images(config.evaluation.test_images)
    if len(training.images) < config.train.batch_size:
        raise SettingError("batch_size", config.train.batch_size, f"at most the {len(training.images)} training images")
    trained = train(config, training.images, training.labels, directory, device, report)
    before_folding = parametrised(trained)
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    fold(trained.eval())
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    folder.write_atomically(directory / folder.WEIGHTS, lambda path: save_file(state, path))

    started = time.perf_counter()
    model = load_network(config, directory / folder.WEIGHTS).to(device)
    images, labels = judged.images.to(device), judged.labels.to(device)
    judgement = judge(model, images, labels, config)
    folder.write_atomically(directory / folder.VERDICTS, judgement.verdicts.to_parquet)
    metrics = {
        **_rates(judgement, config.evaluation.methods),
        **{names.layer_width(layer): width for layer, width in judgement.layers.items()},
        **before_folding,
        **recurrence_report(model, images, labels, config),
        names.PARAMETERS: parameters,
        names.TRAIN_SECONDS: sum(row.get(names.TRAIN_EPOCH_SECONDS, 0.0) for row in folder.read_epochs(directory)),
        names.EVALUATION_SECONDS: time.perf_counter() - started,
    }
    finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
    return folder.TrialResult(
        trial.key, finite, describe_environment(device), data.summary(), _warnings(judgement, finite)
    )


def _rates(judgement: Judgement, methods: tuple[str, ...]) -> dict[str, float]:
    verdict = judgement.verdicts[names.VERDICT]
    width = float(judgement.verdicts[names.WIDTH].mean())
    rates = {
        names.STANDARD_ERROR: 100 * float((verdict == names.MISCLASSIFIED).mean()),
        names.ATTACK_ERROR: 100 * float(verdict.isin([names.MISCLASSIFIED, names.FALSIFIED]).mean()),
        names.CERTIFIED_ERROR: 100 * float((verdict != names.CERTIFIED).mean()),
        **_rates_by_stage(judgement.verdicts, methods),
        names.BOUND_WIDTH: width,
        names.BOUND_WIDTH_RELATIVE: width / judgement.clean_spread if judgement.clean_spread else math.inf,
    }
    if not rates[names.STANDARD_ERROR] <= rates[names.ATTACK_ERROR] <= rates[names.CERTIFIED_ERROR]:
        raise AssertionError(f"errors out of order: {rates}")
    return rates


def _rates_by_stage(verdicts: pd.DataFrame, methods: tuple[str, ...]) -> dict[str, float]:
    """The certified error that each stage and those before it leave."""
    certified = verdicts[names.VERDICT] == names.CERTIFIED
    return {
        names.certified_by(method): 100 * float((~(certified & verdicts[names.STAGE].isin(methods[:number]))).mean())
        for number, method in enumerate(methods, start=1)
    }


def _warnings(judgement: Judgement, metrics: dict[str, float | None]) -> list[str]:
    shares = judgement.verdicts[names.PREDICTION].value_counts(normalize=True)
    missing = [name for name, value in metrics.items() if value is None]
    found = []
    if shares.iloc[0] >= _COLLAPSED:
        found.append(f"collapsed: predicts class {shares.index[0]} for {100 * shares.iloc[0]:.1f} % of the images")
    if missing:
        found.append(f"not finite: {', '.join(missing)}")
    return found
