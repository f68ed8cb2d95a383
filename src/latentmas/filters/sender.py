"""sender: what the agent that hands over attended to itself, while it read and thought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from latentmas.filters import Filter, Grain, Need, Sight, pooled


@final
@dataclass(frozen=True, slots=True)
class Sender:
    """Attention of the sender's turn, summed over its tokens and thoughts."""

    grain: Grain
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SENDER_ATTENTION})

    def score(self, sight: Sight) -> Tensor:
        assert sight.sender_attention is not None
        return pooled(sight.sender_attention, self.grain)


def build(*, grain: str = Grain.HEAD) -> Filter:
    """Return the filter."""
    return Sender(Grain(grain))
