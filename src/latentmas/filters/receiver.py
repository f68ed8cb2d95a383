"""receiver: what the next agent's prompt attends to, measured by reading it on trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from latentmas.filters import Filter, Grain, Need, Sight, pooled


@final
@dataclass(frozen=True, slots=True)
class Receiver:
    """Attention of the receiver's prompt, summed over its tokens."""

    grain: Grain
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVER_ATTENTION})

    def score(self, sight: Sight) -> Tensor:
        assert sight.receiver_attention is not None
        return pooled(sight.receiver_attention, self.grain)


def build(*, grain: str = Grain.HEAD) -> Filter:
    """Return the filter."""
    return Receiver(Grain(grain))
