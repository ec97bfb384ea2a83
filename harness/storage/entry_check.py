"""What `harness.board check` writes of an entry, and the board's page reads: results/board/<entry>/.

check.json          an EntryCheck
verdicts.parquet    a row for each image and seed: COLUMNS; missing where the entry's table was not read
adversarial.safetensors  adversarial images that refute the entry: float64 [C, H, W] by "<seed>/<index>"; they stay
"""

from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, Field

from harness.common.models import STRICT
from harness.storage.files import parse_file, write_text
from harness.storage.parquet import read_table, write_table

FOLDER, CHECK, VERDICTS, HITS = "board", "check.json", "verdicts.parquet", "adversarial.safetensors"
COLUMNS = ["index", "seed", "label", "prediction", "verdict", "margin", "stage", "verifier", "seconds"]
STEPS = ("schema", "hashes", "accuracy", "witnesses", "attack", "proofs")

Level = Literal["none", "schema", "hashes", "accuracy", "witnesses", "attack", "verifier", "proofs"]
Status = Literal["refused", "refuted", "unconfirmed", "partial", "checked"]
NetworkKind = Literal["relu", "equilibrium", "lipschitz", "other"]
VerifierKind = Literal["complete", "linear bounds", "IBP", "Lipschitz", "sampling"]
ExtraData = Literal["no", "generated", "unlabelled", "other"]
Percent = Annotated[float, Field(ge=0, le=100)]


class Reported(BaseModel):
    """Errors in percent of all images, as the entry's table has them."""

    model_config = STRICT

    standard_error: Percent
    certified_error: Percent
    undecided: Percent


class Checked(BaseModel):
    """The same, computed here; None where the check did not come so far.

    attack_error: also counts adversarial images found here. certified_error: None if a claim is refuted, or if an image
    of the sample is not proved here and some claimed images lie outside of the sample.
    """

    model_config = STRICT

    standard_error: Percent | None = None
    attack_error: Percent | None = None
    certified_error: Percent | None = None
    undecided: Percent | None = None


class NetworkCheck(BaseModel):
    """One network of an entry: that of one seed.

    claimed: images that the table calls certified. refuted: those with an adversarial image found here, or sent in.
    sample: how many claimed images were drawn; each is confirmed by its certificate, or by this project's verifier, or
    unconfirmed.
    """

    model_config = STRICT

    seed: int
    parameters: int | None = None
    reported: Reported | None = None
    checked: Checked = Field(default_factory=Checked)
    claimed: int = 0
    refuted: int = 0
    sample: int = 0
    confirmed_by_certificate: int = 0
    confirmed_by_verifier: int = 0
    unconfirmed: int = 0


class CheckStep(BaseModel):
    """A step of the check. passed: None if it was not run, or decided nothing."""

    model_config = STRICT

    name: str
    passed: bool | None
    message: str


class EntryCheck(BaseModel):
    """The check of an entry. Texts are those of its manifest, which others wrote: escape them.

    name: of the entry's folder. eps: as text, such as "8/255", in units of pixels from 0 to 1. images: rows a seed.
    networks: one for each seed. level: the last step that passed; "verifier" is "proofs" without certificates.
    status: "refused" if a step failed, "refuted" if a claimed image has an adversarial image, "checked" if the
    certificates of the sample are proved, "partial" if they are, but the entry is not about all test images, else
    "unconfirmed". nonce: what the sample was drawn with. manifest: SHA-256.
    """

    model_config = STRICT

    name: str
    title: str = ""
    authors: list[str] = Field(default_factory=list)
    paper: str | None = None
    licence: str = ""
    training_commit: str | None = None
    hours: float | None = None
    hardware: str | None = None
    extra_data: ExtraData = "no"
    dataset: str = ""
    split: str = ""
    eps: str = ""
    norm: str = "linf"
    images: int = 0
    network_kind: NetworkKind = "other"
    verifier_kind: VerifierKind | None = None
    networks: list[NetworkCheck] = Field(default_factory=list)
    level: Level = "none"
    status: Status
    steps: list[CheckStep]
    checker: str
    nonce: str = ""
    manifest: str = ""
    date: str


def is_refuted(directory: Path) -> bool:
    """Return whether the last check of an entry refuted it. Raises InputError for a damaged file."""
    return (directory / CHECK).exists() and read_check(directory).status == "refuted"


def check_dir(results_dir: Path, name: str) -> Path:
    """Return the folder of the check of an entry."""
    return results_dir / FOLDER / name


def find_checks(results_dir: Path) -> list[Path]:
    """Return the folders that have a check, by name."""
    return sorted(path.parent for path in (results_dir / FOLDER).glob(f"*/{CHECK}"))


def write_check(directory: Path, check: EntryCheck, verdicts: pd.DataFrame | None) -> None:
    """Write the check of an entry, and its verdicts if there are any; else none of an earlier check stay."""
    (directory / VERDICTS).unlink(missing_ok=True)
    if verdicts is not None:
        write_table(directory / VERDICTS, verdicts[COLUMNS])
    write_text(directory / CHECK, check.model_dump_json(indent=1) + "\n")


def read_check(directory: Path) -> EntryCheck:
    """Return the check of an entry. Raises DamagedFileError."""
    return parse_file(directory / CHECK, EntryCheck.model_validate_json)


def read_checked_verdicts(directory: Path) -> pd.DataFrame | None:
    """Return the verdicts of an entry, None if the check did not come so far. Raises DamagedFileError."""
    return read_table(directory / VERDICTS, COLUMNS) if (directory / VERDICTS).is_file() else None
