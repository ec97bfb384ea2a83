"""Run the six checks of an entry; stop at the first that fails."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from safetensors.numpy import load
from torch import nn

from baselines import DATASETS
from cerdeq import OnnxError
from harness.common import names
from harness.common.errors import InputError, error_line, shorten
from harness.data import Data, Split
from harness.entries.evidence import (
    FULL,
    QUICK,
    SAMPLE,
    Prove,
    Tensors,
    attack,
    box_ends,
    in_random_order,
    proves_certificate,
    verifies,
    why_not_adversarial,
)
from harness.entries.files import OutOfTimeError, copy_files, limits
from harness.entries.manifest import MANIFEST, EntryNetwork, Manifest, read_manifest
from harness.entries.network import NETWORK, LoadedNetwork, load_entry_network, why_not_of_kind
from harness.entries.table import read_verdicts
from harness.machine.environment import code_version
from harness.settings import Radius
from harness.storage.entry_check import COLUMNS, STEPS, EntryCheck, Level, NetworkCheck, Reported, Status, Step
from harness.storage.files import parse_file

_SHARE = 0.9  # of the time of a step, after which a search ends with what it has
Outcome = tuple[bool | None, str]  # whether a step passed, None if it decided nothing; its message


@dataclass(frozen=True)
class Tools:
    """What the check needs of other packages.

    load_data: returns a data set by its name. prover_of(model, eps, images): returns a function that proves single
    images, or a text with the reason why the checker cannot read the network.
    """

    load_data: Callable[[str], Data]
    prover_of: Callable[[nn.Module, Radius, np.ndarray], Prove | str]


@dataclass
class _Network:
    """A network of the entry: its table, its record, and adversarial images of claimed images, by number."""

    entry: EntryNetwork
    verdicts: pd.DataFrame
    record: NetworkCheck
    loaded: LoadedNetwork | None = None
    hits: Tensors = field(default_factory=dict)

    @property
    def network(self) -> LoadedNetwork:
        """The network, from the step `accuracy` on."""
        assert self.loaded is not None
        return self.loaded

    def numbers(self, verdict: str) -> list[int]:
        """Return the numbers of the images with a verdict."""
        return self.verdicts["index"][self.verdicts["verdict"] == verdict].tolist()


class NotAdversarialError(InputError):
    """An image that was sent in refutes no claim: a wrong request, no fault of the entry."""


class EntryChecker:
    """The check of the entry in a folder.

    nonce: what the sample is drawn with. seconds, memory: limits of each step.
    found: adversarial images of earlier checks, by "<seed>/<image>"; `check` adds its own. sent: the same, from
    outside; each must refute a claim.
    """

    def __init__(
        self, entry: Path, nonce: str, tools: Tools, seconds: float, memory: int, found: Tensors, sent: Tensors
    ):
        self.entry, self.nonce, self.tools, self.seconds, self.memory = entry, nonce, tools, seconds, memory
        self.found, self.sent, self.digest = dict(found), sent, ""
        self.networks = list[_Network]()
        self.manifest: Manifest | None = None

    def check(self, report: Callable[[Step], None]) -> tuple[EntryCheck, pd.DataFrame | None]:
        """Return the check, and the verdicts of all networks, None if they were not read.

        report: is called with each step. Raises NotAdversarialError, and InputError for a data set that is not here.
        """
        steps = list[Step]()
        with TemporaryDirectory() as files:
            self.files = Path(files)
            for name in STEPS:
                is_over = any(not step.passed and (step.passed is False or step.name in _NEEDED) for step in steps)
                steps.append(Step(name=name, passed=None, message="not run") if is_over else self._run(name))
                report(steps[-1])
                if name == "schema" and steps[-1].passed:
                    self.images: Split = self.tools.load_data(self.known.dataset).test_images(self.known.images)
        tables = [each.verdicts.assign(seed=each.entry.seed) for each in self.networks]
        return self._record(steps), pd.concat(tables, ignore_index=True)[COLUMNS] if tables else None

    @property
    def known(self) -> Manifest:
        """The manifest, from the step `schema` on."""
        assert self.manifest is not None
        return self.manifest

    def _run(self, name: str) -> Step:
        """Run a step: whatever the entry holds, it passes, fails or decides nothing."""
        functions: dict[str, Callable[[], Outcome]] = {
            "schema": self._schema, "hashes": self._hashes, "accuracy": self._accuracy,
            "witnesses": self._witnesses, "attack": self._attack, "proofs": self._proofs,
        }  # fmt: skip
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
        message = " ".join(message.replace(f"{self.files}/", "").split())
        return Step(name=name, passed=passed, message=message[:1000])

    def _schema(self) -> Outcome:
        self.manifest, content = read_manifest(self.entry)
        self.digest = hashlib.sha256(content).hexdigest()
        return True, f"{MANIFEST} is complete"

    def _hashes(self) -> Outcome:
        """Check the files' digests, then the rows of the tables, images and labels."""
        copy_files(self.entry, self.known.sha256, self.files, MANIFEST)
        classes = DATASETS[self.known.dataset].classes
        tables = [
            read_verdicts(self.files / entry.verdicts, self.images.labels, classes) for entry in self.known.networks
        ]
        self.networks = [
            _Network(entry, table, NetworkCheck(seed=entry.seed, reported=_reported(table), claimed=_claims(table)))
            for entry, table in zip(self.known.networks, tables, strict=True)
        ]
        rows = f"{len(self.images)} rows for each network, each image once, with the labels of {self.known.dataset}"
        return True, f"{len(self.known.sha256)} files have their SHA-256; {rows}"

    def _accuracy(self) -> Outcome:
        """Predict all images, and compare with the tables."""
        for each in self.networks:
            each.loaded = load_entry_network(self.known, each.entry, self.files)
            if why := why_not_of_kind(each.network, self.known.network_kind):
                raise InputError(why)
            predicted, recorded = each.network.predictions(self.images.images), each.verdicts["prediction"].to_numpy()
            if len(others := np.flatnonzero(predicted != recorded)):
                index, runtime = int(others[0]), "onnxruntime" if each.network.run else "torch"
                first = f"image {index}: found {recorded[index]}, {runtime} predicts {predicted[index]}"
                raise InputError(f"{each.entry.verdicts}: {len(others)} predictions are not the network's; {first}")
            self._refuse_copies(each)
            each.record.parameters = each.network.parameters
            each.record.checked.standard_error = self._percent(len(each.numbers(names.MISCLASSIFIED)))
        return True, f"all {len(self.images)} predictions of each network are those of its table"

    def _refuse_copies(self, each: _Network) -> None:
        """Raise InputError if a network before this one has the same logits."""
        few = self.images.images[:_FEW].double() / 255
        own = each.network.logits(few)[1]
        for other in self.networks[: self.networks.index(each)]:
            if np.allclose(own, other.network.logits(few)[1], rtol=1e-6, atol=1e-6 * np.ptp(own)):
                seeds = f"{other.entry.seed} and {each.entry.seed}"
                raise InputError(
                    f"networks: the seeds {seeds} have the same logits, allowed: one network for each seed"
                )

    def _witnesses(self) -> Outcome:
        """Replay the adversarial image of each falsified image."""
        for each in self.networks:
            witnesses, falsified = self._tensors(each.entry.witnesses), each.numbers(names.FALSIFIED)
            if strays := sorted(witnesses.keys() - set(map(str, falsified))):
                raise InputError(f"{each.entry.witnesses}: found {shorten(strays[0])}, allowed: falsified images")
            for index in falsified:
                if why := self._why_not_adversarial(each, index, witnesses.get(str(index))):
                    raise InputError(f"image {index} is falsified, but its witness is refused: {why}")
        count = sum(len(each.numbers(names.FALSIFIED)) for each in self.networks)
        return True, f"{count} adversarial images lie in their box and are misclassified"

    def _attack(self) -> Outcome:
        """Replay the adversarial images that are known, then search for others."""
        self._replay()
        attacked = self._search()
        for each in self.networks:
            each.record.checked.attack_error = self._percent(self._count_wrong(each))
        if self._refuted:
            return False, f"refuted: {self._refuted}"
        claims = sum(each.record.claimed for each in self.networks)
        kinds = f"{attacked[QUICK]} by PGD on the margin, {attacked[FULL]} of these by PGD on all objectives"
        message = f"of {claims} claimed images {kinds}: no adversarial image"
        return (True if attacked[QUICK] == claims else None), message

    def _replay(self) -> None:
        for key, point in (self.found | self.sent).items():
            seed, _, number = key.partition("/")
            each = next((each for each in self.networks if str(each.entry.seed) == seed), None)
            index = next((i for i in (each.numbers(names.CERTIFIED) if each else []) if str(i) == number), -1)
            why = f"no image {shorten(key)} (seed/image) is claimed to be certified"
            if each is not None and index >= 0 and not (why := self._why_not_adversarial(each, index, point)):
                each.hits[str(index)] = point
            if why and key in self.sent:
                raise NotAdversarialError(f"--witness: image {shorten(key)}: {why}")

    def _search(self) -> dict[object, int]:
        """Attack until the first hit or most of the time is over; return how many images each attack was tried on."""
        attacked = dict[object, int]({QUICK: 0, FULL: 0})
        with suppress(OutOfTimeError), limits(_SHARE * self.seconds):
            for settings in (QUICK, FULL):
                for each in self.networks:
                    drawn = self._drawn(each)
                    for count, hits in attack(each.network, self.images, drawn, self.known.radius, settings):
                        attacked[settings] += count
                        each.hits |= hits
                        if self._refuted:
                            return attacked
        return attacked

    def _proofs(self) -> Outcome:
        """Prove a sample of the claimed images, by certificates, else by the checker's bounds, else by our verifier."""
        notes, records = dict[str, None](), [each.record for each in self.networks]
        for record in records:
            record.sample = record.unconfirmed = min(SAMPLE, record.claimed)
        with suppress(OutOfTimeError), limits(_SHARE * self.seconds):
            for each in self.networks:
                self._prove_sample(each, notes)
        for each in self.networks:
            self._conclude(each)
        if self._refuted:
            return False, f"refuted by our verifier: {self._refuted}"
        counts = [sum(record.sample for record in records), sum(r.confirmed_by_certificate for r in records)]
        others = [sum(record.confirmed_by_verifier for record in records), sum(r.unconfirmed for r in records)]
        message = f"of {counts[0]} drawn images the checker proves {counts[1]}, our verifier alone {others[0]}"
        message += f"; {others[1]} are not proved"
        return (True if counts[0] == counts[1] else None), "; ".join([message, *notes])

    def _prove_sample(self, each: _Network, notes: dict[str, None]) -> None:
        """Prove a network's sample, up to the first hit. notes: why nothing could be checked is added."""
        few, record = self.images.images[:10].double().numpy() / 255, each.record
        prove = self.tools.prover_of(each.network.prepared.model, self.known.radius, few)
        if isinstance(prove, str):
            notes[f"no certificate was checked: {prove}"] = None
        prefix = NETWORK if each.network.run else ""
        certificates = _by_image(self._tensors(each.entry.certificates), prefix)
        for index in self._drawn(each)[:SAMPLE]:
            is_proved, why = proves_certificate(prove, self.images, index, certificates.get(str(index)))
            if why and not is_proved:
                raise InputError(f"image {index} is not proved at eps {self.known.eps} by its certificate: {why}")
            is_verified = not is_proved and self._is_verified(each, index)
            record.confirmed_by_certificate += is_proved
            record.confirmed_by_verifier += is_verified
            record.unconfirmed -= is_proved or is_verified
            if each.hits:
                return

    def _is_verified(self, each: _Network, index: int) -> bool:
        """Return whether our verifier proves an image; an adversarial image that it finds is a hit."""
        is_proved, point = verifies(each.network, self.images, index, self.known.radius)
        if point is not None and not self._why_not_adversarial(each, index, point):
            each.hits[str(index)] = point
        return is_proved

    def _conclude(self, each: _Network) -> None:
        """Fill in the certified error, if the sample supports one: it is all claimed images, or none of it is open."""
        record, wrong = each.record, self._count_wrong(each)
        if each.hits or (record.unconfirmed and record.sample < record.claimed):
            return
        open_ = len(self.images) - wrong - record.claimed + record.unconfirmed
        record.checked.certified_error = self._percent(wrong + open_)
        record.checked.undecided = self._percent(open_)

    @staticmethod
    def _count_wrong(each: _Network) -> int:
        """Return how many images are misclassified at some point of their box that is known."""
        return len(each.numbers(names.MISCLASSIFIED)) + len(each.numbers(names.FALSIFIED)) + len(each.hits)

    @property
    def _refuted(self) -> str:
        """Which claims are refuted, for a message; empty if none is."""
        keys = [f"{each.entry.seed}/{index}" for each in self.networks for index in each.hits]
        return f"{len(keys)} claimed images have an adversarial one, such as {keys[0]} (seed/image)" if keys else ""

    def _drawn(self, each: _Network) -> list[int]:
        return in_random_order(each.numbers(names.CERTIFIED), self.digest, self.nonce, each.entry.seed)

    def _why_not_adversarial(self, each: _Network, index: int, point: np.ndarray | None) -> str:
        return why_not_adversarial(each.network, self.images, index, point, box_ends(self.known.radius))

    def _tensors(self, name: str | None) -> Tensors:
        return parse_file(self.files / name, load) if name else {}

    def _percent(self, count: int) -> float:
        return 100 * count / len(self.images)

    def _record(self, steps: list[Step]) -> EntryCheck:
        """Return the record of the check, and add what was found to the adversarial images that stay."""
        for each in self.networks:
            each.record.refuted = len(each.hits)
            self.found |= {f"{each.entry.seed}/{index}": point for index, point in each.hits.items()}
        level, status = _outcome(steps, [each.record for each in self.networks])
        manifest = self.manifest.model_dump(include=_SHOWN) if self.manifest else {}
        if self.manifest:
            manifest |= {"eps": str(self.known.radius), "images": len(self.images)}
        return EntryCheck(
            **manifest, name=self.entry.name, networks=[each.record for each in self.networks], level=level,
            status=status, steps=steps, checker=f"{version('certified-training-harness')} {code_version()}",
            nonce=self.nonce, manifest=self.digest, date=datetime.now(UTC).date().isoformat(),
        )  # fmt: skip


_FEW = 20  # images on which networks are compared
_NEEDED = ("schema", "hashes", "accuracy", "witnesses")  # by the steps after them
_NO_STEPS = ("hidden", "equilibrium")  # parts of names of certificates' tensors
_SHOWN = {*Manifest.model_fields} & {*EntryCheck.model_fields} - {"networks", "images", "eps"}


def _outcome(steps: list[Step], records: list[NetworkCheck]) -> tuple[Level, Status]:
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


def _claims(table: pd.DataFrame) -> int:
    return int((table["verdict"] == names.CERTIFIED).sum())


def _reported(table: pd.DataFrame) -> Reported:
    """Return the errors of a table, in percent."""
    verdict = table["verdict"]
    masks = {
        "standard_error": verdict == names.MISCLASSIFIED,
        "certified_error": verdict != names.CERTIFIED,
        "undecided": verdict.isin([names.UNKNOWN, names.TIMEOUT]),
    }
    return Reported(**{name: 100 * float(mask.mean()) for name, mask in masks.items()})


def _by_image(tensors: Tensors, prefix: str) -> dict[str, Tensors]:
    """Return the tensors of each image by the rest of their names, "<image>/<step>/<field>".

    prefix: that the names of steps have here; those of a network by `cerdeq.load_onnx` are without it.
    """
    images = defaultdict[str, Tensors](dict)
    for key, tensor in tensors.items():
        image, *steps, name = key.split("/")
        steps = [each if each in _NO_STEPS or each.startswith(prefix) else prefix + each for each in steps]
        images[image]["/".join([*steps, name])] = tensor
    return images
