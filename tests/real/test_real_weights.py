"""On real weights: company, filters and moves change nothing that they should not change."""

from __future__ import annotations

import pytest

from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.program import Program, Read, Think
from real.conftest import NEW_TOKENS, ROWS, differing, solve

pytestmark = pytest.mark.real

TEAM = {"method": "latent_mas"}
HALF = {"filter": "receiver", "keep": 0.5}


# Company


@pytest.mark.parametrize(
    "options",
    [{"method": "baseline"}, TEAM, {**TEAM, **HALF}, {**TEAM, "topology": "parallel"}],
    ids=["baseline", "latent", "filtered", "joined"],
)
def test_rows_of_a_batch_write_in_float32_what_they_write_alone(real, report, options):
    batch, alone = real.tokens(**options), real.tokens(alone=True, **options)
    assert len(set(alone)) > 1, "rows must differ, or this shows nothing"
    report(f"{len(differing(batch, alone))} of {ROWS} rows differ")
    assert differing(batch, alone) == []


def test_rows_in_bfloat16_are_counted(real, report):
    """Rounding depends on the shape of a batch, so here a bound is all there is; equal shapes are another test."""
    batch, alone = real.tokens(dtype="bfloat16", **TEAM), real.tokens(dtype="bfloat16", alone=True, **TEAM)
    apart = differing(batch, alone)
    first = sum(left[0][:1] != right[0][:1] for left, right in zip(batch, alone, strict=True))
    report(f"{len(apart)} of {ROWS} rows differ within {NEW_TOKENS} tokens, {first} in the first")
    assert first <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_tokens_in_the_other_rows_leave_every_bit_of_a_row_as_it_was(real, dtype):
    import torch

    backend = real.backend(dtype)
    said = [real.codec.encode_text(sample.question)[:30] for sample in real.questions[:4]]
    assert {len(tokens) for tokens in said} == {30}

    def memory(prompts):
        rows = [
            Row(program=Program((Read(agent="a", tokens=tokens), Think(agent="a", steps=6))), seed=number)
            for number, tokens in enumerate(prompts)
        ]
        rollout = Rollout(backend.model, backend.alignment, rows)
        rollout.run()
        return rollout.memory

    others = [tokens if number == 1 else tokens[::-1] for number, tokens in enumerate(said)]
    before, after = memory(said), memory(others)
    for layer in range(before.layers):
        assert torch.equal(before.keys(layer)[1], after.keys(layer)[1])
        assert torch.equal(before.values(layer)[1], after.values(layer)[1])
    assert not torch.equal(before.keys(0)[0], after.keys(0)[0])


# Hand-overs


@pytest.mark.parametrize("name", ["receiver", "knn", "recency"])
def test_a_filter_that_keeps_everything_changes_nothing_and_one_that_keeps_half_frees_half(real, name):
    rows = 2
    assert real.tokens(rows, filter=name, keep=1.0, **TEAM) == real.tokens(**TEAM)[:rows]
    method = real.method(filter=name, keep=0.5, filter_at="final", **TEAM)
    for [(program, completion)] in solve(real.backend(), method, real.questions[:rows]):
        handed = [step.handover for step in completion.steps if step.handover is not None]
        before = sum(share.slots_before for account in handed for share in account.shares)
        after = sum(share.slots_after for account in handed for share in account.shares)
        assert len(handed) == 1
        assert 0.45 * before <= after <= 0.55 * before
        assert program.count().thoughts == sum(step.thoughts for step in completion.steps) == 12


def test_memory_that_is_moved_as_a_whole_says_the_same(real, report):
    """Rotary models see distances only: what is newest keeps its distances when it moves to the front."""
    newest = {**TEAM, "filter": "recency", "keep": 0.5, "filter_at": "final", "protect_sinks": 0}
    newest["protect_thoughts"] = False
    stayed, moved = real.tokens(**newest), real.tokens(positions="rerotate", **newest)
    full = real.tokens(**TEAM)
    report(f"{len(differing(stayed, moved))} of {ROWS} rows differ; {len(differing(stayed, full))} from full memory")
    assert differing(stayed, moved) == []
    assert differing(stayed, full), "half of the memory must matter for some row, or this shows nothing"
