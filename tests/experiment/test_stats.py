"""The numbers of a run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.experiment.config import RunConfig
from latentmas.experiment.stats import Z_95, Summary, summarize, wilson
from latentmas.samples import FinishReason, Record, Verdict

CONFIG = RunConfig.from_options({"method": "latent_mas", "model_name": "tiny"})


def summary_of(records: list[Record], samples: int) -> Summary:
    return summarize(records, config=CONFIG, samples=samples, wall_seconds=9.0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_ones_in_the_literature(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_an_interval_are_the_shares_that_the_score_test_just_accepts(case):
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            score = abs(successes / n - end) / math.sqrt(end * (1 - end) / n)
            assert score == pytest.approx(Z_95, rel=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_impossible_counts_have_no_interval(successes, n):
    with pytest.raises(ValueError, match="successes of"):
        wilson(successes, n)


def test_errors_and_missing_answers_count_as_not_correct(make_record):
    summary = summary_of(
        [
            make_record("a"),
            make_record("b", verdict=Verdict.WRONG),
            make_record("c", verdict=Verdict.NO_ANSWER, prediction=None),
            make_record("d", verdict=None, error="NumericalError: a thought is NaN", agents=()),
        ],
        samples=4,
    )
    assert (summary.n, summary.correct, summary.errors, summary.accuracy) == (4, 1, 1, 0.25)
    assert (summary.accuracy_low, summary.accuracy_high) == wilson(1, 4)
    assert summary.first_error == "NumericalError: a thought is NaN"
    assert summary.verdicts[Verdict.NO_ANSWER] == 1
    assert sum(summary.verdicts.values()) == 3


def test_costs_are_sums_and_memory_is_the_largest_of_any_agent(make_record):
    one = make_record("a")
    agent = one.agents[0]
    larger = agent.model_copy(update={"memory_slots": 90, "memory_bytes": 9000, "seconds": 2.0})
    summary = summary_of([one, make_record("b", agents=(agent, larger, agent))], samples=2)
    assert (summary.written_tokens, summary.thoughts, summary.prompt_tokens) == (28, 20, 36)
    assert summary.written_tokens_per_sample == 14
    assert (summary.peak_memory_slots, summary.peak_memory_bytes) == (90, 9000)
    assert (summary.seconds, summary.seconds_per_sample, summary.wall_seconds) == (3.5, 1.75, 9.0)


def test_answers_cut_by_length_are_counted(make_record):
    records = [make_record("a"), make_record("b", finish_reason=FinishReason.LENGTH)]
    assert summary_of(records, samples=2).cut_by_length == 1


def test_a_run_is_complete_when_every_sample_has_a_record(make_record):
    assert summary_of([make_record("a")], samples=1).complete
    assert not summary_of([make_record("a")], samples=2).complete


def test_no_record_gives_no_share_instead_of_zero():
    summary = summary_of([], samples=3)
    assert (summary.accuracy, summary.accuracy_low, summary.seconds_per_sample) == (None, None, None)
    assert not summary.complete
