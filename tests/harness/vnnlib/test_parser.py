"""VNN-LIB files: what they mean is compared with an evaluation of their expressions at random points."""

import contextlib
import gzip
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerdeq.deadline import DeadlineError, stop_at
from harness.common.errors import InputError
from harness.vnnlib import files, version1, version2
from harness.vnnlib.brackets import parse
from harness.vnnlib.files import property_in, read_vnnlib

BOX = "".join(f"(declare-const X_{n} Real)(assert (<= X_{n} 1))(assert (>= X_{n} -1.0))" for n in range(2))
OUTPUTS = "".join(f"(declare-const Y_{n} Real)" for n in range(2))

CHOICE, NINETY = "(or (<= Y_0 0) (<= Y_0 1))", "(<= Y_0 0)" * 90
CHOICES = f"(assert {CHOICE})" * 14


def read(text):
    return property_in(text.encode(), Path("property.vnnlib"))


def read_property(path):
    return property_in(read_vnnlib(path), path)


def value(term, point):
    match term:
        case str():
            return point[term] if term in point else Fraction(term)
        case ["+", *terms]:
            return sum(value(each, point) for each in terms)
        case ["-", first, *others]:
            return value(first, point) - sum(value(each, point) for each in others) if others else -value(first, point)
        case ["*", left, right]:
            return value(left, point) * value(right, point)


def is_true(expression, point):
    match expression:
        case ["and", *parts]:
            return all(is_true(part, point) for part in parts)
        case ["or", *parts]:
            return any(is_true(part, point) for part in parts)
        case ["<=", left, right]:
            return value(left, point) <= value(right, point)
        case [">=", left, right]:
            return value(left, point) >= value(right, point)


def satisfies(case, point):
    inputs = [point[f"X_{n}"] for n in range(2)]
    inside = all(a <= x <= b for a, x, b in zip(case.box.lower, inputs, case.box.upper, strict=True))
    return inside and all(
        sum(factor * point[f"Y_{n}"] for n, factor in constraint.coefficients.items()) <= constraint.bound
        for constraint in case.constraints
    )


def to_text(expression):
    return expression if isinstance(expression, str) else f"({' '.join(map(to_text, expression))})"


tenths = st.integers(-12, 12).map(lambda n: f"{'-' if n < 0 else ''}{abs(n) // 10}.{abs(n) % 10}")
connectives = st.sampled_from(["and", "or"])
compare = st.sampled_from(["<=", ">="])
inputs = st.builds(lambda op, n, end: [op, f"X_{n}", end], compare, st.integers(0, 1), tenths)
products = st.builds(lambda factor, n: ["*", factor, f"Y_{n}"], tenths.filter(lambda t: float(t)), st.integers(0, 1))
terms = st.sampled_from(["Y_0", "Y_1"]) | products | st.builds(lambda a, b: ["+", "Y_0", a, b], products, tenths)
outputs = st.builds(lambda op, a, b: [op, a, b], compare, terms, tenths)
expressions = st.recursive(
    inputs | outputs,
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda parts: connectives.map(lambda op: [op, *parts])
    ),
    max_leaves=8,
)
points = st.fixed_dictionaries(
    {f"{kind}_{n}": st.integers(-12, 12).map(lambda k: Fraction(k, 10)) for kind in "XY" for n in range(2)}
)


@settings(max_examples=100)
@given(st.lists(expressions, min_size=1, max_size=3), st.lists(points, min_size=5, max_size=5))
def test_cases_mean_what_the_assertions_say(assertions, points):
    text = BOX + OUTPUTS + "".join(f"(assert {to_text(each)})\n" for each in assertions)
    try:
        cases = read(text).cases
    except InputError as error:
        assert "empty" in str(error) or "no variable" in str(error)
        cases = ()
        if "no variable" in str(error):
            return
    for point in points:
        inside = all(-1 <= point[f"X_{n}"] <= 1 for n in range(2))
        expected = inside and all(is_true(each, point) for each in assertions)
        assert any(satisfies(case, point) for case in cases) == expected


@settings(max_examples=200)
@given(st.text(alphabet="()XY_0123 <>=andor;\n+-*.e", max_size=60))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(InputError):
        read(BOX + OUTPUTS + text)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"], ids=repr)
def test_a_comment_ends_with_its_line(end):
    """What follows a CR was dropped once: the answer to a property with fewer cases was a false `unsat`."""
    text = f'{BOX}{OUTPUTS}; a comment{end}(assert (or (<= Y_0 0); another, é ⩽ "|{end}(<= Y_1 0)))'
    assert len(read(text).cases) == 2
    with pytest.raises(InputError, match="line 3: found 'x' outside"):
        read(f"(assert (<= Y_0 0)){end};{end}x")


FOREIGN = ["\0", "\f", "\v", "\x1b", "\x85", "\xa0", "\u2028", "\u2029", "\ufeff", "\u202e"]


@pytest.mark.parametrize("character", FOREIGN, ids=ascii)
def test_characters_that_readers_take_differently_are_refused(character):
    for text in (f"\n; a comment{character}", f"\n(assert (<={character}Y_0 0))", f"\n(assert (<= Y_0 0{character}))"):
        with pytest.raises(InputError, match="line 2: found the character"):
            read(f"{BOX}{OUTPUTS}{text}")
    for text in ("(assert (<= |Y_0| 0))", '(set-info ";" x)', "(assert (<= Y_0 ٣))"):  # a digit of Unicode
        with pytest.raises(InputError, match=r"line 1: found the character .*allowed: printable characters of ASCII"):
            read(f"{BOX}{OUTPUTS}{text}")
    for content in (b"\xff(assert)", b"; \xed\xa0\x80", b"\xfe\xff\0;", "(assert)".encode("utf-16")):
        with pytest.raises(InputError, match="not a text file in UTF-8"):
            property_in(content, Path("p.vnnlib"))


def test_decimals_are_exact():
    text = BOX.replace("X_0 1)", "X_0 0.1)") + OUTPUTS + "(assert (<= Y_0 1.00000000000000000001e-3))"
    (case,) = read(text).cases
    assert case.box.upper == (Fraction(1, 10), 1)
    assert case.constraints[0].bound == Fraction("1.00000000000000000001e-3")


def test_cases_with_equal_boxes_share_it():
    disjuncts = "(and (<= X_0 0.5) (<= Y_0 0)) (and (<= X_0 0.50) (<= Y_1 0)) (and (<= X_0 0.2) (<= Y_1 0))"
    first, second, third = read(f"{BOX}{OUTPUTS}(assert (or {disjuncts}))").cases
    assert first.box is second.box and third.box is not first.box


def test_a_case_with_an_empty_box_is_no_case():
    (case,) = read(f"{BOX}{OUTPUTS}(assert (or (and (>= X_0 2) (<= Y_0 0)) (<= Y_1 3)))").cases
    assert case.constraints[0].bound == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(assert (<= Y_0 0)", "line 1: found an opening bracket without a closing one"),
        ("\n(assert (<= Y_0 0)))", "line 2: found a closing bracket without an opening one"),
        ("nonsense", "line 1: found 'nonsense' outside of brackets"),
        ("(" * 200, "more than 100 brackets"),
        ("(assert (< Y_0 0))", "found (< Y_0 0), allowed: (and ...), (or ...), (<= a b), (>= a b)"),
        ("(assert (<= Y_7 0))", "found 'Y_7' in (<= Y_7 0), allowed: numbers and declared variables"),
        ("(assert (<= Y_0 1/3))", "found '1/3'"),
        ("(assert (<= Y_0 1e9999999999))", "found '1e9999999999'"),
        (f"(assert (<= Y_0 0.{5000 * '3'}))", "found '0.333"),
        ("(assert (<= Y_0 X_0))", "found inputs and outputs in (<= Y_0 X_0)"),
        ("(assert (<= X_1 X_0))", "bounds of single inputs"),
        ("(assert (<= 0 1))", "found no variable"),
        ("(assert (<= (* Y_0 Y_1) 1))", "found (* Y_0 Y_1)"),
        ("(assert (>= X_0 1.5))", "the box of inputs is empty: X_0 is at least 1.5 and at most 1.0"),
        ("(assert (>= X_0 1e31))", "allowed: bounds of inputs up to 1e30"),
        ("(declare-const X_2 Real)", "found no lower bound of X_2"),
        ("(declare-const X_4 Real)", "found 3 declarations of X_i up to X_4"),
        ("(declare-const X_0 Real)", "found a declaration of 'X_0'"),
        ("(declare-const Z Real)", "found a declaration of 'Z'"),
        ("(declare-const Y_2 Int)", "found (declare-const Y_2 Int)"),
        ("(check-sat)", "found (check-sat), allowed: (declare-const X_0 Real), (assert ...)"),
        (f"(assert (or {'(<= Y_0 0)' * 200}))" * 2, "has 40000 cases, allowed: up to 20000"),
        (f"(assert (and {CHOICE * 14} {'(<= Y_0 0)' * 48}))", "has 1,015,808 constraints in 16384 cases"),
        (CHOICES + f"(assert (and {'(<= Y_0 0)' * 100}))", "the property has 1,867,776 constraints in 16384 cases"),
        (f"(assert (or {f'(and {CHOICE * 10} {NINETY})' * 16}))", "has 1,024,000 constraints in 10240 cases"),
        (f"(assert (and {CHOICE * 14} {'(<= X_0 1)' * 1300}))", "has 21,299,200 bounds in 16384 cases"),
        (f"(assert (and {'(<= Y_0 0)' * 4001}))", "a case with 4001 constraints on outputs, allowed: up to 4000"),
        (f"(assert (<= (* 0.{'3' * 3000} (* 0.{'3' * 3000} Y_0)) 0))", "found a product with too many digits"),
        (f"(assert (<= (* (* 0.{'3' * 3000} Y_0) 0.{'3' * 3000}) 0))", "found a product with too many digits"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(InputError) as error:
        read(BOX + OUTPUTS + text)
    assert message in str(error.value)


def test_too_many_cases_are_refused_while_they_are_read(monkeypatch):
    """A text of 154 kB took 1.9 GB once."""
    read_atoms, original = [], version1._atom
    monkeypatch.setattr(version1, "_atom", lambda *args: read_atoms.append(1) or original(*args))
    with pytest.raises(InputError, match="cases, allowed: up to 20000"):
        read(f"{BOX}{OUTPUTS}(assert (or {'(<= Y_0 0)' * 50_000}))")
    choice = f"(or {'(<= Y_0 0)' * 140})"
    with pytest.raises(InputError, match="cases, allowed: up to 20000"):
        read(f"{BOX}{OUTPUTS}(assert (or {f'(and {choice} {choice})' * 50}))")
    assert len(read_atoms) < 22_000


def test_cases_share_their_constraints():
    """A text of 82 kB took 2.1 GB once: each case had its own."""
    property_ = read(f"{BOX}{OUTPUTS}(assert (and {CHOICE * 7} {'(<= Y_0 0)' * 20})){CHOICES[: len(CHOICES) // 2]}")
    assert len(property_.cases) == 2**14
    assert len({id(each) for case in property_.cases for each in case.constraints}) == 2 * 14 + 20


def test_reading_ends_at_the_deadline():
    expressions = parse(f"{BOX}{OUTPUTS}(assert (<= Y_0 0))")
    for step in (lambda: parse("(assert)"), lambda: version1.property_of(expressions)):
        with stop_at(0.0), pytest.raises(DeadlineError):
            step()


def test_without_outputs_a_property_is_refused():
    with pytest.raises(InputError, match="found no declaration of Y_0"):
        read(BOX)


def test_packed_files_and_errors_name_the_file(tmp_path, monkeypatch):
    text = f"; a comment ( ;\n{BOX}{OUTPUTS}(assert (<= Y_0 0)) ; the end"
    packed, plain, broken = tmp_path / "p.vnnlib.gz", tmp_path / "p.vnnlib", tmp_path / "broken.vnnlib.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    plain.write_text(text)
    broken.write_bytes(b"no gzip")
    assert read_property(packed) == read_property(plain)
    pointer, bomb = tmp_path / "pointer.vnnlib", tmp_path / "bomb.vnnlib"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    bomb.write_bytes(gzip.compress(bytes(10_000)))
    monkeypatch.setattr(files, "_LARGEST", 5000)
    with pytest.raises(InputError, match="a Git LFS pointer"):
        read_property(pointer)
    with pytest.raises(InputError, match="allowed: up to"):
        read_property(bomb)
    for path in (broken, tmp_path / "missing.vnnlib", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            read_property(path)


VERSION2 = """; a comment
(vnnlib-version <2.0>)
(declare-network n (declare-input A float32 [1,2]) (declare-output B float32 [2]))
(assert (and (<= A[0,0] 0.1) (>= A[0,0] (- 0.3)) (<= A[0,1] 0.1) (>= A[0,1] -0.3)))
(assert (or (<= B[0] -3.0) (and (>= B[0] 0.12345678901234567890) (>= (+ (* 2.0 B[1]) B[0]) 0.3) (== B[1] 0.5))))
"""
VERSION1 = """
(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)
(assert (<= X_0 0.1))(assert (>= X_0 -0.3))(assert (<= X_1 0.1))(assert (>= X_1 -0.3))
(assert (or (<= Y_0 -3.0)
 (and (>= Y_0 0.12345678901234567890) (>= (+ (* 2.0 Y_1) Y_0) 0.3) (<= Y_1 0.5) (>= Y_1 0.5))))
"""


def square(inputs, outputs, name):
    """Return a property of inputs A and outputs B of these types and the shape [2,2]; its last atom bounds `name`."""
    end_of_inputs, end = ("1" if kind in ("int32", "uint8") else "1.0" for kind in (inputs, outputs))
    box = (
        f"(assert (<= A[{n},{m}] {end_of_inputs}))(assert (>= A[{n},{m}] {end_of_inputs}))" for n in "01" for m in "01"
    )
    declared = f"(declare-network n (declare-input A {inputs} [2,2]) (declare-output B {outputs} [2,2]))"
    return f"(vnnlib-version <2.0>){declared}{''.join(box)}(assert (<= {name} {end}))"


GLUED = ["1.5-2.0", "(+ 1.5-2.0 3.0)", "(- 1.5-2.0)", "(* 2.0-1.0 B[1])", "(+ B[0]-1.0 2.0)", "(+ B[0]B[1])", "B[0]1.0"]
GLUED += ["B[1.9]", "B[1.0]", "B[0.0]", "B [ 1.9 ]", "B[-0]", "(+ B[0] 1.0.5 2.0)"]  # 1.9 was read as 1
BEYOND = ["[1,-1]", "[0,2]", "[-1,1]", "[2,0]", "[1]", "[0,0,0]", "[4294967297,0]"]  # of the shape [2,2]
TYPES = ["int32", "uint8", "float16", "float64", "string"]
TOO_LARGE = "not VNN-LIB 2.0: it has an index or size that is too large"
CHANGES = [  # of VERSION2, and the messages
    ("<= B[0] -3.0", "< B[0] -3.0", "found .*allowed: and, or"),
    ("[1,2]", "[1,3]", "found no lower bound of X_2"),
    ("[1,2]", "[1000000,2]", "up to 1000000 numbers"),
    ("[1,2]", "[99999999999999999999]", TOO_LARGE),
    ("B[1] 0.5", "B[99999999999999999999] 0.5", TOO_LARGE),
    ("<2.0>", "<2.9>", "allowed: .vnnlib-version <2.0>"),
    ("(vnnlib-version <2.0>)", "", "allowed: .vnnlib-version <2.0>"),
    ("a comment", "a comment \0", r"line 1: found the character '\\x00'"),
    ("(assert (or", "(assert (and " + "(or " * 200, "more than 100 brackets"),
    ("(<= A[0,0] 0.1)", "(<= A[0,7] 0.1)", "not VNN-LIB 2.0: line"),
    ("(declare-output B", "(declare-input C float32 [1]) (declare-output B", "found a network with 2 inputs"),
]
APART, SHAPE = r"found '.*', allowed: numbers, names and operators apart", r"found '{}.*(allowed:|indices) from 0"
OF_TYPES = "found .*declare-.*put .*allowed: the types float32 and real"
REFUSED = {
    **{after: (VERSION2.replace(before, after), message) for before, after, message in CHANGES},
    **{term: (VERSION2.replace("(assert (or", f"(assert (<= B[0] {term}))(assert (or"), APART) for term in GLUED},
    "a size": (VERSION2.replace("float32 [2]", "float32 [2.5]"), APART),
    **{
        f"{name}{each}": (square("float32", "float32", name + each), f"{SHAPE.format(name)}|not VNN-LIB 2.0: line")
        for name in "AB"
        for each in BEYOND
    },
    **{f"{kind} inputs": (square(kind, "float32", "B[0,0]"), OF_TYPES) for kind in TYPES},
    **{f"{kind} outputs": (square("real", kind, "B[0,0]"), OF_TYPES) for kind in TYPES},
}


@pytest.fixture
def version2_file(tmp_path):
    """A function of a text to its file."""
    pytest.importorskip("vnnlib")

    def write(content):
        path = tmp_path / "2.vnnlib"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_texts_of_version_2_that_it_or_its_package_reads_otherwise_are_refused(name, version2_file):
    """The package reads 1.5-2.0 as two numbers; a negative index was read as another variable once."""
    content, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        read_property(version2_file(content))


def test_version_2_says_the_same_and_its_comments_end_with_their_lines(version2_file):
    """The package's own end at LF alone."""
    expected = property_in(VERSION1.encode(), Path("1.vnnlib"))
    assert read_property(version2_file(VERSION2)) == expected
    with_comments = VERSION2.replace("(assert (or", "; \r(assert (or").replace("\n", "\r").encode()
    property_ = read_property(version2_file(with_comments))
    assert property_ == expected and [each.shape for each in property_.declared] == [(1, 2), (2,)]


def test_long_texts_of_version_2_are_refused_before_its_package_reads_them_and_all_without_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vnnlib", None)
    path = tmp_path / "2.vnnlib"
    path.write_text(VERSION2)
    with pytest.raises(InputError, match="install the extra `vnnlib`"):
        read_property(path)
    monkeypatch.setattr(version2, "_LARGEST", len(VERSION2) // 2)
    with pytest.raises(InputError, match=r"found \d+ characters outside of comments, allowed: up to"):
        read_property(path)
