"""Lies in options and metrics that describe the network: its W, the number of parameters."""

import json

from lies_in_folders import Lie
from lying_sweep import Change, change_config, change_metrics

from harness.storage import folder

LABELS = "harness.checker.verdicts.check_labels"


def change_options(**options: object) -> Change:
    """Change options of CerDEQ."""

    def change(sweep):  # type: ignore[no-untyped-def]
        before = json.loads((sweep.cerdeq / folder.TRIAL).read_text())["config"]["options"]
        change_config("cerdeq", options=before | options)(sweep)

    return change


LIES = {
    "a W with both signs called nonnegative": Lie(
        change_options(parametrisation="nonnegative"),
        "entries are below 0, and the parametrisation is nonnegative",
        LABELS,
        "cerdeq",
    ),
    "a W called orthogonal": Lie(
        change_options(parametrisation="orthogonal"), "the rows are not orthogonal", LABELS, "cerdeq"
    ),
    "a wider margin": Lie(change_options(margin=0.9), "the spectral radius of |W| is ", LABELS, "cerdeq"),
    "a lower bound of rho": Lie(
        change_metrics("cerdeq", equilibrium__rho_bound=0.01), "equilibrium/rho_bound: recorded 0.01", LABELS, "cerdeq"
    ),
    "another margin in the result": Lie(
        change_metrics("cerdeq", equilibrium__margin=0.77), "equilibrium/margin: recorded 0.77", LABELS, "cerdeq"
    ),
    "fewer parameters": Lie(change_metrics(parameters=10.0), "parameters: recorded 10.0, of this network", LABELS),
    "fewer parameters of a certification": Lie(
        change_metrics("certified", parameters=10.0), "parameters: recorded 10.0", LABELS, "certified"
    ),
    "an error without recurrence of a network that has none": Lie(
        change_metrics(equilibrium__certified_error_w0=1.0),
        "equilibrium/certified_error_w0: recorded, but the network has no equilibrium",
        LABELS,
    ),
}
