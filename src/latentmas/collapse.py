"""How much the thoughts of one Think change, and whether they have come to one vector.

This module is the only place that says what a collapse is. It is handed the thoughts once a Think is over: the device
multiplies them with each other, and what is made of the products is so small that it is made on the CPU.

Shape letters: B rows, m thoughts, E hidden size, k vectors that are compared with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentmas.protocols import ThoughtAccount

SAME_COSINE: Final = 0.95
"""Thoughts whose cosine is at least this count as one vector: they are within 18 degrees of each other."""
FEWEST_ALIKE: Final = 4
"""Fewer thoughts than this do not show that thinking has come to an end."""
SHARE_ALIKE: Final = 1 / 3
"""Thoughts that are alike have to be this share of a Think. Whatever moves slowly has a last few that are alike."""
MOST_COMPARED: Final = 256
"""Thoughts of a Think that are compared with each other; of a longer one so many, spread evenly up to the last."""
_ELEMENTS: Final = 1 << 22
"""Numbers that are converted to the wider dtype at once, where a single row does not have more."""

Floats = NDArray[np.float64]


def measure(
    thoughts: Sequence[Tensor], hidden_norms: Sequence[Tensor], before: Tensor | None = None
) -> list[ThoughtAccount | None]:
    """Return how the thoughts of a Think changed, for each row; None where a thought is not finite.

    Args:
        thoughts: m of ``[B, E]``, at least one, as they were fed back.
        hidden_norms: m of ``[B]``, of the hidden state that each was made from.
        before: ``[B, E]`` the thought that came directly before them; None where there was none.
    """
    made = [*([] if before is None else [before]), *thoughts]
    rows, width = made[0].shape
    norms = torch.stack(list(hidden_norms), dim=1).tolist()  # [B][m]
    at_once = max(1, _ELEMENTS // (min(len(made), MOST_COMPARED) * width))
    if at_once >= rows:
        return _accounts(made, norms)
    accounts: list[ThoughtAccount | None] = []
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        accounts += _accounts([thought[part] for thought in made], norms[part])
    return accounts


def collapsed_after(first: int, steps: int) -> int | None:
    """Return after which thought a Think has collapsed; None where it has not.

    It has collapsed after thought n if thoughts n to the last are one vector: the cosine of any two of them is at least
    `SAME_COSINE`. They must be `FEWEST_ALIKE` at least, and `SHARE_ALIKE` of the Think: the last few of thoughts that
    drift on are near each other as well, however far they get. Thoughts that jump at the end have not collapsed.

    Args:
        first: Number of the first thought, counted from 1, from which on all are alike.
        steps: Thoughts of the Think.
    """
    alike = steps - first + 1
    return first if alike >= max(FEWEST_ALIKE, math.ceil(SHARE_ALIKE * steps)) else None


def alike_from(cosines: Floats) -> NDArray[np.int64]:
    """Return ``[B]`` the first vector, counted from 0, from which on all are alike; the last is like itself.

    Args:
        cosines: ``[B, k, k]`` of each vector with each.
    """
    lowest = np.where(_later(cosines.shape[1]), cosines, 1.0).min(axis=2)  # [B, k]: of each with those after it
    among = np.minimum.accumulate(lowest[:, ::-1], axis=1)  # of any two, from the last one back
    found: NDArray[np.int64] = (among < SAME_COSINE).sum(axis=1)
    return found


def effective_rank(gram: Floats) -> Floats:
    """Return ``[B]`` how many directions vectors take, in [1, k]: e to the entropy of their singular values' shares.

    Roy and Vetterli, The effective rank (2007). One vector many times over has 1, k of one length at right angles have
    k.

    Args:
        gram: ``[B, k, k]`` products of vectors; its eigenvalues are the squares of their singular values.
    """
    values = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0.0))
    shares = values / values.sum(axis=1, keepdims=True).clip(min=_TINY)
    rank: Floats = np.exp(-(shares * np.log(shares.clip(min=_TINY))).sum(axis=1))
    return rank


_TINY: Final = float(np.finfo(np.float64).tiny)


def _accounts(made: Sequence[Tensor], norms: Sequence[Sequence[float]]) -> list[ThoughtAccount | None]:
    """Return the accounts of rows; the first vector is no thought of this Think where there is one more than norms."""
    steps = len(norms[0])
    first = len(made) - steps
    if len(made) <= MOST_COMPARED + 1:
        gram, finite = _products(made)
        cosines = _cosines(gram)
        neighbours = cosines.diagonal(1, 1, 2)
        numbers = range(steps)
        gram, cosines = gram[:, first:, first:], cosines[:, first:, first:]
    else:
        stride = math.ceil(steps / MOST_COMPARED)
        numbers = range((steps - 1) % stride, steps, stride)
        gram, finite = _products([made[first + number] for number in numbers])
        cosines = _cosines(gram)
        starts = range(0, len(made) - 1, MOST_COMPARED)  # blocks of neighbours, which share a thought
        blocks = [_products(made[start : start + MOST_COMPARED + 1]) for start in starts]
        neighbours = np.concatenate([_cosines(block).diagonal(1, 1, 2) for block, _ in blocks], axis=1)
        finite = np.logical_and.reduce([finite, *(is_finite for _, is_finite in blocks)])
    ranks, alike = effective_rank(gram).tolist(), alike_from(cosines).tolist()
    return [
        ThoughtAccount(
            cosines=tuple(of_row),
            hidden_norms=tuple(norms[row]),
            effective_rank=ranks[row],
            collapsed_after=collapsed_after(numbers[alike[row]] + 1, steps),
        )
        if finite[row]
        else None
        for row, of_row in enumerate(neighbours.tolist())
    ]


def _products(vectors: Sequence[Tensor]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return ``[B, k, k]`` products of k times ``[B, E]``, in float64 wherever the device has it, and who is finite.

    Rows that are not have zeros.
    """
    exact = torch.float32 if vectors[0].device.type == "mps" else torch.float64
    together = torch.stack(list(vectors), dim=1).to(exact)
    products: Floats = (together @ together.mT).cpu().numpy().astype(np.float64, copy=False)
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(products), axis=(1, 2))
    return (products if finite.all() else np.where(finite[:, None, None], products, 0.0)), finite


def _cosines(gram: Floats) -> Floats:
    """Return ``[B, k, k]`` cosines from products; a vector of zeros is at right angles to all, itself as well."""
    lengths = np.sqrt(gram.diagonal(0, 1, 2))
    cosines: Floats = gram / (lengths[:, :, None] * lengths[:, None, :]).clip(min=_TINY)
    return cosines


@lru_cache(maxsize=8)
def _later(count: int) -> NDArray[np.bool_]:
    """Return ``[k, k]`` which vector comes after which."""
    return np.tri(count, k=-1, dtype=np.bool_).T
