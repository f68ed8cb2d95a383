"""What a program returns becomes a plain value and is compared by the rules of evalplus."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latentmas.scorers._code_compare import Close, Equal, Found, Root, SameSet, Truth, Within
from latentmas.scorers._code_lines import value_digest
from latentmas.scorers._code_wire import Unplain, UnreadableError, decode, encode, largest_collection, shown

NAN, INF = math.nan, math.inf

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters(codec=None), max_size=5),  # lone surrogates as well
    st.binary(max_size=5),
)
hashable = st.one_of(scalars, st.tuples(scalars), st.frozensets(scalars, max_size=2))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.dictionaries(hashable, inner, max_size=3),
    ),
    max_leaves=8,
)
numbers = st.one_of(st.integers(-5, 5), st.floats(-5, 5), st.booleans(), st.just(1 + 0j))
nested_numbers = st.recursive(numbers, lambda inner: st.one_of(st.lists(inner), st.lists(inner).map(tuple)))


def same(one, other):
    """Equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one == other and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


@given(values)
@example(10**5000)
@example(-(16**5000))
@example([10**15, 10**15 - 1, -(10**15), 1.5])
@example([1.5, INF, -INF])
@example([[]] * 50)
@example('\ud800\U0001f600\x00\x7f"\\\n')
@example([1, -(10**5000)])
@example(list(range(10_000)))
@example([*range(5_000), "x", None, *map(str, range(5_000))])
def test_a_plain_value_comes_back_as_it_was(value):
    line = encode(value)
    assert b"\n" not in line
    assert same(decode(line), value)


def test_nan_comes_back_as_a_nan_of_its_own():
    """One shared NaN would be found equal to itself inside of a list."""
    line = encode([NAN])
    assert json.loads(line) == [{"r": "nan"}]
    assert decode(line) != decode(line)
    assert math.isnan(decode(line)[0])
    assert math.isnan(decode(encode([1.5, NAN, 2.5]))[1])


class Liar(list):
    def __iter__(self):
        return iter([9])

    def __len__(self):
        return 9

    __eq__ = __contains__ = lambda self, other: True
    __hash__ = None


class FalseInt(int):
    __int__ = __index__ = __abs__ = lambda self: 9
    __repr__ = __str__ = lambda self: "9"
    __eq__ = __lt__ = __gt__ = lambda self, other: True
    __hash__ = None


class FalseText(str):
    __str__ = __repr__ = lambda self: "9"


class FalseDict(dict):
    items = keys = __iter__ = lambda self: iter([(9, 9)])


class FalseSet(set):
    def __iter__(self):
        return iter([9])


class FalseFloat(float):
    __repr__ = __float__ = lambda self: 9.0


class Colour(IntEnum):
    RED = 1


class Name(StrEnum):
    RED = "red"


SUBCLASSES = [
    (OrderedDict(a=1), {"a": 1}),
    (Counter("aab"), {"a": 2, "b": 1}),
    (defaultdict(int, {1: [2]}), {1: [2]}),
    (namedtuple("Point", "x y")(1, 2), (1, 2)),
    (Colour.RED, 1),
    ([Colour.RED], [1]),
    (Name.RED, "red"),
    (Decimal("0.5"), 0.5),
    (Decimal("3.00"), 3),
    (Decimal(10**30), 10**30),
    (Fraction(6, 2), 3),
    (Fraction(1, 4), 0.25),
    (Fraction(10**30), 10**30),
    ({1: 2, 3: 4}.keys(), {1, 3}),
    ({1: 2}.items(), {(1, 2)}),
    (bytearray(b"a"), b"a"),
    (Liar([1]), [1]),
    (FalseInt(1), 1),
    ([FalseInt(1)], [1]),
    (FalseText("a"), "a"),
    ([FalseText("a")], ["a"]),
    (FalseDict({1: 2}), {1: 2}),
    (FalseSet({1}), {1}),
    (FalseFloat(1.5), 1.5),
]


@pytest.mark.parametrize(("value", "plain"), SUBCLASSES, ids=[type(value).__name__ for value, _ in SUBCLASSES])
def test_a_subclass_is_read_as_its_plain_base_whatever_it_says(value, plain):
    assert same(decode(encode(value)), plain)


def test_numbers_of_numpy_become_plain():
    numpy = pytest.importorskip("numpy")
    given = [
        numpy.float64(0.5),
        numpy.float32(0.5),
        numpy.int64(5),
        numpy.bool_(True),
        numpy.str_("a"),
        numpy.bytes_(b"a"),
    ]
    assert same(decode(encode(given)), [0.5, 0.5, 5, True, "a", b"a"])
    assert isinstance(decode(encode(numpy.array([1]))), Unplain)
    assert isinstance(decode(encode(numpy.datetime64("2020-01-01"))), Unplain)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "object"),
        (range(2), "range"),
        (deque([1]), "deque"),
        ({1: 2}.values(), "dict_values"),
        (iter([]), "list_iterator"),
        (Decimal("0.1"), "Decimal"),
        (Decimal("NaN"), "Decimal"),
        (Decimal("sNaN"), "Decimal"),
        (Decimal("1e999999"), "Decimal"),
        (Fraction(1, 3), "Fraction"),
        (Enum("E", "A").A, "E"),
        (int, "type"),
        (..., "ellipsis"),
        (Ellipsis.__class__, "type"),
    ],
)
def test_what_is_not_plain_is_known_by_its_type_only(value, kind):
    assert decode(encode(value)) == Unplain(kind)
    assert decode(encode([1, value])) == [1, Unplain(kind)]


def test_values_without_end_end():
    loop = []
    loop.append(loop)
    pair = {"a": None}
    pair["a"] = (pair,)
    for value in (loop, pair):
        assert b"nested more than 100 deep" in encode(value)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[1",
        b"1 2",
        b"nan",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"{}",
        b'{"a":1}',
        b'{"t":1}',
        b'{"t":[],"s":[]}',
        b'{"i":1}',
        b'{"i":"zz"}',
        b'{"r":"1"}',
        b'{"c":[1,2]}',
        b'{"c":[1.0]}',
        b'{"b":"z"}',
        b'{"d":[1]}',
        b'{"x":1}',
        b'{"s":[[]]}',
        b'{"d":[[],1]}',
        b'{"f":[{"s":[]}]}',
        b"\xff",
        b"[" * 100_000,
        b'{"t":[' * 100_000,
        b"1" * 5000,
    ],
    ids=lambda line: line[:20],
)
def test_a_line_that_stands_for_nothing_is_refused(line):
    with pytest.raises(UnreadableError):
        decode(line)


@given(
    st.one_of(st.binary(max_size=60), st.text(st.sampled_from('[]{}":,tsfdircbx01.-en '), max_size=60).map(str.encode))
)
def test_no_line_does_anything_but_be_read_or_refused(line):
    try:
        value = decode(line)
    except UnreadableError:
        return
    assert len(shown(value)) < 1000


def test_members_that_collide_are_not_gathered():
    line = encode([n * (2**61 - 1) for n in range(200_000)])
    start = time.thread_time()
    with pytest.raises(UnreadableError):
        decode(b'{"s":' + line + b"}", most_members=10_000)
    with pytest.raises(UnreadableError):
        decode(b'{"d":' + line + b"}", most_members=10_000)
    assert not SameSet().holds(decode(line), frozenset({1}), ())
    assert time.thread_time() - start < 5  # gathering them takes minutes


@given(values)
def test_the_largest_collection_is_found(value):
    assert decode(encode(value), most_members=largest_collection(value)) == value


@given(values, values)
@example([1, True, 1.0], [True, 1.0, 1])
@example({1: {2.0}}, {True: frozenset([2])})
@example(0.0, -0.0)
@example(1e300, 10**300)
@example((1, 2), [1, 2])
@example("1", 1)
def test_digests_are_equal_exactly_where_values_are(one, other):
    assert (value_digest(one) == value_digest(other)) is (one == other)
    assert value_digest(one) == value_digest(decode(encode(one)))


@given(nested_numbers, nested_numbers)
def test_digests_of_numbers_are_equal_exactly_where_they_are(one, other):
    assert (value_digest(one) == value_digest(other)) is (one == other)


def test_what_is_no_value_equal_to_itself_has_no_digest():
    assert value_digest([NAN]) is None


@pytest.mark.parametrize(
    ("result", "expected", "atol", "right"),
    [
        (1, 1.0, 0, True),
        (True, 1, 0, True),
        ([1, True], [1.0, 1], 0, True),
        ({1: 2}, {1.0: 2}, 0, True),
        ({1}, frozenset({1}), 0, True),
        ((1,), [1], 0, False),
        ([1], (1,), 0, False),
        ([5], [], 0, False),
        ([5], (), 0, False),
        ((), [], 0, False),
        ([], [5.0], 0, False),
        (1.5, [1.5], 0, False),
        ([1.5], 1.5, 0, False),
        ([1.5], [1.5, 1.5], 0, False),
        ("1", 1, 0, False),
        (None, 0, 0, False),
        # floats have a tolerance of their own
        (0.1 + 0.2, 0.3, 0, True),
        (1.0 + 9e-7, 1.0, 0, True),
        (1.0 + 2e-6, 1.0, 0, False),
        (1e9 + 90, 1e9, 0, True),
        (1e9 + 110, 1e9, 0, False),
        ([0.1 + 0.2, 1.0], [0.3, 1.0], 0, True),
        ((0.1 + 0.2,), (0.3,), 0, True),
        ((0.1 + 0.2,), [0.3], 0, False),
        (1, 1.0000001, 0, False),  # not of the same type
        (1.0000001, 1, 0, False),
        ([0.1 + 0.2, 1], [0.3, 1], 0, False),  # not all of them floats
        ([[0.1 + 0.2]], [[0.3]], 0, False),
        ({1: 0.1 + 0.2}, {1: 0.3}, 0, False),
        (0.1 + 0.2 + 0j, 0.3 + 0j, 0, False),
        # where the test has one, it is for all numbers
        (3.00005, 3.0, 1e-4, True),
        (3.0002, 3.0, 1e-4, False),
        (30000, 30001, 1, True),
        (30000, 30002, 1, False),
        ([[1.00005], (2,)], [[1.0], [2]], 1e-4, True),
        ([[1.0]], [[1.0, 1.0]], 1e-4, False),
        ([1.0], [[1.0, 1.0]], 1e-4, False),
        (["a", 1.00005], ["a", 1.0], 1e-4, False),
        ({1.00005}, {1.0}, 1e-4, False),
        (1.00005 + 0j, 1 + 0j, 1e-4, True),
        (10**400, 10**400 + 1, 1e-4, False),
        (10**400, 1.0, 1e-4, False),
        (1.0, 10**400, 1e-4, False),
        # what is not finite
        (INF, INF, 0, True),
        ([INF, 0.1 + 0.2], [INF, 0.3], 0, True),
        (-INF, INF, 0, False),
        (1.0, INF, 0, False),
        (INF, 1.0, 0, False),
        (NAN, float("nan"), 0, False),
        ([float("nan")], [NAN], 0, False),
        (NAN, 1.0, 1e-4, False),
        (Unplain("object"), 1.0, 1e-4, False),
        ([Unplain("object")], [1.0], 1e-4, False),
    ],
)
def test_results_are_compared_as_evalplus_does(result, expected, atol, right):
    assert (
        Close(atol=atol).holds(decode(encode(result)) if "Unplain" not in repr(result) else result, expected, ())
        is right
    )


@given(values)
def test_every_value_is_right_where_it_is_expected(value):
    assert Close().holds(value, decode(encode(value)), ())
    assert Equal().holds(value, decode(encode(value)), ())
    assert Equal(identical=True).holds(value, decode(encode(value)), ())


@given(values)
def test_no_value_is_right_in_a_tuple_with_another(value):
    for oracle in (Close(), Close(atol=1.0), Equal()):
        assert not oracle.holds((value, "x"), value, ())
        assert not oracle.holds([value], value, ())


@given(nested_numbers, nested_numbers, st.sampled_from([0.0, 1e-6, 1.0]))
def test_the_comparison_is_that_of_numpy_without_broadcasting(one, other, atol):
    numpy = pytest.importorskip("numpy")

    def shape(value):
        return [shape(member) for member in value] if isinstance(value, list | tuple) else None

    floats = isinstance(other, float) or (
        isinstance(other, list | tuple) and len(other) > 0 and all(isinstance(member, float) for member in other)
    )
    tolerance = max(atol, 1e-6) if floats else atol
    close = False
    if tolerance and type(one) is type(other) and shape(one) == shape(other):
        try:
            close = bool(numpy.allclose(one, other, rtol=1e-7, atol=tolerance))
        except ValueError:  # numpy has no ragged lists
            return
    assert Close(atol=atol).holds(one, other, ()) is (one == other or close)


@given(values, values)
def test_no_comparison_raises(one, other):
    assert SameSet().holds(one, frozenset({1, "a"}), ()) in {True, False}
    for oracle in (Close(atol=0.1), Equal(identical=True), Within(), Truth(), Found()):
        assert oracle.holds(one, other, ()) in {True, False}
        assert oracle.wanted(other)
    assert Root(tolerance=1e-4).holds(one, None, ([1, 2.5, 3],)) in {True, False}


@pytest.mark.parametrize(
    ("oracle", "result", "expected", "right"),
    [
        (Equal(), 0.1 + 0.2, 0.3, False),
        (Equal(), 1, True, True),
        (Equal(identical=True), 1, True, False),
        (Equal(identical=True), None, None, True),
        (Within(), 0.1 + 0.2, 0.3, True),
        (Within(), 0.3001, 0.3, False),
        (Within(abs_tol=0.2, rel_tol=0.0), 3.1, 3, True),
        (Within(), "3", 3, False),
        (Within(), 10**400, 3, False),
        (Within(), NAN, 3, False),
        (Truth(), [0], True, True),
        (Truth(), [], True, False),
        (Truth(), "", False, True),
        (Truth(), Unplain("object"), True, False),
        (Truth(), Unplain("object"), False, False),
        (SameSet(), [2, 1, 2], frozenset({1, 2}), True),
        (SameSet(), {1: 0, 2: 0}, frozenset({1, 2}), True),
        (SameSet(), [1.0, True, 2], frozenset({1, 2}), True),
        (SameSet(), [1], frozenset({1, 2}), False),
        (SameSet(), [1, 2, 3], frozenset({1, 2}), False),
        (SameSet(), [[1], 2], frozenset({1, 2}), False),
        (SameSet(), "ab", frozenset({"a", "b"}), True),
        (SameSet(), 5, frozenset(), False),
        (SameSet(), None, frozenset(), False),
        (SameSet(), Unplain("filter"), frozenset(), False),
        (Found(), True, True, True),
        (Found(), False, True, False),
        (Found(), "yes", True, True),
        (Found(), [], True, True),
        (Found(), Unplain("Match"), True, True),
        (Found(), None, True, False),
        (Found(), None, False, True),
        (Found(), Unplain("Match"), False, False),
    ],
)
def test_other_rules_are_kept(oracle, result, expected, right):
    assert oracle.holds(result, expected, ()) is right


@pytest.mark.parametrize(
    ("result", "right"),
    [
        (2, True),
        (2.0, True),
        (2.00001, True),
        (2.1, False),
        (-100, False),
        (NAN, False),
        (INF, False),
        (1e300, False),
        ("2", False),
        ([2], False),
        (None, False),
        (2 + 0j, False),
        (Unplain("float"), False),
    ],
)
def test_a_zero_of_a_polynomial_is_one(result, right):
    assert Root(tolerance=1e-4).holds(result, -5, ([-2, 1],)) is right


@given(values)
def test_any_value_can_be_shown_in_few_words(value):
    assert len(shown(value)) < 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, (2,), (), {3}, set(), frozenset(), frozenset({4}), {}], None),
        ({"a": [None, 1.5, True, 2j, b"x"]}, None),
        (Unplain("module"), "an object of type module"),
    ],
)
def test_a_short_value_is_shown_as_python_writes_it(value, text):
    assert shown(value) == (repr(value) if text is None else text)


def test_a_long_value_is_cut():
    assert shown(10**5000) == "an integer of 16610 bits"
    assert shown(list(range(10**6))).endswith(", ...]")
    assert shown("x" * 10**6).endswith("'...")
