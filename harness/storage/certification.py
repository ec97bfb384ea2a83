"""A certification's folder, results/<sweep>/trials/<key>/certified/<name>/: one trial, evaluated by other stages.

    certification.json  key of the trial, recipe version, data, config of this evaluation, digests
    shards/00000.*      verdicts of some images (parquet), counterexamples and certificates (safetensors),
                        digests and times (json, written last); until there is a result
    verdicts.parquet, counterexamples.safetensors, certificates.safetensors    as a trial's
    timings.parquet     one row a shard and stage: the seconds it took
    result.json         as a trial's, written last: a folder without it is unfinished

Every file is written atomically. A shard with another digest is of other weights, data, settings or versions; it is
evaluated again.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.checkpoint_settings import digest_of
from harness.config.settings import EvaluationSettings
from harness.storage import folder, names
from harness.storage.files import DamagedFileError, parse_json, read_bytes, write_atomically, write_json
from harness.storage.folder import Trial
from harness.storage.parquet import read_table, write_table
from harness.typed import check_types

if TYPE_CHECKING:
    import pandas as pd

CERTIFICATION, TIMINGS = "certification.json", "timings.parquet"


@dataclass(frozen=True)
class Certification:
    """What certification.json holds besides the trial.

    images, per_shard: the number of images, and of those in a shard.
    input_digest: a digest of weights, data, settings and recipe version, which determine the verdicts.
    digest: of that and of the device and the versions that compute them.
    """

    images: int
    per_shard: int
    input_digest: str
    digest: str

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.images // self.per_shard)

    def images_of(self, shard: int) -> tuple[int, int]:
        """Return a shard's first image, and the first after it."""
        return shard * self.per_shard, min(self.images, (shard + 1) * self.per_shard)

    def count_images(self, shard: int) -> int:
        """Return the number of a shard's images."""
        first, stop = self.images_of(shard)
        return stop - first


@dataclass(frozen=True)
class Shard:
    """What a shard's JSON holds.

    digest: the certification's. content: a digest of the other two files. seconds: of each stage.
    layers, clean_mean, clean_spread: as in an evaluation, of these images; None if not finite.
    """

    digest: str
    content: str
    seconds: dict[str, float]
    layers: dict[str, float | None]
    clean_mean: float | None
    clean_spread: float | None


def directory_of(trial_dir: Path, settings: EvaluationSettings) -> Path:
    """Return the folder of a certification of a trial, such as certified/ibp+crown-ibp+bab-60s-1000-images."""
    budget = ""
    if settings.bab_seconds is not None:
        budget += f"-{str(settings.bab_seconds).removesuffix('.0')}s"
    if settings.bab_branches is not None:
        budget += f"-{settings.bab_branches}branches"
    stages = "+".join(stage + budget if stage == names.BAB else stage for stage in settings.stages)
    name = f"{stages}-{settings.test_images or 'all'}-images{'-certificates' * settings.certificates}"
    return trial_dir / "certified" / name


def folders(trial_dir: Path) -> list[Path]:
    """Return the folders of all certifications of a trial, by name."""
    return sorted(path.parent for path in trial_dir.glob(f"certified/*/{CERTIFICATION}"))


def trial_of(directory: Path) -> Path:
    """Return the folder of the trial that a certification belongs to."""
    return directory.parent.parent


def take_over(directory: Path, trial: Trial, certification: Certification) -> str:
    """Make `directory` the folder of this certification of a trial, without files of another one.

    Returns why files of another one were removed, or an empty text. Raises DamagedFileError if the result of this one
    cannot be read.
    """
    message, before = "", None
    with suppress(DamagedFileError):  # a missing file, too
        before = read_certification(directory)
    if before is not None:
        is_same = before.input_digest == certification.input_digest
        if is_same and (before.digest == certification.digest or folder.read_result(directory) is not None):
            return ""
        message = "begun anew: " + ("other versions or device" if is_same else "other weights or data")
    for name in (folder.RESULT, folder.VERDICTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES, TIMINGS):
        (directory / name).unlink(missing_ok=True)
    remove_shards(directory)
    write_json(directory / CERTIFICATION, folder.trial_json(trial) | asdict(certification))
    return message


def read_certification(directory: Path) -> Certification:
    """Read certification.json. Raises DamagedFileError."""

    def parse(content: Any) -> Certification:
        values = check_types(Certification, content)
        certification = Certification(*(values[field.name] for field in fields(Certification)))
        if certification.images < 1 or certification.per_shard < 1:
            raise ValueError("it has no images")
        return certification

    return parse_json(directory / CERTIFICATION, parse)


def unfinished_shards(directory: Path) -> list[int]:
    """Return the shards of a certification that are left to do."""
    certification = read_certification(directory)
    return missing_shards(directory, certification.shards, certification.digest)


def missing_shards(directory: Path, count: int, digest: str) -> list[int]:
    """Return which of `count` shards do not exist, are damaged, or have another digest."""
    return [number for number in range(count) if not _is_complete(directory, number, digest)]


def _is_complete(directory: Path, number: int, digest: str) -> bool:
    try:
        shard = read_shard(directory, number)
        read_content(directory, number, shard)
        return shard.digest == digest
    except DamagedFileError:
        return False


def write_shard(
    directory: Path, number: int, verdicts: "pd.DataFrame", evidence: Callable[[Path], None], **fields: Any
) -> None:
    """Write a shard's verdicts and evidence, then its JSON.

    evidence: writes counterexamples and certificates to a path. fields: of Shard, without `content`.
    """
    write_table(_path(directory, number, "parquet"), verdicts)
    write_atomically(evidence_of(directory, number), evidence)
    digest = digest_of(b"".join(map(read_bytes, _content_paths(directory, number))))
    write_json(_path(directory, number, "json"), asdict(Shard(content=digest, **fields)))


def evidence_of(directory: Path, number: int) -> Path:
    """Return the path of a shard's counterexamples and certificates."""
    return _path(directory, number, "safetensors")


def remove_shards(directory: Path) -> None:
    """Remove the shards, once there is a result."""
    shutil.rmtree(directory / folder.SHARDS, ignore_errors=True)


def read_shard(directory: Path, number: int) -> Shard:
    """Read a shard's JSON. Raises DamagedFileError."""
    return parse_json(_path(directory, number, "json"), lambda content: Shard(**check_types(Shard, content)))


def read_shard_verdicts(directory: Path, number: int, content: bytes | None = None) -> "pd.DataFrame":
    """Read a shard's verdicts. content: of the file, if it has been read. Raises DamagedFileError."""
    return read_table(_path(directory, number, "parquet"), content=content)


def shard_path(directory: Path, number: int) -> Path:
    """Return the path of a shard's files without their endings, which names the shard as an item of work."""
    return directory / folder.SHARDS / f"{number:05}"


def _path(directory: Path, number: int, kind: str) -> Path:
    return shard_path(directory, number).with_suffix(f".{kind}")


def _content_paths(directory: Path, number: int) -> list[Path]:
    return [_path(directory, number, "parquet"), evidence_of(directory, number)]


def read_content(directory: Path, number: int, shard: Shard) -> list[bytes]:
    """Return the content of a shard's verdicts and of its evidence. Raises DamagedFileError if it is another one."""
    contents = list(map(read_bytes, _content_paths(directory, number)))
    if digest_of(b"".join(contents)) != shard.content:
        raise DamagedFileError(f"the files {shard_path(directory, number)}.* do not belong together")
    return contents
