"""What counts as a collapse, by planted thoughts, and the numbers behind it, by other derivations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentmas import collapse
from latentmas.collapse import measure

WIDTH = 576


def account(thoughts, **more):
    """Return the account of one row of thoughts, ``[m, E]``."""
    [found] = measure([thought[None] for thought in thoughts], [torch.ones(1)] * len(thoughts), **more)
    return found


def moving(steps, cosine, *, seed=0, width=WIDTH):
    """Return unit vectors that turn by the same angle at every step, each time in a new direction."""
    noise = np.random.default_rng(seed)
    made = [unit(noise.standard_normal(width))]
    for _ in range(steps - 1):
        fresh = noise.standard_normal(width)
        fresh = unit(fresh - (fresh @ made[-1]) * made[-1])
        made.append(cosine * made[-1] + math.sqrt(1 - cosine**2) * fresh)
    return torch.tensor(np.array(made))


def unit(vector):
    return vector / np.linalg.norm(vector)


def rank_of(thoughts):
    """Roy and Vetterli by singular values of the thoughts themselves."""
    values = np.linalg.svd(np.asarray(thoughts, dtype=np.float64), compute_uv=False)
    shares = values[values > 0] / values.sum()
    return math.exp(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize(("steps", "cosine", "width"), [(20, 0.3, 64), (20, 0.98, 576), (7, 0.9, 4), (300, 0.7, 64)])
def test_cosines_and_rank_are_those_of_another_derivation(steps, cosine, width):
    thoughts = 3 * moving(steps, cosine, width=width)
    found = account(thoughts)
    rows = thoughts.numpy()
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(rows[1:], rows[:-1], strict=True)]
    np.testing.assert_allclose(found.cosines, expected, atol=1e-12)
    compared = rows if steps <= collapse.MOST_COMPARED else rows[steps - 1 :: -2]
    assert found.effective_rank == pytest.approx(rank_of(compared), rel=1e-6)


def test_directions_at_right_angles_count_one_each_and_one_vector_counts_one():
    assert account(torch.eye(8)[:6]).effective_rank == pytest.approx(6)
    assert account(torch.ones(20, 8)).effective_rank == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("after", [1, 2, 4, 11, 14])
def test_a_planted_collapse_is_found_at_its_step(after):
    # Up to thought `after` they move, and from it on they are one vector up to some noise.
    thoughts = moving(20, 0.4)
    noise = 0.1 * torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / WIDTH**0.5
    thoughts[after:] = thoughts[after - 1] + noise[after:]
    assert account(thoughts).collapsed_after == after


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.5, 0.9, 0.97, 0.98, 0.985, 0.99])
@pytest.mark.parametrize("steps", [20, 80, 600])
def test_thoughts_that_drift_on_have_not_collapsed(cosine, steps):
    assert account(moving(steps, cosine)).collapsed_after is None


def test_thoughts_that_drift_no_further_than_one_vector_have_collapsed():
    assert account(moving(20, 0.9995)).collapsed_after == 1


def test_a_jump_at_the_end_is_no_collapse():
    thoughts = torch.ones(20, 8)
    thoughts[-1, :4] = -1
    assert account(thoughts).collapsed_after is None


def test_two_vectors_in_turns_are_no_collapse():
    assert account(torch.eye(8)[[0, 1] * 10]).collapsed_after is None


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_thoughts_are_never_called_a_collapse(steps):
    found = account(torch.ones(steps, 8))
    assert found.collapsed_after is None
    assert found.cosines == pytest.approx((1.0,) * (steps - 1))


def test_one_thought_has_a_norm_and_a_rank_and_no_cosine():
    found = account(torch.ones(1, 8))
    assert (found.cosines, found.hidden_norms, found.effective_rank) == ((), (1.0,), pytest.approx(1))


def test_a_long_think_that_collapses_is_found_within_what_is_compared():
    thoughts = moving(1000, 0.2)
    thoughts[500:] = thoughts[499]
    found = account(thoughts)
    assert 500 <= found.collapsed_after <= 503
    assert len(found.cosines) == 999
    assert found.cosines[498] == pytest.approx(0.2)
    assert found.cosines[499] == pytest.approx(1)


def test_the_thought_directly_before_gives_the_first_cosine_and_nothing_else():
    thoughts = moving(12, 0.6)
    whole, part = account(thoughts), account(thoughts[5:], before=thoughts[4:5])
    np.testing.assert_allclose(part.cosines, whole.cosines[4:], atol=1e-12)
    assert part.effective_rank == pytest.approx(account(thoughts[5:]).effective_rank)


@pytest.mark.parametrize("elements", [1, 3 * WIDTH * 20, 1 << 22])
def test_rows_are_measured_alike_however_many_are_converted_at_once(elements, monkeypatch):
    monkeypatch.setattr(collapse, "_ELEMENTS", elements)
    rows = torch.stack([moving(20, 0.2 * seed, seed=seed) for seed in range(5)], dim=1)  # [m, B, E]
    norms = torch.arange(100.0).reshape(20, 5)
    found = measure(list(rows), list(norms))
    for row, of_row in enumerate(found):
        assert of_row.hidden_norms == tuple(norms[:, row].tolist())
        np.testing.assert_allclose(of_row.cosines, account(rows[:, row]).cosines, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("steps", [3, 300])
def test_a_row_that_is_not_finite_has_no_account_and_leaves_the_others_alone(bad, steps):
    rows = torch.stack([moving(steps, 0.5), moving(steps, 0.5, seed=1)], dim=1)
    norms = [torch.ones(2)] * steps
    _, expected = measure(list(rows), norms)
    rows[1, 0, 7] = bad
    assert measure(list(rows), norms) == [None, expected]


def test_a_thought_of_zeros_is_like_no_other():
    found = account(torch.zeros(20, 8))
    assert found.collapsed_after is None
    assert set(found.cosines) == {0.0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_thoughts_of_any_dtype_are_measured_in_a_wide_one(dtype):
    thoughts = moving(20, 0.9).to(dtype)
    assert account(thoughts).effective_rank == pytest.approx(rank_of(thoughts.double().numpy()), rel=1e-5)
