"""What transformers sees of a memory: a cache to write to, and a mask that says who sees whom.

Masks are built from validity and true positions, never from slot counts, so padding and dropped slots in the middle
of a memory, sliding windows and memories of different lengths in one batch need no special case.

Shape letters: B rows, S slots, T new slots (the last T of S).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from latentmas.errors import MemoryMismatchError
from latentmas.memory import LatentMemory


class MemoryCache(Cache):
    """A `LatentMemory` as a transformers cache; the slots must have been added with `extend` before."""

    def __init__(self, memory: LatentMemory) -> None:
        super().__init__(layers=[])
        self.memory = memory

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        return self.memory.write(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.memory.slots


def visibility(memory: LatentMemory, new: int, window: int | None) -> Tensor:
    """Return ``[B, 1, T, S]`` bool: which slots each of the newest slots may attend to.

    Args:
        new: T.
        window: Width of a sliding window in positions; None sees everything before it.
    """
    slots, device = memory.slots, memory.device
    mask = memory.valid[:, None, :].repeat(1, new, 1)  # [B, T, S], a copy: `valid` itself must not change
    if new > 1:
        order = torch.arange(slots, device=device)
        mask &= order[None, :] <= order[slots - new :, None]
    if window is not None:
        if not memory.uniform:
            raise MemoryMismatchError("a sliding window needs a memory with the same slots in every layer and head")
        distance = memory.positions[:, slots - new :, None] - memory.positions[:, None, :]
        mask &= distance < window
    # A pad sees itself: a row of the softmax without any slot would be NaN, and NaN keys would spread.
    diagonal = torch.arange(new, device=device)
    mask[:, diagonal, slots - new + diagonal] = True
    return mask[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask as eager attention adds it to its scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
