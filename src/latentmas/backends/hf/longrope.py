"""longrope, row by row: transformers takes short or long factors by the longest row of a batch, here each has its own.

Phi-3.5, Phi-4-mini and Phi-MoE have two sets of rotary frequencies and switch at a length. transformers decides at
every forward pass for all rows at once, so that a row would change with its neighbours. While a rollout runs, each row
is given the length that counts for it alone: all that it reads and thinks before its last text, and within that text
the tokens so far, as `generate` does it.

Shape letters: B rows, T new slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_lengths: ContextVar[tuple[Tensor, int] | None] = ContextVar("latentmas_rope_lengths", default=None)


@contextmanager
def row_lengths(lengths: Tensor, switch: int) -> Iterator[None]:
    """Let each row of the forward passes inside take the factors for its own length.

    Args:
        lengths: ``[B]`` positions that count for each row.
        switch: The longest length of the short factors.
    """
    token = _lengths.set((lengths, switch))
    try:
        yield
    finally:
        _lengths.reset(token)


def choose_by_row(rotary: Any) -> None:
    """Make a rotary module of transformers take the factors of each row's own length where a rollout gives it."""
    if getattr(rotary, "latentmas_by_row", False):
        return
    whole = rotary.forward

    def by_row(x: Tensor, position_ids: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        given = _lengths.get()
        if given is None:
            answer: tuple[Tensor, Tensor] = whole(x, position_ids, *more, **named)
            return answer
        lengths, switch = given
        is_long = (lengths > switch).to(position_ids.device)[:, None]  # [B, 1]
        position_ids = position_ids.expand(len(lengths), -1)
        if not bool(is_long.any()):
            short: tuple[Tensor, Tensor] = whole(x, position_ids, *more, **named)
            return short
        # One position more makes transformers take the long factors, however early the others are.
        beyond = torch.full_like(position_ids[:, :1], switch)
        cos, sin = whole(x, torch.cat([position_ids, beyond], dim=1), *more, **named)
        cos, sin = cos[:, :-1], sin[:, :-1]  # [B, T, R]
        if bool(is_long.all()):
            return cos, sin
        of_short = whole(x, position_ids.masked_fill(is_long, 0), *more, **named)
        return torch.where(is_long[:, :, None], cos, of_short[0]), torch.where(is_long[:, :, None], sin, of_short[1])

    rotary.forward = by_row
    rotary.latentmas_by_row = True
