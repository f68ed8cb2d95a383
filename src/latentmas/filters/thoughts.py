"""thoughts: the latent thoughts of all agents so far, without any prompt (``--handover thoughts``)."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from latentmas.filters import Filter, Sight
from latentmas.program import SlotKind


@final
class Thoughts:
    """Thoughts are kept, all else is ruled out."""

    def score(self, sight: Sight) -> Tensor:
        kinds = sight.memory.kinds
        return torch.zeros(kinds.shape, device=kinds.device).masked_fill(kinds != int(SlotKind.THOUGHT), -torch.inf)


def build() -> Filter:
    """Return the filter."""
    return Thoughts()
