"""The view of a sweep that MLflow's chart mode opens: what matters first, everything else in closed sections.

MLflow keeps a view that is shared as a tag of its experiment, its state as deflated JSON, and opens it by the tag's
name. That is no documented interface: it was read in the pages of versions 3.5 and 3.17, which take the same. Of a
version below 3.5, or of another major one, nothing is assumed: no view is written, the link opens the chart mode as
MLflow has it, and that is said.
"""

import base64
import json
import re
import zlib
from typing import Any

from harness.storage import names

KEY = "comparison"
TAG = f"mlflow.sharedViewState.{KEY}"
ROW_TAG = "row"  # what the view groups runs by

_OPEN: dict[str, list[dict[str, Any]]] = {
    "Final: of test images": [
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
_CLOSED = (*names.FAMILIES, "Model metrics")
"""MLflow's own sections, to which it adds a chart of every metric that has none: by what stands before the last slash
of a name, or the last one here."""
_LINE = {"scaleType": "linear", "range": {}, "xAxisKey": "step", "selectedXAxisMetricKey": "", "lineSmoothness": 0}


def is_known(version: str) -> bool:
    """Whether this version of MLflow opens views as they are written here."""
    found = re.match(r"3\.(\d+)", version)
    return found is not None and int(found[1]) >= 5


def view() -> str:
    """The tag's value, which is the same for every sweep."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(_state()).encode(), 9)).decode()


def links(page: str, experiment_id: str, version: str) -> list[str]:
    """The link to an experiment's charts, and a line before it where they are not prepared.

    page: where MLflow is served. version: of the MLflow that serves it.
    """
    known = is_known(version)
    key = f"viewStateShareKey={KEY}&" if known else ""
    told = f"MLflow {version or 'of an unknown version'} may keep views otherwise: these are its charts unprepared"
    link = f"{page.rstrip('/')}/#/experiments/{experiment_id}/runs?{key}compareRunsMode=CHART"
    return [link] if known else [told, link]


def _state() -> dict[str, Any]:
    """All that MLflow's page wants to know; version 3.5 adds nothing of its own to what is missing."""
    sections = [(name, True) for name in _OPEN] + [(name, False) for name in _CLOSED]
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
        "compareRunCharts": [_chart(name, number, own) for name in _OPEN for number, own in enumerate(_OPEN[name])],
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
