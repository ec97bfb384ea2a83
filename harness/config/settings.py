"""How a network is trained and how it is judged: frozen dataclasses that check themselves.

Plain dataclasses, because training and certifying must run where pydantic is not installed. What stands below a field
says what it means, in the sweep files' reference and their JSON schema too.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from harness.config.radius import Radius
from harness.errors import require

BAB = "bab"
STAGES = ("ibp", "crown-ibp", "crown", "alpha-crown", BAB)
"""The verifier's stages, cheapest first: cerdeq.bounds.BOUNDS, for those that work without torch; branch and bound."""

CERTIFIED_BY_SEARCH = ("crown", "alpha-crown", BAB)
"""The stages whose proofs nothing but a certificate confirms for certain."""

JUDGING_BY_STAGE = {"bab_seconds": (BAB,), "bab_branches": (BAB,), "certificates": CERTIFIED_BY_SEARCH}
"""Of the settings of judging that not every stage uses, the stages that do."""

ATTACKS = ("margin", "all")
"""What an attack climbs: the margin; or it, cross entropy and the margin against each other class."""

PRECISIONS = ("tf32", "float32", "bf16")
COMPILING = ("auto", "always", "never")
INITIALISATIONS = ("ibp", "default")
LARGEST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class OneOf:
    """Annotation of a text: the names it may be, for the JSON schema. They are checked where the text is."""

    names: tuple[str, ...]

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """As pydantic asks for it, where there is pydantic."""
        return {**handler(schema), "enum": list(self.names)}


@dataclass(frozen=True)
class TrainSettings:
    """The recipe, which the trials of a study share (Shi et al. 2021, section 4). Epochs are counted from 1."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}

    epochs: int = 160
    """How many times the training images are gone through."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 5e-4
    """Adam's, until the first decay."""
    decay_epochs: tuple[int, ...] = (120, 140)
    """After each of these epochs the learning rate is multiplied by `decay_factor`."""
    decay_factor: float = 0.2
    """What the learning rate is multiplied by."""
    ramp_start: int = 2
    """The epoch with which eps begins to grow."""
    ramp_epochs: int = 80
    """How many epochs eps grows."""
    eps: Radius | None = None
    """The radius trained for, null for the one judged."""
    kappa: float = 0.0
    """Weight of the clean cross entropy beside the method's loss, which has 1 - kappa (Gowal et al. 2018)."""
    l1: float = 0.0
    """Weight of the sum of absolute weights, of all parameters with two dimensions or more."""
    accumulate: int = 1
    """In how many parts a batch is taken, batch norm over each."""
    clip_norm: float | None = 10.0
    """The largest norm of a gradient; null leaves gradients as they are."""
    regularisation: float = 0.5
    """Weight of the regularisers, which falls to 0 as eps grows."""
    regularise_equilibria: bool = True
    """Whether the regularisers count the pre-activations of equilibria, as they do every ReLU's."""
    ema_decay: float | None = None
    """Judged is the average of the networks after each step, an older one's share falling by this factor, once
    1 / steps is less than 1 minus it; before it is their plain mean. Null judges the last."""
    recompute_statistics: bool = False
    """Before judging, batch norm's statistics become those of the whole training set, in whole batches, unaugmented
    (CTBench 2024); rows of epochs are of the latest network as it trains."""
    precision: Annotated[str, OneOf(PRECISIONS)] = "tf32"
    """Of products in training's steps alone: 'tf32', 'float32', or 'bf16', with which parameters, sums, margins and the
    loss are float32. Judging does not know it."""
    compile: Annotated[str, OneOf(COMPILING)] = "auto"
    """Whether steps are compiled: 'auto' where that works and the trial is long enough to earn it back, 'always' where
    it works, 'never'. It moves numbers as another machine does, by rounding alone."""
    initialisation: Annotated[str, OneOf(INITIALISATIONS)] = "ibp"
    """'ibp' draws weights that keep the width of boxes (Shi et al. 2021), 'default' leaves torch's own: batch norm
    undoes the scale of weights, so that it matters most where there is none."""

    def __post_init__(self) -> None:
        require(
            "epochs",
            self.epochs,
            1 <= self.epochs <= LARGEST_EPOCHS,
            f"an integer of at least 1 and at most {LARGEST_EPOCHS:,}",
        )
        require("batch_size", self.batch_size, self.batch_size >= 2, "an integer of at least 2 (batch norm)")
        require("learning_rate", self.learning_rate, 0 < self.learning_rate < 1, "above 0 and below 1")
        decays = self.decay_epochs
        fits = all(a < b for a, b in pairwise(decays)) and all(1 <= epoch <= self.epochs for epoch in decays)
        require("decay_epochs", list(decays), fits, f"increasing epochs between 1 and epochs = {self.epochs}")
        require("decay_factor", self.decay_factor, 0 < self.decay_factor <= 1, "above 0 and at most 1")
        require("ramp_start", self.ramp_start, self.ramp_start >= 1, "an epoch of at least 1")
        require("ramp_epochs", self.ramp_epochs, self.ramp_epochs >= 0, "an integer of at least 0")
        last = self.ramp_start - 1 + self.ramp_epochs
        ends = f"a ramp that ends within training: ramp_start - 1 + ramp_epochs = {last} exceeds epochs = {self.epochs}"
        require("ramp_epochs", self.ramp_epochs, last <= self.epochs, ends)
        if self.eps is not None:
            object.__setattr__(self, "eps", Radius(self.eps))
        require("kappa", self.kappa, 0 <= self.kappa <= 1, "from 0 to 1")
        require("l1", self.l1, 0 <= self.l1 < math.inf, "at least 0 and finite")
        parts = self.accumulate
        divides = parts >= 1 and self.batch_size % parts == 0 and self.batch_size // parts >= 2
        require("accumulate", parts, divides, f"a divisor of batch_size = {self.batch_size}, parts of 2 or more")
        norm, decay = self.clip_norm, self.ema_decay
        require("clip_norm", norm, norm is None or 0 < norm < math.inf, "above 0 and finite, or null for no clipping")
        require("regularisation", self.regularisation, 0 <= self.regularisation < math.inf, "at least 0 and finite")
        require("ema_decay", decay, decay is None or 0 < decay < 1, "above 0 and below 1, or null for no average")
        precision, compiled, drawn = self.precision, self.compile, self.initialisation
        require("precision", precision, precision in PRECISIONS, "'tf32', 'float32' or 'bf16'")
        require("compile", compiled, compiled in COMPILING, "'auto', 'always' or 'never'")
        require("initialisation", drawn, drawn in INITIALISATIONS, "'ibp' or 'default'")


@dataclass(frozen=True)
class EvaluationSettings:
    """How a trained network is judged."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}

    stages: tuple[Annotated[str, OneOf(STAGES)], ...] = ("ibp", "crown-ibp", "alpha-crown")
    """The verifier's, in the order of 'ibp', 'crown-ibp', 'crown', 'alpha-crown' and 'bab' (branch and bound), 'ibp'
    first; each tries what those before it left open."""
    test_images: int | None = None
    """The first so many; null takes all of them."""
    batch_size: int = 500
    """Images judged at a time."""
    attack: Annotated[str, OneOf(ATTACKS)] = "all"
    """What projected gradient descent climbs: the 'margin', or 'all' of it, cross entropy and the margin against each
    other class."""
    attack_steps: int = 40
    """How many steps from a start."""
    attack_step: float = 0.25
    """The first of them over eps; the others fall linearly to nothing. The sum of all, about attack_step *
    attack_steps / 2, must be well above 2 for a climb to cross its interval: with 10 steps take 1."""
    attack_restarts: int = 3
    """From how many starts, for each of the attack's objectives."""
    bab_seconds: float | None = 60.0
    """What branch and bound may take for an image; null is without end, for it or `bab_branches`."""
    bab_branches: int | None = None
    """How many leaves branch and bound may bound for an image; null is without end."""
    certificates: bool = False
    """Whether to keep what checks the proofs of crown, alpha-crown and bab without a search."""

    def __post_init__(self) -> None:
        rising = [stage for stage in STAGES if stage in self.stages] == list(self.stages)
        require("stages", list(self.stages), rising and "ibp" in self.stages, f"ibp, then of these in order: {STAGES}")
        images = self.test_images
        require("test_images", images, images is None or images >= 1, "an integer of at least 1, or null for all")
        require("attack", self.attack, self.attack in ATTACKS, "'margin' or 'all'")
        for name in ("batch_size", "attack_steps", "attack_restarts"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "an integer of at least 1")
        require("attack_step", self.attack_step, 0 < self.attack_step <= 2, "above 0 and at most 2")
        seconds, branches = self.bab_seconds, self.bab_branches
        ends = seconds is None or 0 < seconds < math.inf
        require("bab_seconds", seconds, ends, "above 0 and finite, or null for no limit")
        require("bab_branches", branches, branches is None or branches >= 1, "an integer of at least 1, or null")
        limited = BAB not in self.stages or seconds is not None or branches is not None
        require("bab_seconds", seconds, limited, "a number, where bab_branches is null")
