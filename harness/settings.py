"""The radius, and how a network is trained and evaluated: models that check themselves.

The text below a field says what it means, in the reference of sweep files, too.
"""

import hashlib
import json
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationInfo, field_validator, model_validator

from baselines import suggestion
from harness.common import names
from harness.common.errors import require
from harness.common.models import Floats, Integers, Model, Texts
from harness.common.radius import Radius

STAGES = (names.IBP, names.CROWN_IBP, names.CROWN, names.ALPHA_CROWN, names.BAB)
"""The verifier's stages, cheapest first: the bounds of cerdeq.bounds, named here for code that runs without torch, and
branch and bound."""
CERTIFICATE_STAGES = (names.CROWN, names.ALPHA_CROWN, names.BAB)
"""The stages whose proofs only a certificate confirms for certain."""


def stages_by_setting(certificates: bool) -> dict[str, tuple[str, ...]]:
    """Return, for each evaluation setting that not every stage uses, the stages that use it.

    certificates: the setting of that name. Branch and bound searches for certificates, within its budget.
    """
    searching = CERTIFICATE_STAGES if certificates else (names.BAB,)
    budget = dict.fromkeys(("bab_seconds", "bab_branches"), searching)
    return {**budget, "bab_total_seconds": (names.BAB,), "certificates": CERTIFICATE_STAGES}


Precision = Literal["tf32", "float32", "bf16"]
RampShape = Literal["smooth", "linear"]
RAMP = ("ramp_start", "ramp_epochs", "ramp_shape")  # settings of the ramp


def describe_weak_attack(first_step: float, steps: int) -> str:
    """Return a warning if the attack's steps cannot cross the ball, else "". first_step: in eps."""
    reach = first_step * (steps + 1) / 2
    if reach >= 2:
        return ""
    return (
        f"the attack moves a pixel by at most {reach:.3g} eps, and crossing the ball takes 2 eps: "
        "attack errors may be too low (raise evaluation.attack_step)"
    )


class Recipe(Model):
    """The recipe of a study, of which an entry of `trials` can override keys (Shi et al. 2021, section 4). Epochs count
    from 1."""

    epochs: int = Field(160, ge=1, le=1_000_000)
    """Passes over the training images."""
    batch_size: int = Field(128, ge=2)
    """Images per step, two or more because of batch norm."""
    learning_rate: float = Field(5e-4, gt=0, lt=1)
    """Adam's learning rate before the first decay."""
    decay_epochs: Integers = Field((120, 140), validate_default=True)
    """After each of these epochs the learning rate is multiplied by `decay_factor`. In a recipe that gives `epochs`
    but not this, decays that come later are moved forward in proportion."""
    decay_factor: float = Field(0.2, gt=0, le=1)
    """Factor of the learning rate at each decay."""
    ramp_start: int = Field(2, ge=1)
    """The epoch in which eps begins to grow."""
    ramp_epochs: int = Field(80, ge=0, validate_default=True)
    """Epochs over which eps grows; 0 means no ramp. In a recipe that gives `epochs` but not this, at most half of
    them if the default does not fit."""
    ramp_shape: RampShape = "smooth"
    """How eps grows: 'smooth' is a quartic, then a straight line (Xu et al. 2020); 'linear' is a straight line."""
    eps: Radius | None = None
    """The training radius; null for the sweep's `eps`."""
    kappa: float = Field(0.0, ge=0, le=1)
    """Weight of the clean cross entropy; the method's loss has weight 1 - kappa (Gowal et al. 2018)."""
    kappa_start: float | None = Field(None, ge=0, le=1)
    """The same weight while eps is 0; it changes linearly with eps to `kappa`. Null for `kappa` throughout."""
    l1: float = Field(0.0, ge=0)
    """Weight of the sum of absolute weights, over all parameters with two dimensions or more."""
    accumulate: int = 1
    """Number of parts in which each batch is processed (gradient accumulation); batch norm sees one part at a time."""
    clip_norm: float | None = Field(10.0, gt=0)
    """Largest gradient norm; null clips nothing."""
    regularisation: float = Field(0.5, ge=0)
    """Weight of the regularisers; it falls to 0 as eps grows."""
    regularise_equilibria: bool = True
    """Whether the regularisers include the pre-activations of equilibria, as they do those of every ReLU."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then the network that is evaluated; it begins
    as a plain mean. Null evaluates the last weights."""
    recompute_statistics: bool = False
    """Before evaluation, recompute batch norm's statistics on the whole training set, in whole batches, unaugmented
    (CTBench 2024). The metrics of each epoch still describe the network as it trains."""
    precision: Precision = "tf32"
    """Precision of matrix products in training steps: 'tf32', 'float32', or 'bf16', which keeps parameters, sums,
    margins and the loss in float32. A CPU computes 'tf32' in float32. It does not affect evaluation."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Whether to compile training steps, which then round otherwise: 'always', 'never', or 'auto' for trials of
    10,000 steps or more, if there is a compiler. `steps.json` in the network's folder says what was decided; a trial
    that continues keeps to it."""
    initialisation: Literal["ibp", "default"] = "ibp"
    """'ibp' draws weights that keep the width of boxes (Shi et al. 2021), 'default' keeps torch's own. With
    batch norm, which cancels the scale of weights, this matters little."""
    mean: Floats | None = None
    """A mean for each channel: the network sees (pixel - mean) / std, pixels in [0, 1]. Null for the data set's: on
    MNIST mean 0 and std 1."""
    std: Floats | None = None
    """A standard deviation for each channel; null for the data set's."""

    @model_validator(mode="wrap")
    @classmethod
    def _fit_to_epochs(cls, recipe: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        """Shorten decays and ramp as `epochs` is, where the recipe does not give its own; defaults that fit stay."""
        epochs = recipe.get("epochs") if isinstance(recipe, dict) else None
        default = {name: field.default for name, field in cls.model_fields.items()}
        if type(epochs) is not int or not 1 <= epochs < default["epochs"]:
            return make(recipe)
        fitted, start = dict[str, Any](), recipe.get("ramp_start", default["ramp_start"])
        if epochs < default["decay_epochs"][-1]:
            scaled = sorted({epoch * epochs // default["epochs"] for epoch in default["decay_epochs"]})
            fitted["decay_epochs"] = [epoch for epoch in scaled if epoch > 0]
        if type(start) is int and start - 1 + default["ramp_epochs"] > epochs:
            fitted["ramp_epochs"] = max(0, min(epochs // 2, epochs + 1 - start))
        made = make(fitted | recipe)
        made.model_fields_set.intersection_update(recipe)  # an entry with its own epochs has them fitted anew
        return made

    @field_validator("decay_epochs")
    @classmethod
    def _check_decays(cls, decays: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        epochs = info.data.get("epochs", 0)
        fits = all(a < b for a, b in pairwise(decays)) and all(1 <= epoch <= epochs for epoch in decays)
        require("decay_epochs", list(decays), fits or not epochs, f"increasing epochs from 1 to epochs = {epochs}")
        return decays

    @field_validator("ramp_epochs")
    @classmethod
    def _check_ramp(cls, count: int, info: ValidationInfo) -> int:
        epochs, last = info.data.get("epochs", 0), info.data.get("ramp_start", 1) - 1 + count
        ends = f"a ramp that ends by epoch {epochs}; this one ends in {last}, ramp_start - 1 + ramp_epochs"
        require("ramp_epochs", count, last <= epochs or not epochs, ends)
        return count

    @field_validator("accumulate")
    @classmethod
    def _check_parts(cls, parts: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch_size", 0)
        fits = not batch or (parts >= 1 and batch % parts == 0 and batch // parts >= 2)
        require("accumulate", parts, fits, f"a divisor of batch_size = {batch}, parts of 2 or more")
        return parts

    @field_validator("mean", "std")
    @classmethod
    def _check_scale(cls, values: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        least = -1e6 if info.field_name == "mean" else 1e-6  # in float32 much smaller deviations are 0
        fits = all(least <= value <= 1e6 for value in values or ())
        require(str(info.field_name), list(values or ()), fits, f"numbers from {least:g} to 1e6")
        return values


Limit = Annotated[float, Field(gt=0)]


class EvaluationSettings(Model):
    """How a trained network is evaluated."""

    stages: Texts = (names.IBP, names.CROWN_IBP, names.ALPHA_CROWN)
    """The verifier's stages, 'ibp' first, in the order 'ibp', 'crown-ibp', 'crown', 'alpha-crown', 'bab' (branch and
    bound). Each stage tries the images that those before it left undecided."""
    test_images: int | None = Field(None, ge=1)
    """Number of test images, or of held-out ones, the first ones; null takes all."""
    batch_size: int = Field(500, ge=1)
    """Most images evaluated at a time; fewer where they take many seconds."""
    attack: Literal["margin", "all", "diversified"] = "all"
    """What projected gradient descent maximises: 'margin', or 'all': the margin, cross entropy and the margin against
    each other class. 'diversified' is 'all', then a second attack on the images that neither it falsifies nor IBP
    certifies: gradient steps from many starts that differ in their outputs, as branch and bound begins."""
    attack_steps: int = Field(40, ge=1)
    """Steps from each start."""
    attack_step: float = Field(0.25, gt=0, le=2)
    """Size of the first step as a fraction of eps; the sizes fall linearly to 0. Their sum, attack_step *
    (attack_steps + 1) / 2, must be above 2 to cross the ball: with 10 steps use 1. If it is below 2, the run and the
    leaderboard warn."""
    attack_restarts: int = Field(3, ge=1)
    """Starts for each of the attack's objectives."""
    stage_seconds: Limit | None = None
    """Time limit per image of the attack and of each bound after IBP; null sets none. An image that a stage does not
    finish goes on to the next one; if none decides it, its verdict is 'timeout'. The prediction and IBP have no limit,
    branch and bound has its own, `bab_seconds`."""
    bab_seconds: Limit | None = 60.0
    """Time limit of branch and bound per image, also where it searches for a certificate; null sets none. Limit this or
    `bab_branches`."""
    bab_branches: int | None = Field(None, ge=1)
    """Largest number of leaves that branch and bound bounds per image; null sets no limit."""
    bab_total_seconds: Limit | None = None
    """Time limit of branch and bound for all images of an evaluation together; null sets none. Each range of images,
    which one worker evaluates at a time, has its share. The verdict on an undecided image after it is 'timeout'."""
    certificates: bool = False
    """Whether to save certificates of crown, alpha-crown and bab, so that `harness.recheck` needs no search."""

    @field_validator("stages")
    @classmethod
    def _check_stages(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        fits = names.IBP in stages and stages == tuple(stage for stage in STAGES if stage in stages)
        unknown = [suggestion(stage, list(STAGES)) for stage in stages if stage not in STAGES]
        allowed = f"'ibp' and any of the others, in this order: {', '.join(STAGES)}{''.join(unknown)}"
        require("stages", list(stages), fits, allowed)
        return stages

    @model_validator(mode="after")
    def _check_limit(self) -> Self:
        is_limited = self.bab_branches is not None or self.bab_seconds is not None
        allowed = "a number, since bab_seconds is null"
        require("bab_branches", self.bab_branches, is_limited or not self.uses_branch_and_bound, allowed)
        return self

    @property
    def uses_branch_and_bound(self) -> bool:
        """Whether branch and bound decides images, or searches for certificates."""
        return not set(stages_by_setting(self.certificates)["bab_seconds"]).isdisjoint(self.stages)


EVALUATION_VERSION = 1
"""Raise it whenever evaluation changes its numbers, through a default too (tests/harness/golden then fails)."""


class Evaluation(EvaluationSettings):
    """Everything that decides the verdicts on given weights, except the data and the code."""

    eps: Radius
    """The radius."""
    split: Literal["test", "validation"] = "test"
    """Which images: test images, or those held out of training."""

    @property
    def key(self) -> str:
        """The sixteen hex digits that name the evaluation: a hash of its JSON and the version of evaluations."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps([content, EVALUATION_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def description(self) -> str:
        """Radius, stages and images, such as 'eps 8/255, ibp > bab (60 s), first 1,000 test images'."""
        return f"eps {self.eps}, {self.verifier}, {self.images}"

    @property
    def verifier(self) -> str:
        """The stages, such as 'ibp > bab (60 s)'."""
        return " > ".join(f"{stage} ({self._budget})" if stage == names.BAB else stage for stage in self.stages)

    @property
    def images(self) -> str:
        """Which images, such as 'first 1,000 test images'."""
        kind = "test images" if self.split == "test" else "held-out images"
        return f"first {self.test_images:,} {kind}" if self.test_images else f"all {kind}"

    @property
    def _budget(self) -> str:
        limits = [] if self.bab_seconds is None else [f"{self.bab_seconds:g} s"]
        limits += [] if self.bab_branches is None else [f"{self.bab_branches:,} branches"]
        total = [] if self.bab_total_seconds is None else [f"{self.bab_total_seconds:g} s in all"]
        return ", ".join([" or ".join(limits), *total])
