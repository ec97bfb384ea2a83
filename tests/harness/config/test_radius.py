"""A radius is exact, has one spelling, and anything else is refused."""

import copy
import json
import pickle
from fractions import Fraction

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.radius import Radius
from harness.errors import SettingError

seeded = hypothesis.settings(derandomize=True, deadline=None, max_examples=50)


@seeded
@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_eps_is_exact(a, b):
    low, high = min(a, b), max(a, b)
    assert Radius(f"{low}/{high}") == Fraction(low, high)
    if low < high:
        with pytest.raises(SettingError, match="at most 1"):
            Radius(f"{high}/{low}")
    with pytest.raises(SettingError, match="above 0"):
        Radius(f"-{low}/{high}")


@seeded
@given(st.decimals(min_value="0.0001", max_value=1, allow_nan=False, places=6))
def test_eps_as_a_decimal_is_exact(value):
    assert Radius(str(value)) == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "abc", "8/0", "0/8", "8/", "/255", "8//255", "nan", "inf", "0x1", "1/2/3", "8 255"]
)
def test_what_is_no_eps_is_refused_with_what_was_found(text):
    with pytest.raises(SettingError) as caught:
        Radius(text)
    assert (caught.value.key, caught.value.found) == ("eps", text)
    assert repr(text) in str(caught.value)
    assert "allowed" in str(caught.value)


def test_an_eps_of_more_digits_than_python_writes_is_refused():
    with pytest.raises(SettingError, match="eps: found"):
        Radius("0." + "3" * 4200 + "e-300")


def test_an_eps_that_is_zero_as_a_float_is_refused():
    """Training divides by it."""
    with pytest.raises(SettingError):
        Radius("1e-400")
    with pytest.raises(SettingError, match="eps"):
        Radius("1e-999999999")


@pytest.mark.parametrize(
    ("text", "spelled"), [("1/85", "3/255"), ("16/255", "16/255"), ("0.3", "3/10"), ("0.2", "1/5"), ("1/16", "1/16")]
)
def test_each_radius_has_one_spelling(text, spelled):
    assert str(Radius(text)) == spelled and Radius(spelled) == Fraction(text)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), Radius])
@pytest.mark.parametrize("text", ["8/255", "1/3", "1/10", "1"])
def test_copies_are_radii_of_the_same_text(copied, text):
    radius = Radius(text)
    twin = copied(radius)
    assert (type(twin), twin, str(twin), float(twin)) == (Radius, radius, text, float(Fraction(text)))


@pytest.mark.parametrize("value", [True, None, [8, 255], b"1/2"])
def test_what_is_neither_number_nor_text_is_refused_as_it_was_found(value):
    with pytest.raises(SettingError) as caught:
        Radius(value)
    assert caught.value.found == value


@given(st.floats(allow_nan=False), st.sampled_from(["8/255", "1/4", "1"]))
def test_radii_compare_with_numbers_as_fractions_do(number, text):
    radius, fraction = Radius(text), Fraction(text)
    assert (radius == number, radius < number, radius >= number) == (
        fraction == number, fraction < number, fraction >= number
    )  # fmt: skip


def test_a_number_is_taken_as_it_is_written():
    assert Radius(0.1) == Fraction(1, 10) != Fraction(0.1)
    assert str(Radius(json.loads("1"))) == "1"
