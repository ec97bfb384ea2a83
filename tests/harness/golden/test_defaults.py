"""Keys leave defaults out, so a changed one must raise RECIPE_VERSION or EVALUATION_VERSION: defaults.json has all.

Where this fails: raise the version if a default changed or went; then, and where one is new and off, write the file
anew by `python tests/harness/golden/test_defaults.py`.
"""

import inspect
import json
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from baselines import DATASETS, network_names, options_of
from cerdeq.equilibrium import Equilibrium
from harness.config.training import RECIPE_VERSION
from harness.methods import METHODS, method_options
from harness.settings import EVALUATION_VERSION, Evaluation, EvaluationSettings, Recipe

NO_DEFAULTS = (inspect.Parameter.empty, PydanticUndefined)
RECORD = Path(__file__).with_name("defaults.json")


def defaults():
    """Every default that decides a number and is in no key, by its dotted name."""

    def of(prefix, parameters):
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        return {f"{prefix}.{name}": repr(each) for name, each in defaults.items() if each not in NO_DEFAULTS}

    recorded = {"recipe_version": RECIPE_VERSION, "evaluation_version": EVALUATION_VERSION}
    recorded |= of("train", Recipe.model_fields)
    recorded |= of("evaluation", Evaluation.model_fields)
    recorded |= of("equilibrium", inspect.signature(Equilibrium).parameters)
    for method in METHODS:
        recorded |= of(f"method {method}", method_options(method))
    for network in network_names():
        recorded |= of(f"network {network}", options_of(network))
    for dataset in DATASETS.values():
        own = ("shape", "classes", "mean", "std", "flip", "crop_padding")
        recorded |= {f"data set {dataset.name}.{name}": repr(getattr(dataset, name)) for name in own}
    return recorded


def test_defaults_are_those_on_record():
    recorded, today = json.loads(RECORD.read_text()), defaults()
    changed = {name: (recorded[name], today.get(name)) for name in recorded if today.get(name) != recorded[name]}
    new = sorted(set(today) - set(recorded))
    assert (changed, new) == ({}, []), __doc__


@pytest.mark.parametrize("kind", [Recipe, EvaluationSettings])
def test_every_setting_has_a_default(kind):
    """Else it would be in no record."""
    assert not any(field.is_required() for field in kind.model_fields.values())


if __name__ == "__main__":
    RECORD.write_text(json.dumps(defaults(), indent=1) + "\n")
