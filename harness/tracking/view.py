"""The view of a sweep that MLflow's chart mode opens: what matters first, everything else in closed sections.

MLflow keeps a shared view as a tag of its experiment, its state as deflated JSON, and opens it by the tag's name. This
is no documented interface: it was read in the pages of versions 3.5 and 3.17.
"""

import base64
import json
import zlib
from typing import Any

from harness.common import names

KEY = "comparison"
TAG = f"mlflow.sharedViewState.{KEY}"
ROW_TAG = "row"  # what the view groups runs by

_UNFOLDED: dict[str, list[dict[str, Any]]] = {
    "Final: of evaluated images": [
        {"type": "BAR", "metricKey": names.CERTIFIED_ERROR},
        {
            "type": "SCATTER",
            "xaxis": {"key": names.STANDARD_ERROR, "type": "METRIC"},
            "yaxis": {"key": names.CERTIFIED_ERROR, "type": "METRIC"},
        },
        {"type": "BAR", "metricKey": names.STANDARD_ERROR},
        {"type": "BAR", "metricKey": names.ATTACK_ERROR},
        {"type": "BAR", "metricKey": names.BOUND_WIDTH},
        {"type": "BAR", "metricKey": names.BOUND_WIDTH_RELATIVE},
    ],
    "Each epoch: of training images": [
        {"type": "LINE", "metricKey": names.TRAIN_CERTIFIED_ERROR},
        {"type": "LINE", "metricKey": names.TRAIN_STANDARD_ERROR},
        {"type": "LINE", "metricKey": names.TRAIN_LOSS},
        {"type": "LINE", "metricKey": names.in_training(names.BOUND_WIDTH), "scaleType": "log"},
        {"type": "LINE", "metricKey": names.TRAIN_EPS},
    ],
}
_FOLDED = (
    *("certified_error", "undecided", "bound_width", "unstable", "inactive", "equilibrium"),
    *("stage_examples", "stage_decided", "stage_seconds"),
    *("train", "train/bound_width", "train/equilibrium"),
    "Model metrics",
)
"""MLflow's own sections. It adds a chart of each metric without one to the section that is called like the part of the
metric's name before the last slash, else to the last section here."""
_LINE = {"scaleType": "linear", "range": {}, "xAxisKey": "step", "selectedXAxisMetricKey": "", "lineSmoothness": 0}


def view() -> str:
    """Return the tag's value, which is the same for every sweep."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(_state()).encode(), 9)).decode()


def link(page: str, experiment_id: str) -> str:
    """Return the link to an experiment's charts. page: the address where MLflow is served."""
    return f"{page.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&compareRunsMode=CHART"


def _state() -> dict[str, Any]:
    """Return all keys that MLflow's page reads; version 3.5 has no defaults for missing ones."""
    sections = [(name, True) for name in _UNFOLDED] + [(name, False) for name in _FOLDED]
    return {
        "searchFilter": "",
        "orderByKey": f"metrics.`{names.CERTIFIED_ERROR}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [f"metrics.`{name}`" for name in (names.CERTIFIED_ERROR, names.STANDARD_ERROR)],
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": ROW_TAG}]},
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "compareRunCharts": [
            _chart(name, number, own) for name in _UNFOLDED for number, own in enumerate(_UNFOLDED[name])
        ],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": opened, "isReordered": False, "deleted": False, "isGenerated": True}
            for name, opened in sections
        ],
        "isAccordionReordered": True,  # else sections stand in the alphabet's order
        "viewMaximized": False,
        "runListHidden": False,
        "autoRefreshEnabled": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "chartsSearchFilter": "",
    }


def _chart(section: str, number: int, own: dict[str, Any]) -> dict[str, Any]:
    common = {"uuid": f"{section} {number}", "metricSectionId": section, "runsCountToCompare": 100}
    line = _LINE | {"selectedMetricKeys": [own["metricKey"]]} if own["type"] == "LINE" else {}
    return {"deleted": False, "isGenerated": False} | common | line | own
