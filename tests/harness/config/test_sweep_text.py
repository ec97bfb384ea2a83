"""A sweep file as text: what is no YAML mapping is refused, and YAML's numbers arrive as numbers."""

from fractions import Fraction

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_sweep import BASE, changed, trials_of, write

from harness.config.radius import Radius
from harness.config.sweep_file import ConfigError, load_sweep

TEXTS = {
    "empty": ("", ["found nothing", "mapping"]),
    "only a comment": ("# nothing\n", ["found nothing", "mapping"]),
    "a list": ("- name: x\n", ["found list", "mapping"]),
    "a word": ("quickstart\n", ["found str", "mapping"]),
    "not YAML": ("name: [unclosed\n", ["is not YAML", "line 2"]),
    "a tab": ("name:\n\t- x\n", ["is not YAML"]),
    "a key twice": (yaml.safe_dump(BASE) + "name: other\n", ["'name'", "twice"]),
    "a key twice inside": ("name: x\ntrain: {epochs: 3, epochs: 4}\n", ["'epochs'", "twice", "line 2"]),
    "two documents": ("name: x\n---\nname: y\n", ["is not YAML"]),
    "a Python object": ("name: !!python/object/apply:os.system ['true']\n", ["is not YAML"]),
    "a mapping as a key": ("? {a: 1}\n: 2\n", ["is not YAML", "key"]),
    "itself inside": (yaml.safe_dump(BASE) + "resources: &x {cpu: *x}\n", ["resources"]),
    "a date as a key": (yaml.safe_dump(BASE) + "2026-11-20: x\n", ["2026-11-20", "unknown key"]),
    "null bytes": ("name: a\0b\n", ["is not YAML"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_are_no_sweep_are_refused(refused, tmp_path, case):
    text, expected = TEXTS[case]
    path = write(tmp_path, text)
    message = refused(path)
    assert str(path) in message
    for part in expected:
        assert part in message, message


def test_a_missing_file_a_directory_and_bytes_that_are_no_text_are_refused(refused, tmp_path):
    assert "nowhere.yaml: cannot be read: No such file" in refused(tmp_path / "nowhere.yaml")
    assert f"{tmp_path}: cannot be read: Is a directory" in refused(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: é\n".encode("latin-1"))
    assert "latin.yaml: cannot be read: 'utf-8'" in refused(tmp_path / "latin.yaml")


# Good input.


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "5e-4": 5e-4,
        "1E-3": 1e-3,
        "5.0e-4": 5e-4,
        "+1e-2": 0.01,
        "1.5e-1": 0.15,
        "5.e-1": 0.5,
        "1e+0": 1.0,
        "1.5e0": 1.5,
        ".5": 0.5,
        ".5e0": 0.5,
    }.items(),
)
def test_what_yaml_calls_a_number_is_one(tmp_path, text, value):
    """YAML 1.2's core schema: every one of these is a number."""
    content = yaml.safe_dump(BASE).replace("epochs: 4", f"epochs: 4\n  clip_norm: {text}", 1)
    (config, *_) = load_sweep(write(tmp_path, content), None, True).trials
    assert config.train.clip_norm == value
    assert type(config.train.clip_norm) is float


def test_an_integer_is_taken_where_a_number_is_wanted(tmp_path):
    content = changed(("train.clip_norm", 5), ("train.regularisation", 0), ("width", 1), ("resources.gpu", 1))
    sweep = load_sweep(write(tmp_path, content), None, True)
    (config, *_) = sweep.trials
    values = (config.train.clip_norm, config.train.regularisation, config.width, sweep.resources.gpu)
    assert values == (5.0, 0.0, 1.0, 1.0)
    assert all(type(value) is float for value in values)


@pytest.mark.parametrize("eps", ["8/255", "2/255", "0.1", "1/3", "1"])
def test_eps_stays_exact(tmp_path, eps):
    (config, *_) = trials_of(tmp_path, changed(("eps", eps)))
    assert Radius(config.eps) == Fraction(eps)


def test_an_eps_that_yaml_reads_as_a_number_stays_exact(tmp_path):
    content = yaml.safe_dump(BASE).replace("eps: 1/16", "eps: 0.1")
    (config, *_) = trials_of(tmp_path, content)
    assert Radius(config.eps) == Fraction(1, 10)


@hypothesis_settings(
    derandomize=True, deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_a_fraction_is_taken_exactly_or_refused(tmp_path, numerator, denominator):
    path = write(tmp_path, changed(("eps", f"{numerator}/{denominator}")))
    if numerator <= denominator:
        assert {Radius(trial.eps) for trial in load_sweep(path, None, True).trials} == {
            Fraction(numerator, denominator)
        }
    else:
        with pytest.raises(ConfigError, match="at most 1"):
            load_sweep(path, None, True)


def test_aliases_and_merge_keys_of_yaml_are_taken(tmp_path):
    """`<<` is how people share settings in YAML."""
    content = changed(("trials", [{"model": "cerdeq", "method": "ibp"}]), ("seeds", [0]))
    text = yaml.safe_dump(content) + "profiles:\n  a: &a {width: 0.5}\n  b: {<<: *a, seeds: [3]}\n"
    (config,) = load_sweep(write(tmp_path, text), "b", True).trials
    assert (config.width, config.seed) == (0.5, 3)
