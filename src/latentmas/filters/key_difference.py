"""key_difference: keys unlike the others first, as a control. Looks at no agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentmas.filters import Filter, Grain, Sight, pooled


@final
@dataclass(frozen=True, slots=True)
class KeyDifference:
    """Minus the cosine of a key with the mean direction of its row's keys (KeyDiff, arXiv 2504.15364)."""

    grain: Grain

    def score(self, sight: Sight) -> Tensor:
        memory = sight.memory
        likeness = []
        for layer in range(memory.layers):
            directions = normalize(memory.keys(layer).float(), dim=-1)  # [B, H, S, D]
            real = memory.valid.to(directions.device)[:, None, :, None]
            mean = directions.masked_fill(~real, 0).sum(dim=2, keepdim=True)
            likeness.append((directions * normalize(mean, dim=-1)).sum(dim=-1).to(memory.device))
        return pooled(-torch.stack(likeness), self.grain)


def build(*, grain: str = Grain.HEAD) -> Filter:
    """Return the filter."""
    return KeyDifference(Grain(grain))
