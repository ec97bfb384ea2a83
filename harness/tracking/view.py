"""The view of a sweep that MLflow's chart mode opens: what matters first, everything else in closed sections.

MLflow keeps a shared view as a tag of its experiment, its state as deflated JSON, and opens it by the tag's name. This
is no documented interface: it was read in the pages of versions 3.5 and 3.17. Without it, version 3.17 opens widths of
layers and errors of stages first, certified error and bound width at the very end, and no means of rows.
"""

import base64
import json
import zlib
from typing import Any

from harness.common import names

KEY = "comparison"
TAG = f"mlflow.sharedViewState.{KEY}"
ROW_TAG = "row"  # what the view groups runs by
PARENT_TAG = "mlflow.parentRunId"

_IN_TRAINING = names.in_training
_OPEN: dict[str, dict[str, str]] = {  # the titles of charts, which MLflow cuts, by their metrics
    "Final: of evaluated images": {
        names.CERTIFIED_ERROR: "certified error, %",
        f"{names.STANDARD_ERROR} {names.CERTIFIED_ERROR}": "certified by standard",
        f"{names.EPS} {names.CERTIFIED_ERROR}": "certified by eps",
        names.STANDARD_ERROR: "standard error, %",
        names.ATTACK_ERROR: "attack error, %",
        names.BOUND_WIDTH: "bound width",
        names.BOUND_WIDTH_RELATIVE: "relative width",
    },
    "Each epoch: of training images": {
        names.TRAIN_CERTIFIED_ERROR: "certified error, %",
        names.TRAIN_STANDARD_ERROR: "standard error, %",
        names.TRAIN_LOSS: "loss",
        _IN_TRAINING(names.BOUND_WIDTH): "bound width",
        names.TRAIN_EPS: "eps",
    },
}
_CLOSED = (
    *("certified_error", "undecided", "bound_width", "unstable", "inactive", "equilibrium"),
    *("stage_examples", "stage_decided", "stage_seconds", "train", "train/bound_width", "train/equilibrium"),
    "Model metrics",
)
"""MLflow's own sections. It adds a chart of each metric without one to the section that is called like the part of the
metric's name before the last slash, else to the last section here."""
_LINE = {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""}
_STATE = """{
"searchFilter": "", "orderByAsc": true, "startTime": "ALL", "lifecycleFilter": "Active", "modelVersionFilter":
"All Runs", "datasetsFilter": [], "columnOrder": [], "columnWidths": {}, "runsExpanded": {}, "runsPinned": [],
"runsHidden": [], "runsVisibilityMap": {}, "runsHiddenMode": "SHOW_ALL", "groupsExpanded": {},
"useGroupedValuesInCharts": true, "isAccordionReordered": true, "viewMaximized": false, "runListHidden": false,
"autoRefreshEnabled": true, "hideEmptyCharts": true, "chartsSearchFilter": ""
}"""
"""Version 3.5 has no defaults for missing keys. Sections stand in the alphabet's order unless they are reordered."""


def view() -> str:
    """Return the tag's value, which is the same for every sweep."""
    sections = [(name, True) for name in _OPEN] + [(name, False) for name in _CLOSED]
    state = json.loads(_STATE) | {
        "orderByKey": f"metrics.`{names.CERTIFIED_ERROR}`",
        "selectedColumns": [f"metrics.`{name}`" for name in (names.CERTIFIED_ERROR, names.STANDARD_ERROR)],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": ROW_TAG}]},
        "compareRunCharts": [_chart(section, *chart) for section in _OPEN for chart in _OPEN[section].items()],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": opened, "isReordered": False, "deleted": False, "isGenerated": True}
            for name, opened in sections
        ],
        "globalLineChartConfig": _LINE,
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()


def link(page: str, experiment_id: str) -> str:
    """Return the link to an experiment's charts. page: the address where MLflow is served."""
    return f"{page.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&compareRunsMode=CHART"


def _chart(section: str, metrics: str, title: str) -> dict[str, Any]:
    chart: dict[str, Any] = {"uuid": f"{section} {metrics}", "metricSectionId": section, "displayName": title}
    chart |= {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    if " " in metrics:
        x, y = ({"key": name, "type": "METRIC"} for name in metrics.split())
        return chart | {"type": "SCATTER", "xaxis": x, "yaxis": y}
    if not metrics.startswith(_IN_TRAINING("")):
        return chart | {"type": "BAR", "metricKey": metrics}
    scale = "log" if metrics == _IN_TRAINING(names.BOUND_WIDTH) else "linear"
    return chart | {"type": "LINE", "metricKey": metrics, "selectedMetricKeys": [metrics], "scaleType": scale} | {
        "range": {}, **_LINE
    }  # fmt: skip
