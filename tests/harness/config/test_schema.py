"""The JSON schema of sweep files: up to date, takes what the command takes, refuses what it can know to be wrong."""

import json
from pathlib import Path

import jsonschema
import pytest
from small_sweep import BASE, changed

from harness.command_line import main
from harness.config.schema import sweep_schema
from harness.config.sweep_text import parsed

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"
FILES = sorted(SWEEPS.glob("*.yaml"))

WRONG = {
    "an unknown key": ("widht", 1),
    "an unknown key of the recipe": ("train.epoch", 3),
    "an unknown key of an entry's recipe": ("trials.0.train", {"epoch": 3}),
    "an unknown network": ("trials.0.model", "cnn4"),
    "another network's option": ("trials.0.options", {"margin": 0.1}),
    "an option of the wrong type": ("trials.1.options", {"margin": "much"}),
    "another method's option": ("trials.0.method_options", {"alpha": 0.5}),
    "an unknown stage": ("evaluation", {"stages": ["ibp", "crowm"]}),
    "an unknown precision": ("train.precision", "fp8"),
    "a key that a profile cannot change": ("profiles", {"cpu": {"eps": 0.1}}),
    "no seeds": ("seeds", []),
    "a choice of nothing": ("trials.0.model", []),
    "an option's choices of the wrong type": ("trials.1.options", {"margin": [0.1, "much"]}),
    "another network's option in one of several": ("trials.0.options", [{}, {"margin": 0.1}]),
    "what a recipe's key cannot be, in a list": ("trials.0.train", {"precision": ["tf32", "fp8"]}),
    "lists of what is a list by type": ("trials.0.train", {"decay_epochs": [[1], [2]]}),
}
GRIDS = {
    "networks and methods": ("trials.0", {"model": ["cnn5", "cnn7"], "method": ["ibp", "pgd"]}),
    "an option": ("trials.1.options", {"margin": [0.1, 0.3], "gain": [0.5, None]}),
    "options": ("trials.1.options", [{"margin": [0.1, 0.3]}, {"recurrent": False}]),
    "a recipe's key": ("trials.0.train", {"clip_norm": [None, 1.0], "decay_epochs": [1, 2]}),
    "recipes": ("trials.0.train", [{"decay_epochs": [1]}, {}]),
    "lists that go together": ("trials.0", {"model": ["cnn5"], "method": ["ibp"], "zip": ["model", "method"]}),
}


@pytest.fixture(scope="module")
def schema():
    return jsonschema.Draft7Validator(sweep_schema())


def described(schema):
    """Each key with its schema, at whatever depth."""
    yield from schema.get("properties", {}).items()
    for name, inner in schema.get("$defs", {}).items():
        if not name.startswith("options-of-"):  # networks' options: docs/equilibria.md
            yield from described(inner)


def test_the_committed_schema_is_what_the_command_prints(capsys):
    assert main("schema", []) == 0
    printed = capsys.readouterr().out
    assert (SWEEPS / "schema.json").read_text() == printed, "python -m harness.schema > sweeps/schema.json"


def test_every_key_says_what_it_means():
    assert [name for name, value in described(sweep_schema()) if not value.get("description")] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_project_s_sweeps_name_the_schema_and_fit_it(path, schema):
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    schema.validate(parsed(path.read_text()))


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused(case, schema):
    schema.validate(BASE)
    with pytest.raises(jsonschema.ValidationError):
        schema.validate(changed(WRONG[case]))


@pytest.mark.parametrize("case", GRIDS)
def test_lists_to_choose_from_are_taken(case, schema):
    schema.validate(changed(GRIDS[case]))


def test_what_an_included_file_may_say_is_not_required(schema):
    schema.validate({"name": "study", "include": "recipes/all.yaml"})
    with pytest.raises(jsonschema.ValidationError):
        schema.validate({"name": "study"})


def test_the_schema_is_one(schema):
    schema.check_schema(json.loads(json.dumps(schema.schema)))
