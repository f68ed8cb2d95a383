"""last_agent: all slots of the agent that hands over, and nobody else's (``--handover last_agent``)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from latentmas.filters import Filter, Sight


@final
class LastAgent:
    """The sender's slots are kept, all else is ruled out."""

    def score(self, sight: Sight) -> Tensor:
        agents = sight.memory.agents
        sender = sight.sender[:, None] if sight.memory.uniform else sight.sender[None, :, None, None]
        return torch.zeros(agents.shape, device=agents.device).masked_fill(agents != sender, -torch.inf)


def build() -> Filter:
    """Return the filter."""
    return LastAgent()
