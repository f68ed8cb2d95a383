"""receiver: what the next agent's prompt attends to, measured by reading it on trial.

A slot counts by the largest weight that any token of the prompt gives it. The sum over tokens, which is usual, favours
what every token looks at a little; on the embedded model's split task the largest weight kept more of what was needed
(`latentmas handovers` makes the table).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from torch import Tensor

from latentmas.errors import ConfigError
from latentmas.filters import Filter, Grain, Need, Sight, pooled

OVER: Final = ("max", "sum")


@final
@dataclass(frozen=True, slots=True)
class Receiver:
    """Attention of the receiver's prompt.

    Attributes:
        over: How its tokens are put together: ``max`` or ``sum``.
    """

    grain: Grain
    over: str

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.RECEIVER_PEAK if self.over == "max" else Need.RECEIVER_ATTENTION})

    def score(self, sight: Sight) -> Tensor:
        attention = sight.receiver_peak if self.over == "max" else sight.receiver_attention
        assert attention is not None
        return pooled(attention, self.grain)


def build(*, grain: str = Grain.HEAD, over: str = "max") -> Filter:
    """Return the filter.

    Raises:
        ConfigError: Tokens cannot be put together in this way.
    """
    if over not in OVER:
        raise ConfigError(f"filter 'receiver' puts tokens together by {over!r}; choose from: {', '.join(OVER)}")
    return Receiver(Grain(grain), over)
