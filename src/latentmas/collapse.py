"""How much the thoughts of one Think change, and whether they have come to one vector.

This module is the only place that says what a collapse is. It is handed the thoughts once a Think is over: the device
multiplies them with each other, one transfer brings the products here, and what is small is computed on the CPU.

Shape letters: B rows, m thoughts, E hidden size, k thoughts that are compared with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from latentmas.protocols import ThoughtAccount

SAME_COSINE: Final = 0.95
"""Thoughts whose cosine is at least this count as one vector: they are within 18 degrees of each other."""
FEWEST_ALIKE: Final = 4
"""Fewer thoughts than this do not show that thinking has come to an end."""
SHARE_ALIKE: Final = 1 / 3
"""Thoughts that are alike have to be this share of a Think. Whatever moves slowly has a last few that are alike."""
MOST_COMPARED: Final = 256
"""Thoughts of a Think that are compared with each other; of a longer one so many, spread evenly, its last among them."""
_ELEMENTS: Final = 1 << 22
"""Numbers that are converted to the wider dtype at once, where a single row does not have more."""


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
    rows, width = thoughts[0].shape
    exact = torch.float32 if thoughts[0].device.type == "mps" else torch.float64
    norms = torch.stack(list(hidden_norms), dim=1).to(exact)  # [B, m]
    chosen = torch.tensor(_compared(len(thoughts)), device=thoughts[0].device) + (before is not None)
    at_once = max(1, _ELEMENTS // (len(made) * width))
    accounts: list[ThoughtAccount | None] = []
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        vectors = torch.stack([thought[part] for thought in made], dim=1).to(exact)  # [B, m or m + 1, E]
        lengths = vectors.norm(dim=2)
        product = (vectors[:, 1:] * vectors[:, :-1]).sum(dim=2)
        cosines = product / (lengths[:, 1:] * lengths[:, :-1]).clamp_min(torch.finfo(exact).tiny)
        compared = vectors if len(chosen) == len(made) else vectors[:, chosen]
        gram = compared @ compared.mT  # [B, k, k]
        found = torch.cat([lengths, norms[part], cosines, gram.flatten(1)], dim=1).double().cpu()
        accounts += _accounts(found, len(thoughts), len(chosen), len(made))
    return accounts


def _accounts(found: Tensor, steps: int, compared: int, made: int) -> list[ThoughtAccount | None]:
    """Return the accounts of rows from what the device found about them."""
    lengths, norms, cosines, flat = found.split([made, steps, made - 1, compared**2], dim=1)
    finite = lengths.isfinite().all(dim=1)
    gram = torch.where(finite[:, None], flat, torch.zeros(())).unflatten(1, (compared, compared))
    ranks = effective_rank(gram).tolist()
    alike = alike_from(gram).tolist()
    numbers = _compared(steps)
    return [
        ThoughtAccount(
            cosines=tuple(cosines[row].tolist()),
            hidden_norms=tuple(norms[row].tolist()),
            effective_rank=ranks[row],
            collapsed_after=collapsed_after(numbers[alike[row]] + 1, steps),
        )
        if is_finite
        else None
        for row, is_finite in enumerate(finite.tolist())
    ]


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


def alike_from(gram: Tensor) -> Tensor:
    """Return ``[B]`` the first vector, counted from 0, from which on all are alike; the last is like itself.

    Args:
        gram: ``[B, k, k]`` products of vectors. A vector of zeros is like no other.
    """
    lengths = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    cosines = gram / (lengths[:, :, None] * lengths[:, None, :]).clamp_min(torch.finfo(gram.dtype).tiny)
    later = torch.ones_like(gram, dtype=torch.bool).triu(1)
    lowest = torch.where(later, cosines, 1.0).amin(dim=2)  # [B, k]: of each with those after it
    among = lowest.flip(1).cummin(dim=1).values.flip(1)  # of any two from each on
    return (among < SAME_COSINE).sum(dim=1)


def effective_rank(gram: Tensor) -> Tensor:
    """Return ``[B]`` how many directions vectors take, in [1, k]: e to the entropy of their singular values' shares.

    Roy and Vetterli, The effective rank (2007). One vector many times over has 1, k of one length at right angles have
    k.

    Args:
        gram: ``[B, k, k]`` products of vectors; its eigenvalues are the squares of their singular values.
    """
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum(dim=1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    return torch.special.entr(shares).sum(dim=1).exp()


def _compared(steps: int) -> list[int]:
    """Return which thoughts are compared with each other, counted from 0; always the last one."""
    stride = math.ceil(steps / MOST_COMPARED)
    return list(range(steps - 1, -1, -stride))[::-1]
