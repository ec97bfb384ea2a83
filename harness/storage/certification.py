"""A certification's folder, results/<sweep>/trials/<key>/certified/<name>/: one trial, evaluated by other stages.

certification.json  as trial.json, with the config of this evaluation, and the SHA-256 of the weights
ranges/             ranges of images that are evaluated so far (harness.storage.ranges); until there is a result
verdicts.parquet, counterexamples.safetensors, certificates.safetensors, result.json    as a trial's
"""

from functools import partial
from pathlib import Path

from harness.common import names
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.files import parse_json, write_json
from harness.storage.folder import TrialRecord

FOLDER, CERTIFICATION = "certified", "certification.json"


def directory_of(trial_dir: Path, settings: Evaluation) -> Path:
    """Return the folder of a certification of a trial, such as certified/ibp+crown-ibp+bab-60s-1000-images."""
    budget = ""
    if settings.bab_seconds is not None:
        budget += f"-{str(settings.bab_seconds).removesuffix('.0')}s"
    if settings.bab_branches is not None:
        budget += f"-{settings.bab_branches}branches"
    stages = "+".join(stage + budget if stage == names.BAB else stage for stage in settings.stages)
    each = "" if settings.stage_seconds is None else f"-{str(settings.stage_seconds).removesuffix('.0')}s-each"
    name = f"{stages}{each}-{settings.test_images or 'all'}-images{'-certificates' * settings.certificates}"
    return trial_dir / FOLDER / name


def folders(trial_dir: Path) -> list[Path]:
    """Return the folders of all certifications of a trial, by name."""
    return sorted(path.parent for path in trial_dir.glob(f"{FOLDER}/*/{CERTIFICATION}"))


def is_certification(directory: Path) -> bool:
    """Return whether a folder of verdicts is a certification's, by its path; else it is a trial's."""
    return directory.parent.name == FOLDER


def trial_of(directory: Path) -> Path:
    """Return the folder of the trial that a folder of verdicts belongs to; a trial's is its own."""
    return directory.parent.parent if is_certification(directory) else directory


def record_path(directory: Path) -> Path:
    """Return the file that says what a folder of verdicts is of: trial.json or certification.json."""
    return directory / (CERTIFICATION if is_certification(directory) else folder.TRIAL)


def read_record(directory: Path) -> TrialRecord:
    """Return the trial that a folder of verdicts is of; a certification's has the settings of its evaluation.

    Raises DamagedFileError.
    """
    return parse_json(record_path(directory), partial(folder.parse_trial, has_own_key=not is_certification(directory)))


def begin_certification(directory: Path, trial: TrialRecord, weights: str) -> bool:
    """Write certification.json; return whether a result was removed that is of other weights.

    weights: the SHA-256 of the trial's. Raises DamagedFileError if the result, or certification.json beside it, cannot
    be read.
    """
    path, has_result = directory / CERTIFICATION, folder.read_result(directory) is not None
    is_other = has_result and parse_json(path, lambda content: content.get("weights", weights) != weights)
    if is_other:
        (directory / folder.RESULT).unlink()
    if is_other or not has_result:
        write_json(path, folder.trial_json(trial) | {"weights": weights})
    return is_other
