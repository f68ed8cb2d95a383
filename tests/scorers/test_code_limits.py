"""Output is cut into lines wherever it breaks, and how long a program may take comes from the canonical solution."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.scorers import _code_limits, _code_lines
from latentmas.scorers._code_lines import Lines
from latentmas.scorers._hub_tests import digest

DATA = Path(__file__).parents[3] / "shared" / "data"


@given(st.lists(st.binary(max_size=8) | st.just(b"\n")))
def test_lines_do_not_depend_on_how_they_come(chunks):
    together, apart = Lines(), Lines()
    output = b"".join(chunks)
    lines = [line for chunk in chunks for line in apart.feed(chunk)]
    assert lines == list(together.feed(output))
    assert [line.content for line in lines] == output.split(b"\n")[:-1]
    assert apart.unfinished() is together.unfinished() is (output.split(b"\n")[-1] != b"")
    assert apart.size == len(output)


@given(st.lists(st.integers(1, 30), min_size=1))
def test_a_large_line_has_a_digest_and_a_huge_one_nothing_else(sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_code_lines, "LARGE", 20)
        patch.setattr(_code_lines, "HELD", 60)
        lines, content = Lines(), b"".join(bytes([65 + number % 26]) * size for number, size in enumerate(sizes))
        parts = [bytes([65 + number % 26]) * size for number, size in enumerate(sizes)]
        assert [line for part in parts for line in lines.feed(part)] == []
        (line,) = lines.feed(b"\n")
        (other,) = Lines().feed(content + b"\n")
    assert line == other
    assert line.size == len(content)
    assert (line.digest is None) is (len(content) <= 20)
    assert line.content == (content if len(content) <= 60 else None)


def test_a_program_has_at_least_ten_seconds_and_at_most_ten_minutes():
    assert _code_limits.cpu_seconds("of no known test") == 10
    allowed = {known: _code_limits.cpu_seconds(known) for known in _code_limits._table().seconds}
    for known, seconds in _code_limits._table().seconds.items():
        assert seconds > 0.5
        assert min(600, max(10, 5 * seconds)) <= allowed[known] <= 600
    assert max(allowed.values()) > 60
    assert _code_limits.wall_seconds(10) == 22


def test_a_slower_machine_is_given_more_time_and_a_faster_one_no_less(monkeypatch):
    slowest = next(iter(_code_limits._table().seconds))
    usual = _code_limits._table().calibration_seconds
    allowed = []
    for factor in (0.1, 1.0, 3.0, 1000.0):
        monkeypatch.setattr(_code_limits, "calibration_seconds", lambda factor=factor: factor * usual)
        _code_limits._machine_factor.cache_clear()
        allowed.append(_code_limits.cpu_seconds(slowest))
    _code_limits._machine_factor.cache_clear()
    seconds = 5 * _code_limits._table().seconds[slowest]
    assert allowed == pytest.approx([seconds, seconds, 3 * seconds, 600])


@pytest.mark.skipif(not (DATA / "mbppplus").is_dir(), reason=f"no data sets in {DATA}")
def test_the_table_is_of_the_tests_that_are_published():
    digests = set()
    for path in [*(DATA / "humanevalplus").glob("*.gz"), *(DATA / "mbppplus").glob("*.gz")]:
        with gzip.open(path, "rt") as file:
            digests |= {digest(json.loads(line)["test"]) for line in file}
    assert set(_code_limits._table().seconds) <= digests
