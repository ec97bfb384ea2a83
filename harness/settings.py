"""The radius, and how a network is trained and evaluated: frozen classes that check themselves.

These are plain dataclasses, because training and certifying must run where pydantic is not installed. The text below a
field says what it means, in the reference of sweep files, too.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self, get_args

from harness.common import names
from harness.common.errors import Requirements, SettingError, require


@dataclass(frozen=True)
class Stage:
    """A stage of the verifier.

    settings: the evaluation settings that it uses and not every stage does. A stage that uses `certificates` has proofs
    that only a certificate confirms for certain.
    """

    settings: tuple[str, ...] = ()


STAGES = {
    names.IBP: Stage(),
    names.CROWN_IBP: Stage(),
    names.CROWN: Stage(("certificates",)),
    names.ALPHA_CROWN: Stage(("certificates",)),
    names.BAB: Stage(("bab_seconds", "bab_branches", "certificates")),
}
"""The verifier's stages, cheapest first: the bounds of cerdeq.bounds, named here for code that runs without torch, and
branch and bound."""

STAGES_BY_SETTING = {
    setting: tuple(name for name, stage in STAGES.items() if setting in stage.settings)
    for setting in ("bab_seconds", "bab_branches", "certificates")
}
"""For each evaluation setting that not every stage uses: the stages that use it."""

Attack = Literal["margin", "all"]
Precision = Literal["tf32", "float32", "bf16", "auto"]
CompileMode = Literal["auto", "always", "never"]
Initialisation = Literal["ibp", "default"]
RampShape = Literal["smooth", "linear"]
RAMP = ("ramp_start", "ramp_epochs", "ramp_shape")  # settings of the ramp
LARGEST_EPOCHS = 1_000_000

STRICT: Any = {"extra": "forbid", "strict": True, "allow_inf_nan": False, "use_attribute_docstrings": True}
"""How pydantic reads every part of a sweep file: no unknown keys, no values of another type."""


def describe_weak_attack(first_step: float, steps: int) -> str:
    """Return a warning if the attack's steps cannot cross the ball, else "". first_step: in eps."""
    reach = first_step * (steps + 1) / 2
    if reach >= 2:
        return ""
    return (
        f"the attack moves a pixel by at most {reach:.3g} eps, and crossing the ball takes 2 eps: "
        "attack errors may be too low (raise evaluation.attack_step)"
    )


class Radius(Fraction):
    """An exact l-inf radius in pixel units, above 0 and at most 1. As text it is over 255 where small: 8/255.

    It is made from a number or a text such as '8/255' or '0.1'; a pickle or a copy also names the denominator. Raises
    SettingError for anything else.
    """

    def __new__(cls, value: object, denominator: int = 1) -> Self:
        """Return the radius `value / denominator`."""
        is_number = isinstance(value, str | int | float | Fraction) and not isinstance(value, bool)
        try:
            fraction = Fraction(str(value) if is_number else "") / denominator
        except (ValueError, ZeroDivisionError):
            raise SettingError("eps", value, "a number or a fraction such as 8/255") from None
        is_radius = 0 < fraction <= 1 and float(fraction) > 0
        hint = f"; did you mean {fraction}/255?" if fraction.denominator == 1 < fraction <= 255 else ""
        require("eps", str(value), is_radius, f"a radius in pixel units, above 0 and at most 1{hint}")
        return super().__new__(cls, fraction)

    from_float = Fraction.from_float  # type: ignore[assignment]  # for comparisons with floats that are no radius

    def __str__(self) -> str:
        levels = 255 * self
        return f"{levels}/255" if levels.denominator == 1 and levels <= 16 else super().__str__()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let pydantic, where it is installed, call the constructor."""
        from pydantic_core import core_schema

        text_or_number = core_schema.union_schema([core_schema.str_schema(), core_schema.float_schema()])
        return core_schema.no_info_plain_validator_function(cls, json_schema_input_schema=text_or_number)


def fit_to_epochs(train: Any) -> Any:
    """Return the recipe of a sweep file with decays and a ramp that fit into its epochs, if it does not give its own.

    Defaults that fit stay. Others are shortened as `epochs` is. Anything that is not a recipe is returned as it is.
    """
    epochs = train.get("epochs") if isinstance(train, dict) else None
    if type(epochs) is not int or not 1 <= epochs < TrainSettings.epochs:
        return train
    fitted, start = dict[str, Any](), train.get("ramp_start", TrainSettings.ramp_start)
    if epochs < TrainSettings.decay_epochs[-1]:
        scaled = sorted({epoch * epochs // TrainSettings.epochs for epoch in TrainSettings.decay_epochs})
        fitted["decay_epochs"] = [epoch for epoch in scaled if epoch > 0]
    if type(start) is int and start - 1 + TrainSettings.ramp_epochs > epochs:
        fitted["ramp_epochs"] = max(0, min(epochs // 2, epochs + 1 - start))
    return fitted | train


@dataclass(frozen=True)
class TrainSettings:
    """The recipe of a study, of which an entry of `trials` can override keys (Shi et al. 2021, section 4). Epochs count
    from 1."""

    __pydantic_config__: ClassVar = STRICT

    epochs: int = 160
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 5e-4
    """Adam's learning rate before the first decay."""
    decay_epochs: tuple[int, ...] = (120, 140)
    """After each of these epochs the learning rate is multiplied by `decay_factor`. In a sweep file that gives `epochs`
    but not this, decays that come later are moved forward in proportion."""
    decay_factor: float = 0.2
    """Factor of the learning rate at each decay."""
    ramp_start: int = 2
    """The epoch in which eps begins to grow."""
    ramp_epochs: int = 80
    """Epochs over which eps grows; 0 means no ramp. In a sweep file that gives `epochs` but not this, at most half of
    them if the default does not fit."""
    ramp_shape: RampShape = "smooth"
    """How eps grows: 'smooth' is a quartic, then a straight line (Xu et al. 2020); 'linear' is a straight line."""
    eps: Radius | None = None
    """The training radius; null for the evaluation radius."""
    kappa: float = 0.0
    """Weight of the clean cross entropy; the method's loss has weight 1 - kappa (Gowal et al. 2018)."""
    kappa_start: float | None = None
    """The same weight while eps is 0; it changes linearly with eps to `kappa`. Null for `kappa` throughout."""
    l1: float = 0.0
    """Weight of the sum of absolute weights, over all parameters with two dimensions or more."""
    accumulate: int = 1
    """Number of parts in which each batch is processed (gradient accumulation); batch norm sees one part at a time."""
    clip_norm: float | None = 10.0
    """Largest gradient norm; null clips nothing."""
    regularisation: float = 0.5
    """Weight of the regularisers; it falls to 0 as eps grows."""
    regularise_equilibria: bool = True
    """Whether the regularisers include the pre-activations of equilibria, as they do those of every ReLU."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is then the network that is evaluated; it begins
    as a plain mean. Null evaluates the last weights."""
    recompute_statistics: bool = False
    """Before evaluation, recompute batch norm's statistics on the whole training set, in whole batches, unaugmented
    (CTBench 2024). The metrics of each epoch still describe the network as it trains."""
    precision: Precision = "tf32"
    """Precision of matrix products in training steps: 'tf32', 'float32', or 'bf16', which keeps parameters, sums,
    margins and the loss in float32; 'auto' is 'bf16' on machines where that is faster, else 'tf32', so numbers depend
    on the machine. It does not affect evaluation."""
    compile: CompileMode = "auto"
    """Whether to compile training steps: 'auto' where compiling works and the trial is long enough to gain time,
    'always' where it works, 'never'. Compiled steps round otherwise, and 'auto' times steps first: on a busy machine it
    may choose otherwise than on an idle one. For the very same numbers write 'always' or 'never'."""
    initialisation: Initialisation = "ibp"
    """'ibp' draws weights that keep the width of boxes (Shi et al. 2021), 'default' keeps torch's own. With
    batch norm, which cancels the scale of weights, this matters little."""
    mean: tuple[float, ...] | None = None
    """A mean for each channel: the network sees (pixel - mean) / std, pixels in [0, 1]. Null for the data set's: on
    MNIST mean 0 and std 1."""
    std: tuple[float, ...] | None = None
    """A standard deviation for each channel; null for the data set's."""

    def __post_init__(self) -> None:
        check = Requirements()
        epochs = 1 <= self.epochs <= LARGEST_EPOCHS
        require("epochs", self.epochs, epochs, f"an integer of at least 1 and at most {LARGEST_EPOCHS:,}")
        check("batch_size", self.batch_size, self.batch_size >= 2, "an integer of at least 2 (batch norm)")
        check("learning_rate", self.learning_rate, 0 < self.learning_rate < 1, "above 0 and below 1")
        decays = self.decay_epochs
        fits = all(a < b for a, b in pairwise(decays)) and all(1 <= epoch <= self.epochs for epoch in decays)
        check("decay_epochs", list(decays), fits, f"increasing epochs between 1 and epochs = {self.epochs}")
        check("decay_factor", self.decay_factor, 0 < self.decay_factor <= 1, "above 0 and at most 1")
        check("ramp_start", self.ramp_start, self.ramp_start >= 1, "an epoch of at least 1")
        check("ramp_epochs", self.ramp_epochs, self.ramp_epochs >= 0, "an integer of at least 0")
        last = self.ramp_start - 1 + self.ramp_epochs
        ends = f"a ramp that ends by epoch {self.epochs}; this one ends in {last}, ramp_start - 1 + ramp_epochs"
        check("ramp_epochs", self.ramp_epochs, last <= self.epochs, ends)
        check("ramp_shape", self.ramp_shape, self.ramp_shape in get_args(RampShape), "'smooth' or 'linear'")
        if self.eps is not None:
            object.__setattr__(self, "eps", Radius(self.eps))
        check("kappa", self.kappa, 0 <= self.kappa <= 1, "from 0 to 1")
        start = self.kappa_start
        check("kappa_start", start, start is None or 0 <= start <= 1, "from 0 to 1, or null for kappa throughout")
        check("l1", self.l1, 0 <= self.l1 < math.inf, "at least 0 and finite")
        parts = self.accumulate
        allowed = f"a divisor of batch_size = {self.batch_size}, parts of 2 or more"
        check("accumulate", parts, self.can_accumulate(parts), allowed)
        norm, decay = self.clip_norm, self.ema_decay
        check("clip_norm", norm, norm is None or 0 < norm < math.inf, "above 0 and finite, or null for no clipping")
        check("regularisation", self.regularisation, 0 <= self.regularisation < math.inf, "at least 0 and finite")
        check("ema_decay", decay, decay is None or 0 < decay < 1, "above 0 and below 1, or null for no average")
        check("precision", self.precision, self.precision in get_args(Precision), "'tf32', 'float32', 'bf16' or 'auto'")
        check("compile", self.compile, self.compile in get_args(CompileMode), "'auto', 'always' or 'never'")
        initialisation = self.initialisation
        check("initialisation", initialisation, initialisation in get_args(Initialisation), "'ibp' or 'default'")
        mean, std = list(self.mean or ()), list(self.std or ())
        is_small = all(abs(value) <= 1e6 for value in mean)
        check("mean", mean, is_small, "numbers from -1e6 to 1e6, or null for the data set's")
        is_positive = all(1e-6 <= value <= 1e6 for value in std)  # in float32 much smaller ones are 0
        check("std", std, is_positive, "numbers from 1e-6 to 1e6, or null for the data set's")
        check.raise_errors()

    def can_accumulate(self, parts: int) -> bool:
        """Return whether a batch can be divided into so many equal parts of 2 examples or more."""
        return parts >= 1 and self.batch_size % parts == 0 and self.batch_size // parts >= 2


@dataclass(frozen=True)
class EvaluationSettings:
    """How a trained network is evaluated."""

    __pydantic_config__: ClassVar = STRICT

    stages: tuple[str, ...] = (names.IBP, names.CROWN_IBP, names.ALPHA_CROWN)
    """The verifier's stages, 'ibp' first, in the order 'ibp', 'crown-ibp', 'crown', 'alpha-crown', 'bab' (branch and
    bound). Each stage tries the images that those before it left undecided."""
    test_images: int | None = None
    """Number of test images, the first ones; null takes all."""
    batch_size: int = 500
    """Most images evaluated at a time; fewer where they take many seconds."""
    attack: Attack = "all"
    """What projected gradient descent maximises: 'margin', or 'all': the margin, cross entropy and the margin against
    each other class."""
    attack_steps: int = 40
    """Steps from each start."""
    attack_step: float = 0.25
    """Size of the first step as a fraction of eps; the sizes fall linearly to 0. Their sum, attack_step *
    (attack_steps + 1) / 2, must be above 2 to cross the ball: with 10 steps use 1. If it is below 2, the run and the
    leaderboard warn."""
    attack_restarts: int = 3
    """Starts for each of the attack's objectives."""
    stage_seconds: float | None = None
    """Time limit of each stage per image; null sets none. An image that a stage does not finish goes on to the next
    one; if none decides it, its verdict is 'timeout'. Branch and bound has its own limit, `bab_seconds`."""
    bab_seconds: float | None = 60.0
    """Time limit of branch and bound per image; null sets none. Limit this or `bab_branches`."""
    bab_branches: int | None = None
    """Largest number of leaves that branch and bound bounds per image; null sets no limit."""
    certificates: bool = False
    """Whether to save certificates of crown, alpha-crown and bab, so that `harness.recheck` needs no search."""

    def __post_init__(self) -> None:
        check = Requirements()
        stages = list(self.stages)
        fits = names.IBP in stages and stages == [stage for stage in STAGES if stage in stages]
        check("stages", stages, fits, f"'ibp' and any of the others, in this order: {', '.join(STAGES)}")
        images = self.test_images
        check("test_images", images, images is None or images >= 1, "an integer of at least 1, or null for all")
        check("attack", self.attack, self.attack in get_args(Attack), "'margin' or 'all'")
        for name in ("batch_size", "attack_steps", "attack_restarts"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "an integer of at least 1")
        check("attack_step", self.attack_step, 0 < self.attack_step <= 2, "above 0 and at most 2")
        for name in ("stage_seconds", "bab_seconds"):
            seconds = getattr(self, name)
            is_limit = seconds is None or 0 < seconds < math.inf
            check(name, seconds, is_limit, "above 0 and finite, or null for no limit")
        seconds, branches = self.bab_seconds, self.bab_branches
        check("bab_branches", branches, branches is None or branches >= 1, "an integer of at least 1, or null")
        limited = names.BAB not in self.stages or seconds is not None or branches is not None
        check("bab_seconds", seconds, limited, "a number, since bab_branches is null")
        check.raise_errors()
