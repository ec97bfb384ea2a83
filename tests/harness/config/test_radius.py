"""A radius is exact, has one spelling, and anything else is refused."""

import copy
import pickle
from fractions import Fraction

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.settings import Radius
from harness.errors import SettingError


@hypothesis.settings(derandomize=True, deadline=None, max_examples=50)
@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_fraction_is_exact_or_refused(a, b):
    low, high = min(a, b), max(a, b)
    assert Radius(f"{low}/{high}") == Fraction(low, high)
    if low < high:
        with pytest.raises(SettingError, match="at most 1"):
            Radius(f"{high}/{low}")
    with pytest.raises(SettingError, match="above 0"):
        Radius(f"-{low}/{high}")


@pytest.mark.parametrize("value", ["", "abc", "8/0", "8/", "1/2/3", "inf", "0/8", "1e-400", True, None, [8, 255]])
def test_what_is_no_radius_is_refused_with_what_was_found(value):
    with pytest.raises(SettingError, match="allowed") as caught:
        Radius(value)
    assert (caught.value.key, caught.value.found) == ("eps", value)


@pytest.mark.parametrize(
    ("value", "text"),
    [("1/85", "3/255"), ("16/255", "16/255"), (" 8/255 ", "8/255"), ("0.3", "3/10"), (0.1, "1/10"), (1, "1")],
)
def test_each_radius_has_one_spelling(value, text):
    assert str(Radius(value)) == text and Radius(text) == Radius(value)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), Radius])
def test_a_copy_is_the_same_radius(copied):
    twin = copied(Radius("8/255"))
    assert (type(twin), twin, str(twin), float(twin)) == (Radius, Fraction(8, 255), "8/255", 8 / 255)


@pytest.mark.parametrize("number", [0.0, 0.25, -1.0, float("inf")])
def test_a_radius_compares_with_numbers_as_a_fraction_does(number):
    radius, fraction = Radius("1/4"), Fraction(1, 4)
    assert (radius == number, radius < number) == (fraction == number, fraction < number)
