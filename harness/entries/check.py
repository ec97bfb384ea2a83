"""Run the six checks of an entry; stop at the first that fails."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from baselines import DATASETS
from cerdeq import OnnxError
from harness.common import names
from harness.common.errors import InputError, error_line
from harness.data import Data, Split
from harness.entries.attack import NotAdversarialError, check_attack, check_witnesses
from harness.entries.checked import CheckedNetwork, Outcome, Tensors, numbers_of
from harness.entries.files import OutOfTimeError, check_files, limits
from harness.entries.manifest import MANIFEST, EntryNetwork, Manifest, read_manifest
from harness.entries.network import load_entry_network
from harness.entries.proofs import ProverOf, check_proofs, in_random_order
from harness.entries.table import read_entry_table
from harness.machine.environment import code_version
from harness.storage.entry_check import COLUMNS, STEPS, CheckStep, EntryCheck, Level, NetworkCheck, Reported, Status

_NEEDED = ("schema", "hashes", "accuracy", "witnesses")  # by the steps after them
_SHOWN = {*Manifest.model_fields} & {*EntryCheck.model_fields} - {"networks", "images", "eps"}


class EntryChecker:
    """The check of the entry in a folder.

    nonce: what the sample is drawn with. load_data: returns a data set by its name. seconds, memory: limits of a step.
    hits: adversarial images of earlier checks, by "<seed>/<image>"; `check` adds its own. sent: the same, from
    outside; each must refute a claim.
    """

    manifest: Manifest  # from the step `schema` on, which sets the digest, too

    def __init__(
        self, entry: Path, nonce: str, load_data: Callable[[str], Data], prover_of: ProverOf, seconds: float,
        memory: int, hits: Tensors, sent: Tensors,
    ):  # fmt: skip
        self.entry, self.nonce, self.seconds, self.memory = entry, nonce, seconds, memory
        self.load_data, self.prover_of = load_data, prover_of
        self.hits, self.sent, self.digest = dict(hits), sent, ""
        self.networks = list[CheckedNetwork]()

    def check(self, report: Callable[[CheckStep], None]) -> tuple[EntryCheck, pd.DataFrame | None]:
        """Return the check, and the verdicts of all networks, None if they were not read.

        report: is called with each step. Raises NotAdversarialError, and InputError for a data set that is not here.
        """
        steps = list[CheckStep]()
        for name in STEPS:
            is_over = any(not step.passed and (step.passed is False or step.name in _NEEDED) for step in steps)
            steps.append(CheckStep(name=name, passed=None, message="not run") if is_over else self._run(name))
            report(steps[-1])
            if name == "schema" and steps[-1].passed:
                data = self.load_data(self.manifest.dataset)
                self.images: Split = data.test_images(self.manifest.images)
        tables = [each.verdicts.assign(seed=each.entry.seed) for each in self.networks]
        return self._record(steps), pd.concat(tables, ignore_index=True)[COLUMNS] if tables else None

    def _run(self, name: str) -> CheckStep:
        """Run a step: whatever the entry holds, it passes, fails or decides nothing."""
        functions: dict[str, Callable[[], Outcome]] = {
            "schema": self._check_schema,
            "hashes": self._check_hashes,
            "accuracy": self._check_accuracy,
            "witnesses": lambda: check_witnesses(self.networks),
            "attack": lambda: check_attack(self.networks, self.hits, self.sent, self.seconds),
            "proofs": lambda: check_proofs(self.networks, self.prover_of, self.seconds),
        }
        try:
            with limits(self.seconds, self.memory):
                passed, message = functions[name]()
        except NotAdversarialError:
            raise
        except OutOfTimeError:
            passed, message = None, f"stopped after {self.seconds:g} s"
        except (InputError, OnnxError) as error:
            passed, message = False, str(error)
        except Exception as error:  # hostile files may raise anything
            passed, message = False, error_line(error)
        message = " ".join(message.replace(f"{self.entry}/", "").split())
        return CheckStep(name=name, passed=passed, message=message[:1000])

    def _check_schema(self) -> Outcome:
        self.manifest, content = read_manifest(self.entry)
        self.digest = hashlib.sha256(content).hexdigest()
        return True, f"{MANIFEST} is complete"

    def _check_hashes(self) -> Outcome:
        """Check the files' digests, then the rows of the tables, images and labels."""
        check_files(self.entry, self.manifest.sha256, MANIFEST)
        self.networks = [self._read(entry) for entry in self.manifest.networks]
        rows = f"{len(self.images)} rows for each network, each image once, with the labels of {self.manifest.dataset}"
        named = {name for entry in self.manifest.networks for name in entry.files}
        others = [name for name in self.manifest.sha256 if name not in named]
        unread = f"; no network names {', '.join(others[:3])}" if others else ""
        return True, f"{len(self.manifest.sha256)} files have their SHA-256{unread}; {rows}"

    def _read(self, entry: EntryNetwork) -> CheckedNetwork:
        """Return a network with its table."""
        classes = DATASETS[self.manifest.dataset].classes
        table = read_entry_table(self.entry / entry.verdicts, self.images.labels, classes)
        claims = in_random_order(numbers_of(table, names.CERTIFIED), self.digest, self.nonce, entry.seed)
        record = NetworkCheck(seed=entry.seed, reported=_reported(table), claimed=len(claims))
        return CheckedNetwork(entry, self.entry, table, self.images, self.manifest.radius, record, claims)

    def _check_accuracy(self) -> Outcome:
        """Predict all images, and compare with the tables."""
        for each in self.networks:
            each.network = load_entry_network(self.manifest, each.entry, self.entry)
            predicted, recorded = each.network.predict(self.images.images), each.verdicts["prediction"]
            if len(others := np.flatnonzero(predicted != recorded.to_numpy())):
                index, runtime = int(others[0]), "onnxruntime" if each.network.run else "torch"
                first = f"image {index}: found {recorded[index]}, {runtime} predicts {predicted[index]}"
                raise InputError(f"{each.entry.verdicts}: {len(others)} predictions are not the network's; {first}")
            each.record.parameters = each.network.parameters
            each.record.checked.standard_error = each.percent(len(each.numbers(names.MISCLASSIFIED)))
        return True, f"all {len(self.images)} predictions of each network are those of its table"

    def _record(self, steps: list[CheckStep]) -> EntryCheck:
        """Return the record of the check, and add the adversarial images of this check to those that stay."""
        for each in self.networks:
            each.record.refuted = len(each.hits)
            self.hits |= {f"{each.entry.seed}/{index}": point for index, point in each.hits.items()}
        level, status = _outcome(steps, [each.record for each in self.networks])
        if status == "checked" and len(self.images) < DATASETS[self.manifest.dataset].test_size:
            status = "partial"
        manifest = self.manifest.model_dump(include=_SHOWN) if self.digest else {}
        if self.digest:
            manifest |= {"eps": str(self.manifest.radius), "images": len(self.images)}
        return EntryCheck(
            **manifest, name=self.entry.name, networks=[each.record for each in self.networks], level=level,
            status=status, steps=steps, checker=f"{version('certified-training-harness')} {code_version()}",
            nonce=self.nonce, manifest=self.digest, date=datetime.now(UTC).date().isoformat(),
        )  # fmt: skip


def _outcome(steps: list[CheckStep], records: list[NetworkCheck]) -> tuple[Level, Status]:
    """Return the level that a check came to, and the status of the entry."""
    level: Level = "none"
    for step in steps:
        if not step.passed:
            break
        level = step.name  # type: ignore[assignment]
    if level == "attack" and steps[-1].passed is None and not any(record.unconfirmed for record in records):
        level = "verifier"
    if any(record.refuted for record in records):
        return level, "refuted"
    if any(step.passed is False for step in steps):
        return level, "refused"
    return level, "checked" if level == "proofs" else "unconfirmed"


def _reported(table: pd.DataFrame) -> Reported:
    """Return the errors of a table, in percent."""
    verdict = table["verdict"]
    masks = {
        "standard_error": verdict == names.MISCLASSIFIED,
        "certified_error": verdict != names.CERTIFIED,
        "undecided": verdict.isin([names.UNKNOWN, names.TIMEOUT]),
    }
    return Reported(**{name: 100 * float(mask.mean()) for name, mask in masks.items()})
