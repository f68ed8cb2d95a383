"""sink_thoughts: thoughts, the newest first, and the protected sinks; a budget is an upper bound."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from latentmas.filters import Filter, Sight
from latentmas.program import SlotKind


@final
class SinkThoughts:
    """The later a thought came, the sooner it is kept; prompts are ruled out."""

    def score(self, sight: Sight) -> Tensor:
        memory = sight.memory
        order = torch.arange(memory.slots, device=memory.device).double()
        return order.expand(memory.kinds.shape).masked_fill(memory.kinds != int(SlotKind.THOUGHT), -torch.inf)


def build() -> Filter:
    """Return the filter."""
    return SinkThoughts()
