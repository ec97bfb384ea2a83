"""Check that a sweep's directory holds the right files.

The path says what a folder is (`trials/<key>`, in it `certified/<name>`); its files must agree. Each check returns a
line for each problem.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from harness.checker.bounds.boxes import Array
from harness.checker.proofs.certificates import Tensors, read_tensors
from harness.common.errors import InputError, shorten
from harness.storage import certification, folder
from harness.storage.certification import is_certification, trial_of
from harness.storage.files import parse_file
from harness.storage.folder import Trial, TrialResult
from harness.sweep.trial_config import TrialConfig, identity

_NEAR, _SAME = 1e-3, 1e-6  # of weights of two seeds, which start from others; of one seed, relative to their size
_CHOSEN = {"text", "search", "candidate", "validation"}
_CHOICE = (  # see harness.tune.run_search
    r"[a-z0-9]+, \d+ candidates( with \d+ seeds each)?( \((\d+ ended early)?(, )?(\d+ failed)?\))?, "
    r"evaluated on [\d,]+ images held out of training"
)
_SAMPLE = 1000  # numbers of a tensor that are compared


@dataclass(frozen=True)
class StoredResult:
    """A finished trial or certification as its files describe it.

    trained: the trial of trial.json. evaluated: the same; of a certification, with its own evaluation settings.
    """

    verdict_dir: Path
    trained: Trial
    evaluated: Trial
    result: TrialResult

    @property
    def config(self) -> TrialConfig:
        """The config of the evaluation."""
        return self.evaluated.config


def find_folders(sweep_dir: Path) -> dict[Path, list[Path]]:
    """Return, for each trial's folder, the folders with verdicts: itself and its certifications."""
    trial_dirs = [path for path in _entries(sweep_dir / folder.TRIALS) if path.is_dir()]
    return {path: [path, *(p for p in _entries(path / certification.FOLDER) if p.is_dir())] for path in trial_dirs}


def check_strays(sweep_dir: Path) -> list[str]:
    """Check that folders of trials hold folders only."""
    parents = [sweep_dir / folder.TRIALS, *(sweep_dir / folder.TRIALS).glob(f"*/{certification.FOLDER}")]
    strays = [path for parent in parents for path in _entries(parent) if not path.is_dir()]
    return [f"{path.relative_to(sweep_dir)} is not a folder" for path in strays]


def check_copies(configs: Mapping[Path, TrialConfig]) -> list[str]:
    """Check that no trials of two seeds, models or methods have nearly the same weights.

    configs: of trials, by their folders. Networks trained elsewhere may be the same ones under other settings, but have
    one seed. Trials of one seed and method may agree: some settings change nothing, such as the precision on a CPU.
    """
    elsewhere = defaultdict[str, list[str]](list)
    samples = dict[Path, dict[str, Array]]()
    for trial_dir, config in configs.items():
        if config.is_trained_elsewhere:
            elsewhere[identity(config)].append(trial_dir.name)
        elif (trial_dir / folder.WEIGHTS).is_file():
            with suppress(InputError):  # the recheck of that trial reports it
                samples[trial_dir] = _sample(read_tensors(trial_dir / folder.WEIGHTS))
    problems = [
        f"a network trained elsewhere has one seed: trials {', '.join(keys)}"
        for keys in elsewhere.values()
        if len(keys) > 1
    ]
    for first, second in combinations(samples, 2):
        one, other = configs[first], configs[second]
        near = _NEAR if one.seed != other.seed else _SAME
        differ = [name for name in ("seed", "model", "method") if getattr(one, name) != getattr(other, name)]
        if differ and _are_near(samples[first], samples[second], near):
            values = " and ".join(f"{name} {getattr(one, name)} and {getattr(other, name)}" for name in differ)
            problems.append(f"nearly the same weights under {values}: trials {first.name}, {second.name}")
    return problems


def _sample(tensors: Tensors) -> dict[str, Array]:
    """Return up to about a thousand numbers of each tensor of floats, by its name and shape."""
    return {
        f"{name} {tensor.shape}": tensor.ravel()[:: max(1, tensor.size // _SAMPLE)].astype(np.float64)
        for name, tensor in tensors.items()
        if np.issubdtype(tensor.dtype, np.floating)
    }


def _are_near(one: dict[str, Array], other: dict[str, Array], near: float) -> bool:
    """Return whether all tensors of two networks agree to this share of their size, or of the network's, if larger."""
    if one.keys() != other.keys():
        return False
    everything = np.concatenate(list(one.values()))
    usual = np.linalg.norm(everything) / np.sqrt(everything.size)
    return all(
        np.linalg.norm(other[name] - values) <= near * (np.linalg.norm(values) + usual * np.sqrt(values.size))
        for name, values in one.items()
    )


def check_entries(verdict_dir: Path) -> Iterator[str]:
    """Check that a folder, and its trial's, hold files and folders only, and no file of the other kind of folder."""
    foreign, kind = (
        (folder.TRIAL, "certification") if is_certification(verdict_dir) else (certification.CERTIFICATION, "trial")
    )
    if (verdict_dir / foreign).exists():
        yield f"{foreign} does not belong in a {kind}'s folder"
    entries = {path for directory in (verdict_dir, trial_of(verdict_dir)) for path in _entries(directory)}
    yield from (f"{path.name} is neither a file nor a folder" for path in sorted(entries) if is_special(path))


def is_special(path: Path) -> bool:
    """Return whether something is neither a file nor a folder; reading a pipe would hang."""
    return not (path.is_file() or path.is_dir())


def check_finished(verdict_dir: Path) -> Iterator[str]:
    """Check that a trial's or certification's config and result are there."""
    config = certification.CERTIFICATION if is_certification(verdict_dir) else folder.TRIAL
    if missing := [name for name in (config, folder.RESULT) if not (verdict_dir / name).is_file()]:
        failure = folder.read_failure(verdict_dir)
        yield f"missing: {', '.join(missing)}" + (f" (the trial failed: {failure['error']})" if failure else "")


def read_stored_result(verdict_dir: Path) -> StoredResult:
    """Read the config and the result of a finished trial or certification. Raises DamagedFileError."""
    trained = evaluated = folder.read_trial(trial_of(verdict_dir) / folder.TRIAL)
    if is_certification(verdict_dir):
        certification.read_certification(verdict_dir)
        evaluated = folder.read_certified_trial(verdict_dir / certification.CERTIFICATION)
    result = folder.read_result(verdict_dir)
    if result is None:
        raise InputError(f"{verdict_dir} is not finished")
    return StoredResult(verdict_dir, trained, evaluated, result)


def check_keys(stored: StoredResult) -> Iterator[str]:
    """Check that trial, certification and result lie where their keys, stages and images say, and describe one trial.

    A certification describes its trial in all but the evaluation.
    """
    trial_dir, key = trial_of(stored.verdict_dir), stored.trained.key
    if trial_dir.name != key:
        yield f"{folder.TRIAL} belongs in the folder {key}, not {trial_dir.name}"
    if stored.result.key != key:
        yield f"{folder.RESULT} belongs to another trial, {stored.result.key}"
    of_trial = replace(stored.trained, config=replace(stored.trained.config, evaluation=stored.config.evaluation))
    name = certification.directory_of(trial_dir, stored.config.evaluation).name
    if stored.evaluated != of_trial:
        yield f"{certification.CERTIFICATION} describes another trial than the one that it belongs to"
    elif is_certification(stored.verdict_dir) and stored.verdict_dir.name != name:
        yield f"{certification.CERTIFICATION} belongs in the folder {name}"


def check_chosen(stored: StoredResult) -> Iterator[str]:
    """Check that the text about a search, which tables show, is of the form that searches write."""
    chosen = folder.read_chosen(trial_of(stored.verdict_dir))
    if chosen is not None and not (chosen.keys() == _CHOSEN and re.fullmatch(_CHOICE, str(chosen["text"]))):
        yield f"{folder.CHOSEN} does not describe a search: found {shorten(chosen.get('text'))}"


def check_method(config: TrialConfig) -> list[str]:
    """Check the training method and its options as a sweep file's; plugins are loaded."""
    from harness.methods import make_method, method_options  # imported late, as torch takes seconds
    from harness.sweep.schema import options_model, validate

    if config.is_trained_elsewhere and config.checkpoint is None:
        return [f"{folder.TRIAL}: the network is trained elsewhere, but there is no checkpoint"]
    try:
        if not config.is_trained_elsewhere:
            make_method(config.method, config.method_options)
        allowed = {} if config.is_trained_elsewhere else method_options(config.method)
        validate(options_model(allowed), config.method_options, "method_options")
    except (TypeError, ValueError, InputError) as error:
        return [f"{folder.TRIAL}: {error}"]
    return []


def check_plugins(stored: StoredResult, trusted: Collection[str]) -> list[str]:
    """Check that a trial needs no code that is not trusted."""
    return [
        f"not checked: {folder.TRIAL} names the plugin {name}; if you trust it, add --plugin {name}"
        for name in stored.config.plugins
        if name not in trusted
    ]


def check_weights(verdict_dir: Path) -> list[str]:
    """Check that the trial's weights are stored."""
    is_stored = (trial_of(verdict_dir) / folder.WEIGHTS).is_file()
    return [] if is_stored else [f"{folder.WEIGHTS} is not stored here"]


def check_checkpoint(stored: StoredResult) -> list[str]:
    """Check that the weights of a network trained elsewhere are those of its checkpoint, if that is stored."""
    trial_dir = trial_of(stored.verdict_dir)
    path = trial_dir / folder.IMPORTED
    if stored.config.checkpoint is None or not path.is_file():
        return []
    import safetensors.torch  # imported late, as torch takes seconds
    import torch

    from harness.sweep.imported_weights import read_weights

    weights = parse_file(trial_dir / folder.WEIGHTS, safetensors.torch.load)
    expected = read_weights(path, stored.config)
    is_same = weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    return [] if is_same else [f"{folder.WEIGHTS} does not hold the weights of {folder.IMPORTED}"]


def _entries(directory: Path) -> list[Path]:
    """Return what a directory holds, by name, without hidden files; nothing where there is none."""
    return sorted(path for path in directory.glob("*") if path.is_dir() or not path.name.startswith("."))
