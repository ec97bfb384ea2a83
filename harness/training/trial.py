"""One trial from config to result: train, fold, save, judge. Needs neither Ray nor MLflow nor pydantic."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from baselines import build
from cerdeq.equilibrium import fold
from harness.config.trial import TrialConfig
from harness.data import Data, load
from harness.environment import best_device, describe_environment
from harness.errors import require
from harness.evaluation.equilibria import recurrence_report
from harness.evaluation.metrics import final_metrics, warnings
from harness.evaluation.verdicts import judge
from harness.memory import kept_memory
from harness.storage import folder, names
from harness.storage.files import write_atomically
from harness.training.loop import train
from harness.training.monitor import parametrised

Report = Callable[[dict[str, Any]], None]


def run_trial(
    config: TrialConfig, directory: Path, report: Report = lambda row: None, data_dir: str | None = None
) -> folder.TrialResult:
    """Train and evaluate `config` in its folder `directory`, going on from the checkpoint there.

    report: called with each epoch's row. data_dir: as --data-dir. A finished folder's result is returned as it is.
    Raises SettingError where the folder holds another trial, DataError, NonFiniteLossError and SoundnessError; any
    error in training or evaluation also leaves failure.json.
    """
    data = load(config.dataset, data_dir)
    trial = folder.make_trial(config, data.fingerprint)
    folder.claim(directory, trial)
    with _failure_written(directory):
        return _finished(trial, data, Path(directory), report)


def run_folder(directory: Path, report: Report, data_dir: str | None) -> folder.TrialResult:
    """`run_trial` of the trial that has claimed the folder; whatever goes wrong leaves failure.json."""
    with _failure_written(directory):
        trial = folder.read_trial(directory / folder.TRIAL)
        data = load(trial.config.dataset, data_dir)
        fits = data.fingerprint == trial.fingerprint
        require("data", data.fingerprint, fits, f"the data this trial was made for, {trial.fingerprint}")
        return _finished(trial, data, directory, report)


@contextmanager
def _failure_written(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        folder.write_failure(directory, f"{type(error).__name__}: {error}", getattr(error, "last_finite", None))
        raise


def load_network(config: TrialConfig, weights: Path) -> nn.Sequential:
    """The trained network whose folded weights lie in a safetensors file: float64, in evaluation mode."""
    model = build(config.model, config.dataset, config.width, **config.options)
    fold(model)
    model.load_state_dict(load_file(weights))
    return model.double().eval()


def _finished(trial: folder.Trial, data: Data, directory: Path, report: Report) -> folder.TrialResult:
    """The trial's result, from its folder or by work that begins where it stopped."""
    if (result := folder.read_result(directory)) is None:
        (directory / folder.FAILURE).unlink(missing_ok=True)
        with kept_memory():
            result = _run(trial, data, directory, report)
        folder.write_result(directory, result)
    return result


def _run(trial: folder.Trial, data: Data, directory: Path, report: Report) -> folder.TrialResult:
    config = trial.config
    device = best_device()
    training, held_out = data.training_images(config.train_images, config.validation_images)
    judged = held_out or data.test_images(config.evaluation.test_images)
    batch, available = config.train.batch_size, len(training.images)
    require("batch_size", batch, batch <= available, f"at most the {available} training images")
    trained = train(config, training.images, training.labels, directory, device, report)
    before_folding = parametrised(trained)
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    fold(trained.eval())
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.state_dict().items()}
    write_atomically(directory / folder.WEIGHTS, lambda path: save_file(state, path))

    started = time.perf_counter()
    model = load_network(config, directory / folder.WEIGHTS).to(device)
    images, labels = judged.images.to(device), judged.labels.to(device)
    judgement = judge(model, images, labels, config)
    write_atomically(directory / folder.VERDICTS, judgement.verdicts.to_parquet)
    metrics = {
        **final_metrics(judgement, config.evaluation.stages),
        **before_folding,
        **recurrence_report(model, images, labels, config),
        names.PARAMETERS: parameters,
        names.TRAIN_SECONDS: sum(row.get(names.TRAIN_EPOCH_SECONDS, 0.0) for row in folder.read_epochs(directory)),
        names.EVALUATION_SECONDS: time.perf_counter() - started,
    }
    finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
    return folder.TrialResult(
        trial.key, finite, describe_environment(device), data.summary(), warnings(judgement, finite)
    )
