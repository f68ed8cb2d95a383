"""How fine a filter of one's own chooses, found out on a memory that is made up: no model is needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentmas.filters import Filter, Grain, Need, Sight, needs_of
from latentmas.memory import LatentMemory
from latentmas.program import SlotKind

ROWS = 2
PROMPT = 40
THOUGHTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryShape:
    """What the memory of a model looks like.

    Attributes:
        heads: Key/value heads of a layer, each `width` wide.
        hidden: Size of input embeddings.
    """

    layers: int
    heads: int
    width: int
    hidden: int


def tried_grain(filter_: Filter, shape: MemoryShape) -> Grain | None:
    """Return for what a filter chooses slots apart, by the shape of its scores; None where it gives none here.

    A filter that fails on what is made up need not fail on a real memory.
    """
    try:
        scores = tuple(filter_.score(_sight(needs_of(filter_), shape)).shape)
    except Exception:  # noqa: BLE001 - code of strangers, and a made-up memory may be what breaks it
        return None
    if len(scores) == 4 and scores[2] > 1:
        return Grain.HEAD
    return Grain.LAYER if len(scores) == 4 and scores[0] > 1 else Grain.TOKEN


def _sight(needs: frozenset[Need], shape: MemoryShape) -> Sight:
    """Return two rows, the second of which is padded, after the turns of two agents."""
    random = torch.Generator().manual_seed(0)
    memory = LatentMemory(ROWS, shape.layers)
    for agent in ("planner", "critic"):
        for kind, slots in ((SlotKind.PROMPT, PROMPT), (SlotKind.THOUGHT, THOUGHTS)):
            valid = torch.ones(ROWS, slots, dtype=torch.bool)
            valid[1, :3] = kind is SlotKind.THOUGHT
            memory.extend(valid, agent, kind)
            for layer in range(shape.layers):
                keys, values = torch.randn(2, ROWS, shape.heads, slots, shape.width, generator=random)
                memory.write(layer, keys, values)

    def weights() -> Tensor:
        return torch.rand(shape.layers, ROWS, shape.heads, memory.slots, generator=random)

    return Sight(
        memory=memory,
        sender=memory.agent_numbers(["critic"] * ROWS),
        receiver=torch.randn(ROWS, shape.hidden, generator=random) if Need.RECEIVER in needs else None,
        receiver_attention=weights() if Need.RECEIVER_ATTENTION in needs else None,
        receiver_peak=weights() if Need.RECEIVER_PEAK in needs else None,
        sender_attention=weights() if Need.SENDER_ATTENTION in needs else None,
        random=torch.rand(ROWS, memory.slots, generator=random) if Need.RANDOM in needs else None,
    )
