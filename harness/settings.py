"""What one trial is: frozen dataclasses that check themselves, and the key that names a trial everywhere.

Plain dataclasses, because training and certifying must run where pydantic is not installed.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, ClassVar

from harness.names import BOUNDS

RECIPE_VERSION = 4
"""Raised whenever training or evaluation changes its numbers, by a default too (tests/harness/training/test_golden.py
fails when it must be)."""


FULL_PROFILE = "full"
"""The profile of a sweep file as it stands; any other changes its size."""


class SettingError(ValueError):
    """A setting that cannot be used: which key, what was found and what is allowed."""

    def __init__(self, key: str, found: object, allowed: str):
        super().__init__(f"{key}: found {found!r}, allowed: {allowed}")
        self.key, self.found, self.allowed = key, found, allowed


def _check(key: str, found: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise SettingError(key, found, allowed)


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
LONGEST_NAME = 100
LARGEST_SEED = 2**31 - 1
LARGEST_WIDTH = 100.0


def parse_eps(text: str) -> Fraction:
    """The exact perturbation radius in pixel units, from '8/255' or '0.1'.

    Raises SettingError where `text` is neither a number nor a fraction, or lies outside (0, 1].
    """
    try:
        eps = Fraction(text)
    except (ValueError, ZeroDivisionError, TypeError):
        raise SettingError("eps", text, "a number or a fraction such as 8/255") from None
    _check("eps", text, 0 < eps <= 1 and float(eps) > 0, "a radius in pixel units, above 0 and at most 1")
    return eps


def eps_text(text: str) -> str:
    """One spelling of each radius: over 255 where small, else in lowest terms. Raises SettingError."""
    eps = parse_eps(text)
    levels = 255 * eps
    return f"{levels}/255" if levels.denominator == 1 and levels <= 16 else str(eps)


@dataclass(frozen=True)
class TrainSettings:
    """The recipe, which the trials of a study share (Shi et al. 2021, section 4). Epochs are counted from 1.

    `eps`: the radius trained for, None for the one judged. `kappa`: the weight of the clean cross entropy beside the
    method's loss, which has 1 - kappa (Gowal et al. 2018). `l1`: the weight of the sum of absolute weights, of all
    parameters with two dimensions or more. `accumulate`: in how many parts a batch is taken, batch norm over each.
    `clip_norm`: the largest norm of a gradient; None leaves gradients as they are. `regularise_equilibria`: whether the
    regularisers count the pre-activations of equilibria, as they do every ReLU's. `ema_decay`: judged is the average of
    the networks after each step, an older one's share falling by this factor, once 1 / steps is less than 1 minus it;
    before it is their plain mean. None judges the last.
    `recompute_statistics`: before judging, batch norm's are those of the whole training set, unaugmented (CTBench
    2024). `precision`: of products in training alone; with 'bf16' parameters, sums, margins and the loss are float32.
    All is judged in float64. `initialisation`: 'ibp' draws weights that keep the width of boxes (Shi et al. 2021),
    'default' leaves torch's own.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    epochs: int = 160
    batch_size: int = 128
    learning_rate: float = 5e-4
    decay_epochs: tuple[int, ...] = (120, 140)
    decay_factor: float = 0.2
    ramp_start: int = 2
    ramp_epochs: int = 80
    eps: str | float | None = None
    kappa: float = 0.0
    l1: float = 0.0
    accumulate: int = 1
    clip_norm: float | None = 10.0
    regularisation: float = 0.5
    regularise_equilibria: bool = True
    ema_decay: float | None = None
    recompute_statistics: bool = False
    precision: str = "tf32"
    initialisation: str = "ibp"

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, self.epochs >= 1, "an integer of at least 1")
        _check("batch_size", self.batch_size, self.batch_size >= 2, "an integer of at least 2 (batch norm)")
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < 1, "above 0 and below 1")
        decays = self.decay_epochs
        ordered = all(a < b for a, b in pairwise(decays))
        inside = all(1 <= epoch <= self.epochs for epoch in decays)
        _check(
            "decay_epochs", list(decays), ordered and inside, f"increasing epochs between 1 and epochs = {self.epochs}"
        )
        _check("decay_factor", self.decay_factor, 0 < self.decay_factor <= 1, "above 0 and at most 1")
        _check("ramp_start", self.ramp_start, self.ramp_start >= 1, "an epoch of at least 1")
        _check("ramp_epochs", self.ramp_epochs, self.ramp_epochs >= 0, "an integer of at least 0")
        last = self.ramp_start - 1 + self.ramp_epochs
        _check(
            "ramp_epochs",
            self.ramp_epochs,
            last <= self.epochs,
            f"a ramp that ends within training: ramp_start - 1 + ramp_epochs = {last} exceeds epochs = {self.epochs}",
        )
        if self.eps is not None:
            object.__setattr__(self, "eps", eps_text(str(self.eps)))
        _check("kappa", self.kappa, 0 <= self.kappa <= 1, "from 0 to 1")
        _check("l1", self.l1, 0 <= self.l1 < math.inf, "at least 0 and finite")
        parts = self.accumulate
        divides = parts >= 1 and self.batch_size % parts == 0 and self.batch_size // parts >= 2
        _check("accumulate", parts, divides, f"a divisor of batch_size = {self.batch_size}, parts of 2 or more")
        decay = self.ema_decay
        _check("ema_decay", decay, decay is None or 0 < decay < 1, "above 0 and below 1, or null for no average")
        norm = self.clip_norm
        _check("clip_norm", norm, norm is None or 0 < norm < math.inf, "above 0 and finite, or null for no clipping")
        _check("regularisation", self.regularisation, 0 <= self.regularisation < math.inf, "at least 0 and finite")
        known = self.precision in ("tf32", "float32", "bf16")
        _check("precision", self.precision, known, "'tf32', 'float32' or 'bf16'")
        known = self.initialisation in ("ibp", "default")
        _check("initialisation", self.initialisation, known, "'ibp' or 'default'")


@dataclass(frozen=True)
class EvaluationSettings:
    """How a trained network is judged.

    `methods`: the verifier's stages, of names.BOUNDS, ibp first; each tries what those before it left open.
    `test_images` None takes all of them; otherwise the first so many.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    methods: tuple[str, ...] = ("ibp", "crown-ibp", "alpha-crown")
    test_images: int | None = None
    batch_size: int = 500
    attack_steps: int = 40
    attack_restarts: int = 3

    def __post_init__(self) -> None:
        rising = [method for method in BOUNDS if method in self.methods] == list(self.methods)
        _check(
            "methods", list(self.methods), rising and "ibp" in self.methods, f"ibp, then of these in order: {BOUNDS}"
        )
        images = self.test_images
        _check("test_images", images, images is None or images >= 1, "an integer of at least 1, or null for all")
        _check("batch_size", self.batch_size, self.batch_size >= 1, "an integer of at least 1")
        _check("attack_steps", self.attack_steps, self.attack_steps >= 1, "an integer of at least 1")
        _check("attack_restarts", self.attack_restarts, self.attack_restarts >= 1, "an integer of at least 1")


@dataclass(frozen=True)
class TrialConfig:
    """Everything that decides one trial's numbers, but for the data and the code.

    `eps` stays text so that it stays exact. `options` and `method_options` hold what differs from the network's and the
    training method's defaults. `train_images` None takes all. `validation_images` above 0 holds out that many training
    images and evaluates on them instead of the test split.
    """

    sweep: str
    profile: str
    dataset: str
    eps: str
    seed: int
    model: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, Any] = field(default_factory=dict)
    width: float = 1.0
    train_images: int | None = None
    validation_images: int = 0
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def __post_init__(self) -> None:
        parse_eps(self.eps)
        name = re.fullmatch(NAME_PATTERN, self.sweep) is not None and len(self.sweep) <= LONGEST_NAME
        _check("sweep", self.sweep, name, "a name of letters, digits, '_', '-' and single dots")
        _check("seed", self.seed, 0 <= self.seed <= LARGEST_SEED, f"an integer from 0 to {LARGEST_SEED}")
        _check("width", self.width, 0 < self.width <= LARGEST_WIDTH, f"a factor above 0 and at most {LARGEST_WIDTH:g}")
        images = self.train_images
        _check("train_images", images, images is None or images >= 1, "an integer of at least 1, or null for all")
        batch = self.train.batch_size
        _check("train.batch_size", batch, images is None or batch <= images, f"at most the {images} training images")
        _check("validation_images", self.validation_images, self.validation_images >= 0, "an integer of at least 0")
        if self.train.eps is not None and parse_eps(str(self.train.eps)) == parse_eps(self.eps):
            object.__setattr__(self, "train", dataclasses.replace(self.train, eps=None))  # one trial, one key

    @property
    def train_eps(self) -> float:
        """The radius at the end of the training ramp, in pixel units."""
        return float(parse_eps(self.eps if self.train.eps is None else str(self.train.eps)))

    @property
    def label(self) -> str:
        """A short human name: model, method, options of both, seed."""
        return _label(self, self.options | self.method_options)


def labels(configs: Sequence[TrialConfig]) -> list[str]:
    """Each config's label, with the settings that others of them have otherwise."""
    settings = [_settings(config) for config in configs]
    differ = [name for name in (settings[0] if settings else ()) if any(s[name] != settings[0][name] for s in settings)]
    return [
        _label(config, config.options | config.method_options | {name: own[name] for name in differ})
        for config, own in zip(configs, settings, strict=True)
    ]


def _label(config: TrialConfig, shown: dict[str, Any]) -> str:
    options = "".join(f" {name}={value}" for name, value in shown.items())
    return f"{config.model} {config.method}{options} seed {config.seed}"


def _settings(config: TrialConfig) -> dict[str, Any]:
    """All that a sweep's entry can set of a trial, but for its options, flat."""
    parts = {"train": dataclasses.asdict(config.train), "evaluation": dataclasses.asdict(config.evaluation)}
    nested = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    return {"width": config.width, "train_images": config.train_images, **nested}


def to_dict(config: TrialConfig) -> dict[str, Any]:
    """A JSON-ready dictionary that `from_dict` turns back into an equal config."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(data: dict[str, Any]) -> TrialConfig:
    """The config that `to_dict` wrote. Raises SettingError or TypeError where keys or values do not fit."""
    train, evaluation = data["train"], data["evaluation"]
    return TrialConfig(
        **{
            **data,
            "train": TrainSettings(**{**train, "decay_epochs": tuple(train["decay_epochs"])}),
            "evaluation": EvaluationSettings(**{**evaluation, "methods": tuple(evaluation["methods"])}),
        }
    )


def _chosen(settings: TrainSettings | EvaluationSettings) -> dict[str, Any]:
    """The settings that are not at their defaults."""
    values = dataclasses.asdict(settings)
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return {name: value for name, value in values.items() if value != defaults[name]}


def trial_key(config: TrialConfig, fingerprint: str) -> str:
    """Sixteen hex digits that name a trial: hash of its resolved config, its data and the recipe version.

    Settings at their defaults are left out, so that a new one leaves the names of older trials as they are.
    """
    chosen = to_dict(config) | {"train": _chosen(config.train), "evaluation": _chosen(config.evaluation)}
    content = json.dumps([chosen, fingerprint, RECIPE_VERSION], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
