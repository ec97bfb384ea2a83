"""A radius is exact, has one spelling, and anything else is refused."""

import copy
import pickle
from fractions import Fraction

import pytest

from harness.common.errors import SettingError
from harness.common.radius import Radius


@pytest.mark.parametrize("value", ["1/3", "8/255", "999999999/1000000000", "1", 0.1])
def test_a_radius_is_exact(value):
    assert Radius(value) == Fraction(str(value))


@pytest.mark.parametrize(
    "value",
    ["abc", "0.3 / 255", "8/0", "inf", "0/8", "-1/255", "256/255", "1e-400", "1e-99999999", True, None, [8, 255]],
)
def test_what_is_no_radius_is_refused(value):
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
    radius = copied(Radius("8/255"))
    assert (type(radius), radius, str(radius), float(radius)) == (Radius, Fraction(8, 255), "8/255", 8 / 255)


@pytest.mark.parametrize("number", [0.0, 0.25, -1.0, float("inf")])
def test_a_radius_compares_with_numbers_as_a_fraction_does(number):
    radius, fraction = Radius("1/4"), Fraction(1, 4)
    assert (radius == number, radius < number) == (fraction == number, fraction < number)
