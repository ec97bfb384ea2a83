"""A certification's folder, results/<sweep>/trials/<key>/certified/<name>/: one trial, judged again by other stages.

    certification.json  key of the trial, recipe version, data, config as it is judged here, digests
    shards/00000.*      verdicts of so many images (parquet), counterexamples and certificates (safetensors), and what
                        else is known of them (json, written last); until there is a result
    verdicts.parquet, counterexamples.safetensors, certificates.safetensors    as a trial's
    timings.parquet     one row a shard and stage: the seconds it took
    result.json         as a trial's, written last: a folder without it is unfinished

Every file is written whole or not at all. Shards are of other weights, data, settings or versions where their digest is
another; they are then done again.
"""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.settings import BAB, EvaluationSettings
from harness.storage import folder
from harness.storage.files import DamagedFileError, parsed, write_atomically, write_json
from harness.storage.folder import Trial
from harness.storage.parquet import read_table, write_table
from harness.typed import checked

CERTIFICATION, TIMINGS = "certification.json", "timings.parquet"


@dataclass(frozen=True)
class Certification:
    """What certification.json holds, but for the trial.

    images: how many are judged. per_shard: how many a shard has.
    stands_for: a digest of all that verdicts are meant to depend on: weights, data, settings, recipe version.
    digest: of that and of the versions and the device that compute them.
    """

    images: int
    per_shard: int
    stands_for: str
    digest: str

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.images // self.per_shard)

    def images_of(self, shard: int) -> tuple[int, int]:
        """A shard's first image, and the first after it."""
        return shard * self.per_shard, min(self.images, (shard + 1) * self.per_shard)


@dataclass(frozen=True)
class Shard:
    """What a shard's JSON holds beside its verdicts.

    digest: the certification's. content: a digest of the other two files. seconds: what each stage took.
    layers, clean_mean, clean_spread: as in a Judgement, of these images; None where not finite.
    """

    digest: str
    content: str
    seconds: dict[str, float]
    layers: dict[str, float | None]
    clean_mean: float | None
    clean_spread: float | None


def name_of(settings: EvaluationSettings) -> str:
    """A certification's name, such as ibp+crown-ibp+bab-60s-1000-images."""
    budget = [
        *([] if settings.bab_seconds is None else [f"{str(settings.bab_seconds).removesuffix('.0')}s"]),
        *([] if settings.bab_branches is None else [f"{settings.bab_branches}branches"]),
    ]
    stages = "+".join("-".join([stage, *budget]) if stage == BAB else stage for stage in settings.stages)
    return f"{stages}-{settings.test_images or 'all'}-images{'-certificates' * settings.certificates}"


def place(trial: Path, settings: EvaluationSettings) -> Path:
    """The folder of a certification of the trial in a folder."""
    return trial / "certified" / name_of(settings)


def folders(trial: Path) -> list[Path]:
    """All certifications of the trial in a folder, by name."""
    return sorted(path.parent for path in trial.glob(f"certified/*/{CERTIFICATION}"))


def trial_of(directory: Path) -> Path:
    """The folder of the trial that a certification's folder belongs to."""
    return directory.parent.parent


def claim(directory: Path, trial: Trial, certification: Certification) -> str:
    """Make `directory` that of this certification of a trial: what is there of another is removed, and said."""
    found = _digests(directory)
    finished = folder.read_result(directory) is not None if found else False
    mine = found is not None and found[0] == certification.stands_for
    if mine and (finished or (found is not None and found[1] == certification.digest)):
        return ""
    told = "" if found is None else "begun anew: " + ("other versions or device" if mine else "other weights or data")
    for name in (folder.RESULT, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES, TIMINGS):
        (directory / name).unlink(missing_ok=True)
    remove_shards(directory)
    write_json(directory / CERTIFICATION, folder.trial_json(trial) | asdict(certification))
    return told


def _digests(directory: Path) -> tuple[str, str] | None:
    """What the certification in a folder stands for, and its digest; None where there is none that can be read."""
    try:
        read = read_certification(directory)
    except DamagedFileError:
        return None
    return read.stands_for, read.digest


def read_certification(directory: Path) -> Certification:
    """Read certification.json. Raises DamagedFileError."""
    fields = ("images", "per_shard", "stands_for", "digest")

    def parse(content: Any) -> Certification:
        known = checked(Certification, content)
        if known["images"] < 1 or known["per_shard"] < 1:
            raise ValueError("there are no images in it")
        return Certification(*(known[name] for name in fields))

    return parsed(directory / CERTIFICATION, parse)


def missing(directory: Path) -> list[int]:
    """Return the shards of a certification that are left to do."""
    certification = read_certification(directory)
    return missing_shards(directory, certification.shards, certification.digest)


def missing_shards(directory: Path, count: int, digest: str) -> list[int]:
    """Return which of `count` shards do not exist, are damaged, or have another digest."""
    return [number for number in range(count) if not _is_whole(directory, number, digest)]


def shards_begun(directory: Path) -> int:
    """How many shards were written, whole or not."""
    return len(list((directory / folder.SHARDS).glob("*.json")))


def _is_whole(directory: Path, number: int, digest: str) -> bool:
    try:
        known = read_shard(directory, number)
        return known.digest == digest and known.content == _content(directory, number)
    except (DamagedFileError, OSError):
        return False


def write_shard(
    directory: Path, number: int, verdicts: pd.DataFrame, evidence: Callable[[Path], None], **known: Any
) -> None:
    """Write a shard's verdicts and evidence, then what else is known of it: Shard's fields but for `content`.

    evidence: writes its file.
    """
    write_table(_path(directory, number, "parquet"), verdicts)
    write_atomically(evidence_of(directory, number), evidence)
    write_json(_path(directory, number, "json"), asdict(Shard(content=_content(directory, number), **known)))


def evidence_of(directory: Path, number: int) -> Path:
    """Where a shard's counterexamples and certificates lie."""
    return _path(directory, number, "safetensors")


def remove_shards(directory: Path) -> None:
    """Remove what is not needed once there is a result."""
    shutil.rmtree(directory / folder.SHARDS, ignore_errors=True)


def read_shard(directory: Path, number: int) -> Shard:
    """What is known of a shard. Raises DamagedFileError."""
    return parsed(_path(directory, number, "json"), lambda content: Shard(**checked(Shard, content)))


def read_shard_verdicts(directory: Path, number: int) -> pd.DataFrame:
    """A shard's verdicts. Raises DamagedFileError."""
    return read_table(_path(directory, number, "parquet"))


def _path(directory: Path, number: int, kind: str) -> Path:
    return directory / folder.SHARDS / f"{number:05}.{kind}"


def _content(directory: Path, number: int) -> str:
    verdicts, evidence = _path(directory, number, "parquet"), evidence_of(directory, number)
    return hashlib.sha256(verdicts.read_bytes() + evidence.read_bytes()).hexdigest()
