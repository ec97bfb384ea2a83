"""A certification's folder, results/<sweep>/trials/<key>/certified/<name>/: one trial, evaluated by other stages.

    certification.json  key of the trial, recipe version, data, config of this evaluation, digests
    shards/00000.*      a part, named by its first image: verdicts of some images (parquet), counterexamples and
                        certificates (safetensors), digests and times (json, written last); until there is a result
    verdicts.parquet, counterexamples.safetensors, certificates.safetensors    as a trial's
    timings.parquet     one row a part and stage: the seconds it took
    result.json         as a trial's, written last: a folder without it is unfinished

Every file is written atomically. A part with another digest is of other weights, data, settings or versions; it is
evaluated again. A shard is the images that one worker evaluates, in one part or several.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from harness.common import names
from harness.common.models import LENIENT, validate
from harness.pretrained.checkpoint import digest_of
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_json, read_bytes, write_atomically, write_json
from harness.storage.folder import TrialRecord
from harness.storage.parquet import read_table, write_table

if TYPE_CHECKING:
    import pandas as pd

FOLDER, CERTIFICATION, TIMINGS = "certified", "certification.json", "timings.parquet"

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Certification:
    """What certification.json holds besides the trial.

    images, per_shard: the number of images, and of those in a shard.
    input_digest: a digest of weights, data, settings and recipe version, which determine the verdicts.
    digest: of that and of the device and the versions that compute them.
    """

    __pydantic_config__: ClassVar = LENIENT

    images: Count
    per_shard: Count
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
class Part:
    """What a part's JSON holds.

    images: their number. digest: the certification's. content: a digest of the other two files.
    seconds: of each stage. layers, clean_mean, clean_spread: as in an evaluation, of these images; None if not finite.
    """

    __pydantic_config__: ClassVar = LENIENT

    images: Count
    digest: str
    content: str
    seconds: dict[str, float]
    layers: dict[str, float | None]
    clean_mean: float | None
    clean_spread: float | None


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


def take_over(directory: Path, trial: TrialRecord, certification: Certification) -> str:
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
    certification: Certification = parse_json(directory / CERTIFICATION, partial(validate, Certification, is_json=True))
    return certification


def unfinished_shards(directory: Path) -> list[int]:
    """Return the shards of a certification that are left to do."""
    certification = read_certification(directory)

    def is_complete(number: int) -> bool:
        parts = saved_parts(directory, *certification.images_of(number), certification.digest)
        return sum(part.images for part in parts.values()) == certification.count_images(number)

    return [number for number in range(certification.shards) if not is_complete(number)]


def saved_parts(directory: Path, first: int, stop: int, digest: str) -> dict[int, Part]:
    """Return, by their first images, the parts of images `first` to `stop` up to the first image that none has.

    Parts that are damaged or have another digest do not count.
    """
    parts: dict[int, Part] = {}
    with suppress(DamagedFileError):
        while first < stop:
            part = _read_part(directory, first)
            read_content(directory, first, part)
            if part.digest != digest:
                break
            parts[first] = part
            first += part.images
    return parts


def write_part(
    directory: Path, first: int, verdicts: "pd.DataFrame", proofs: Callable[[Path], None], **fields: Any
) -> None:
    """Write a part's verdicts and proofs, then its JSON.

    proofs: writes counterexamples and certificates to a path. fields: of Part, without `images` and `content`.
    """
    write_table(_path(directory, first, "parquet"), verdicts)
    write_atomically(proofs_path(directory, first), proofs)
    content = digest_of(b"".join(map(read_bytes, _content_paths(directory, first))))
    write_json(_path(directory, first, "json"), asdict(Part(images=len(verdicts), content=content, **fields)))


def proofs_path(directory: Path, first: int) -> Path:
    """Return the path of a part's counterexamples and certificates."""
    return _path(directory, first, "safetensors")


def remove_shards(directory: Path) -> None:
    """Remove the shards, once there is a result."""
    shutil.rmtree(directory / folder.SHARDS, ignore_errors=True)


def read_content(directory: Path, first: int, part: Part) -> tuple["pd.DataFrame", bytes]:
    """Return a part's verdicts, and the content of its proofs. Raises DamagedFileError if they are another part's."""
    verdicts, proofs = map(read_bytes, _content_paths(directory, first))
    if digest_of(verdicts + proofs) != part.content:
        raise DamagedFileError(f"the files {first:05}.* in {directory / folder.SHARDS} do not belong together")
    return read_table(_path(directory, first, "parquet"), content=verdicts), proofs


def read_shard_verdicts(directory: Path, number: int) -> list[str]:
    """Read the verdicts of a finished shard's images. Raises DamagedFileError."""
    certification = read_certification(directory)
    parts = saved_parts(directory, *certification.images_of(number), certification.digest)
    tables = [read_content(directory, first, part)[0] for first, part in parts.items()]
    return [verdict for table in tables for verdict in table[names.VERDICT]]


def shard_path(directory: Path, number: int) -> Path:
    """Return the path that names a shard as an item of work; it does not exist."""
    return directory / folder.SHARDS / str(number)


def _read_part(directory: Path, first: int) -> Part:
    part: Part = parse_json(_path(directory, first, "json"), partial(validate, Part, is_json=True))
    return part


def _content_paths(directory: Path, first: int) -> list[Path]:
    return [_path(directory, first, "parquet"), proofs_path(directory, first)]


def _path(directory: Path, first: int, kind: str) -> Path:
    return directory / folder.SHARDS / f"{first:05}.{kind}"
