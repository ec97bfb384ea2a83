"""Lies in options and metrics that describe the network: its W, the number of parameters."""

import json

from lies_in_folders import Lie
from lying_sweep import CHECKPOINT, Change, change_config, change_metrics

from harness.storage import folder
from harness.sweep.imported_network import TRAINED_ELSEWHERE

LABELS = "harness.checker.verdicts.check_labels"


def change_options(**options: object) -> Change:
    """Change options of CerDEQ."""

    def change(sweep):  # type: ignore[no-untyped-def]
        before = json.loads((sweep.cerdeq / folder.TRIAL).read_text())["config"]["options"]
        change_config("cerdeq", options=before | options)(sweep)

    return change


METHOD = "harness.checker.folders.check_method"
ELSEWHERE = {"method": TRAINED_ELSEWHERE, "checkpoint": CHECKPOINT}


def call_elsewhere(of: str, options: dict[str, object], **metrics: float) -> Change:
    """Let a network be trained elsewhere, with other options and metrics."""

    def change(sweep):  # type: ignore[no-untyped-def]
        change_config(of, **ELSEWHERE)(sweep)
        change_options(**options)(sweep)
        change_metrics(of, **metrics)(sweep)

    return change


LIES = {
    "options of the network as options of the method": Lie(
        change_config("cerdeq", method_options={"parametrisation": "nonnegative"}),
        "trial.json: unknown option 'parametrisation' of ibp", METHOD, "cerdeq"),
    "a method that does not exist": Lie(change_config(method="sabr-plus-plus"),
        "cnn5 sabr-plus-plus evaluation.stages=['ibp', 'crown-ibp', 'alpha-crown'] seed 0: trial.json: unknown",
        METHOD, ""),
    "a network trained elsewhere without a checkpoint": Lie(change_config(method=TRAINED_ELSEWHERE),
        "trial.json: the network is trained elsewhere, but there is no checkpoint", METHOD, "cnn5 elsewhere"),
    "options of a method of a network trained elsewhere": Lie(
        change_config(**ELSEWHERE, method_options={"alpha": 0.5}),
        "trial.json: method_options.alpha: unknown key; allowed: none", METHOD, "cnn5 elsewhere"),
    "a W from elsewhere called nonnegative": Lie(call_elsewhere("cerdeq", {"parametrisation": "nonnegative"}),
        "entries are below 0, and the parametrisation is nonnegative", LABELS, "cerdeq elsewhere"),
    "fewer parameters of a network trained elsewhere": Lie(call_elsewhere("cerdeq", {}, parameters=10.0),
        "parameters: recorded 10.0", LABELS, "cerdeq elsewhere"),
    "a W with both signs called nonnegative": Lie(change_options(parametrisation="nonnegative"),
        "entries are below 0, and the parametrisation is nonnegative", LABELS, "cerdeq"),
    "a W called orthogonal": Lie(change_options(parametrisation="orthogonal"), "the rows are not orthogonal", LABELS,
        "cerdeq"),
    "a wider margin": Lie(change_options(margin=0.9), "the spectral radius of |W| is ", LABELS, "cerdeq"),
    "a lower bound of rho": Lie(change_metrics("cerdeq", equilibrium__rho_bound=0.01),
        "equilibrium/rho_bound: recorded 0.01", LABELS, "cerdeq"),
    "another margin in the result": Lie(change_metrics("cerdeq", equilibrium__margin=0.77),
        "equilibrium/margin: recorded 0.77", LABELS, "cerdeq"),
    "fewer parameters": Lie(change_metrics(parameters=10.0), "parameters: recorded 10.0, of this network", LABELS),
    "fewer parameters of a certification": Lie(change_metrics("certified", parameters=10.0),
        "parameters: recorded 10.0", LABELS, "certified"),
    "an error without recurrence of a network that has none": Lie(change_metrics(equilibrium__certified_error_w0=1.0),
        "equilibrium/certified_error_w0: recorded, but the network has no equilibrium", LABELS),
}  # fmt: skip
