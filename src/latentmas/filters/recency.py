"""recency: the newest slots. With protected sinks it is StreamingLLM (arXiv 2309.17453)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from latentmas.filters import Filter, Sight


@final
class Recency:
    """The later a slot came, the sooner it is kept."""

    def score(self, sight: Sight) -> Tensor:
        memory = sight.memory
        return torch.arange(memory.slots, device=memory.device).double().expand(memory.rows, -1)


def build() -> Filter:
    """Return the filter."""
    return Recency()
