"""key_norm: short keys first, as a control. Looks at no agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from latentmas.filters import Filter, Grain, Sight, pooled


@final
@dataclass(frozen=True, slots=True)
class KeyNorm:
    """Minus the length of a key (arXiv 2406.11430: short keys tend to draw attention)."""

    grain: Grain

    def score(self, sight: Sight) -> Tensor:
        memory = sight.memory
        norms = [memory.keys(layer).float().norm(dim=-1).to(memory.device) for layer in range(memory.layers)]
        return pooled(-torch.stack(norms), self.grain)


def build(*, grain: str = Grain.HEAD) -> Filter:
    """Return the filter."""
    return KeyNorm(Grain(grain))
