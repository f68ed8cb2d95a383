"""The store of thoughts: made after a step, read in the next one, and only by their own request."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from latentmas.alignment import AlignmentKind, EmbeddingSpace, build_alignment, ridge_matrix
from latentmas.backends.vllm.recorder import Recorder
from latentmas.backends.vllm.thoughts import Chunks, Thoughts, check_chunk
from latentmas.collapse import measure

WIDTH = 4


class Doubling:
    norm = 1.0

    def __call__(self, hidden):
        return 2 * hidden


@pytest.fixture
def thoughts():
    return Thoughts(Doubling(), slots=5, rows=12, hidden_size=WIDTH, dtype=torch.float32, device=torch.device("cpu"))


def chunks(*requests, positions=None, names=()):
    """One request is (slot, rows of its chunk, begins, ends)."""
    slot, length, begins, ends = (np.array(column) for column in zip(*requests, strict=True))
    return Chunks(
        slot=slot.astype(np.int64),
        row=np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64),
        last=np.arange(len(slot), dtype=np.int64),
        begins=begins.astype(bool),
        ends=ends.astype(bool),
        position=np.array(positions or [0] * len(slot), dtype=np.int64),
        names=names,
    )


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, WIDTH).clone()


def test_a_thought_replaces_the_embedding_of_its_own_request_alone(thoughts):
    thoughts.begin(chunks((3, 2, False, True), (1, 3, False, False), (0, 1, False, True)))
    assert torch.equal(thoughts.overlay(rows(*range(6))), rows(*range(6)))
    thoughts.tap(rows(10, 11, 12))
    # The batch is in another order now, and padded for a graph.
    thoughts.begin(chunks((0, 1, True, True), (3, 4, True, False), (2, 1, False, False)))
    assert torch.equal(thoughts.overlay(rows(*range(8))), rows(24, 20, 2, 3, 4, 5, 6, 7))
    thoughts.tap(rows(30, 31, 32))
    thoughts.begin(chunks((0, 1, True, False)))
    assert torch.equal(thoughts.overlay(rows(0)), rows(60))


def test_a_thought_waits_through_steps_that_its_request_is_not_in(thoughts):
    thoughts.begin(chunks((3, 2, False, True)))
    thoughts.tap(rows(10))
    for _ in range(3):
        thoughts.begin(chunks((1, 2, False, True)))
        thoughts.tap(rows(99))
    thoughts.begin(chunks((3, 1, True, False)))
    assert torch.equal(thoughts.overlay(rows(0)), rows(20))


def test_what_was_a_thought_in_one_step_is_none_in_the_next(thoughts):
    thoughts.begin(chunks((3, 2, False, True)))
    thoughts.tap(rows(10))
    thoughts.begin(chunks((0, 4, False, False), (3, 1, True, False)))
    assert thoughts.overlay(rows(0, 0, 0, 0, 0))[4, 0] == 20
    thoughts.begin(chunks((0, 1, False, False)))
    assert torch.equal(thoughts.overlay(rows(0, 0, 0, 0, 0, 0)), rows(0, 0, 0, 0, 0, 0))


def test_only_the_first_head_of_a_step_makes_thoughts(thoughts):
    thoughts.begin(chunks((3, 2, False, True)))
    thoughts.tap(rows(10))
    thoughts.tap(rows(77))  # prompt log-probabilities, for one
    thoughts.begin(chunks((3, 1, True, False)))
    assert torch.equal(thoughts.overlay(rows(0)), rows(20))


def test_inputs_lie_in_the_same_memory_in_every_step_as_cuda_graphs_need_it(thoughts):
    thoughts.begin(chunks((3, 2, False, True)))
    first = thoughts.overlay(rows(*range(6)))
    thoughts.tap(rows(10))
    thoughts.begin(chunks((3, 4, True, False)))
    second = thoughts.overlay(rows(*range(4)))
    assert first.data_ptr() == second.data_ptr()
    assert second.is_contiguous()


def test_a_chunk_that_holds_a_thought_behind_its_start_stops_the_engine():
    marked = np.array([False, False, True, True, False, False])
    for start, end in ((0, 2), (2, 3), (3, 6), (4, 5)):
        check_chunk(marked, start, end)
    for start, end in ((0, 3), (1, 4), (2, 4)):
        with pytest.raises(RuntimeError, match="does not schedule as latentmas asks for"):
            check_chunk(marked, start, end)


def test_a_tap_without_a_step_makes_nothing(thoughts):
    thoughts.tap(rows(10))
    thoughts.begin(chunks((0, 1, False, False)))
    thoughts.tap(rows(10))
    assert torch.equal(thoughts.overlay(rows(5)), rows(5))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_head_that_is_spread_by_rows_gives_the_same_alignment(parts):
    torch.manual_seed(0)
    vocabulary, width = 50, 8
    embedding, head = torch.randn(vocabulary, width), torch.randn(vocabulary, width)
    held = [range(rank * vocabulary // parts, (rank + 1) * vocabulary // parts) for rank in range(parts)]

    def space(rows_held, total):
        return EmbeddingSpace(
            embed=lambda ids: embedding[ids],
            head=head[rows_held.start : rows_held.stop],
            logits=lambda hidden: hidden @ head.T,
            vocabulary=vocabulary,
            tied=False,
            compute=torch.float32,
            first_row=rows_held.start,
            total=total,
        )

    # Every process computes its own sums first; an all-reduce then gives each the total.
    sums = []
    for each in held:
        own = []
        ridge_matrix(space(each, lambda tensor, own=own: own.append(tensor.clone()) or torch.eye(width).double()))
        sums.append(own)
    totals = [sum(parts) for parts in zip(*sums, strict=True)]
    whole = ridge_matrix(space(range(vocabulary), lambda tensor: tensor))
    for each in held:
        reduced = iter([total.clone() for total in totals])
        torch.testing.assert_close(ridge_matrix(space(each, lambda tensor, it=reduced: next(it))), whole)


def test_thoughts_are_those_of_the_transformers_backend(tiny):
    """The same functions make them; what differs is only where the vectors come from."""
    space = tiny.model(dtype=torch.float32).space()
    alignment = build_alignment(AlignmentKind.RIDGE, space)
    store = Thoughts(alignment, slots=2, rows=4, hidden_size=48, dtype=torch.float32, device=torch.device("cpu"))
    hidden = torch.randn(2, 48)
    store.begin(chunks((0, 1, False, True), (1, 1, False, True)))
    store.tap(hidden)
    store.begin(chunks((1, 1, True, False), (0, 1, True, False)))
    assert torch.equal(store.overlay(torch.zeros(2, 48)), alignment(hidden).flip(0))


class Sequence:
    """Steps of requests a and b whose thoughts are planted: the hidden state of a step is what is fed to `tap`."""

    def __init__(self, requests=8):
        self.recorder = Recorder(requests)
        self.store = Thoughts(
            Doubling(),
            slots=4,
            rows=8,
            hidden_size=WIDTH,
            dtype=torch.float32,
            device=torch.device("cpu"),
            recorder=self.recorder,
        )

    def step(self, *requests):
        """One request is (name, position of the thought it ends before or None, hidden state)."""
        self.store.begin(
            chunks(
                *((slot, 1, False, position is not None) for slot, (_, position, _) in enumerate(requests)),
                positions=[position or 0 for _, position, _ in requests],
                names=[f"{name}-0123abcd" for name, _, _ in requests],
            )
        )
        self.store.tap(torch.stack([hidden for _, _, hidden in requests]))


def test_what_a_recorder_tells_of_thoughts_is_what_the_transformers_backend_does():
    hidden = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    run = Sequence()
    for step in range(6):  # b reads a prompt in the third step, and is not in the fourth
        of_b = {2: None, 4: 12, 5: 13}.get(step, 9 + step)
        requests = [("a", 5 + step, hidden[0, step]), ("b", of_b, hidden[1, step])]
        run.step(*(requests[:1] if step == 3 else requests[::-1] if step % 2 else requests))
    [[of_a], [first, second]] = run.recorder.take([("a", [(5, 6)]), ("b", [(9, 2), (12, 2)])])
    for found, states in ((of_a, hidden[0]), (first, hidden[1, :2]), (second, hidden[1, 4:])):
        [expected] = measure([2 * state[None] for state in states], [state.norm()[None] for state in states])
        assert found == asdict(expected)
    assert run.recorder.take([("a", [(5, 6)])]) == [[None]], "they are forgotten once they were told"


def test_a_think_that_the_prefix_cache_had_in_part_was_not_measured():
    run = Sequence()
    for position in (7, 8):
        run.step(("a", position, torch.ones(WIDTH)))
    assert [found is None for found in run.recorder.take([("a", [(6, 3), (7, 2)])])[0]] == [True, False]


def test_a_request_that_was_preempted_tells_of_the_thoughts_it_made_last():
    run = Sequence()
    for scale in (1.0, 3.0):
        for position in (7, 8):
            run.step(("a", position, scale * torch.ones(WIDTH)))
    [[found]] = run.recorder.take([("a", [(7, 2)])])
    assert found["hidden_norms"] == pytest.approx((6.0, 6.0))


def test_a_think_directly_behind_another_has_a_cosine_for_its_first_thought():
    run = Sequence()
    for position in (7, 8, 9):
        run.step(("a", position, torch.ones(WIDTH)))
    first, second = run.recorder.take([("a", [(7, 2), (9, 1)])])[0]
    assert (first["cosines"], second["cosines"]) == ((pytest.approx(1),), (pytest.approx(1),))


def test_requests_nobody_asks_about_are_forgotten_oldest_first():
    run = Sequence(requests=2)
    for name in "abc":
        run.step((name, 7, torch.ones(WIDTH)))
    assert [found[0] is None for found in run.recorder.take([(name, [(7, 1)]) for name in "abc"])] == [
        True,
        False,
        False,
    ]
