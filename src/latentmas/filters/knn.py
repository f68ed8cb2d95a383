"""knn: the published filter of the kNN follow-up - nearness of each key to the next prompt, by cosine.

The query is the mean input embedding of the next agent's prompt, folded to the width of a head by a mean; it is
compared with the mean over heads of the keys of the middle layer, rotated as they are cached. One set of slots for all
layers.

With ``--positions published`` the kept slots and the tokens are those of the published code at batch size 1, but for
``random``, which there draws from the global generator and here from the sample's own seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentmas.errors import CapabilityError, ConfigError
from latentmas.filters import Filter, Need, Sight

STRATEGIES = ("top", "bottom", "random")


@final
@dataclass(frozen=True, slots=True)
class Knn:
    """Nearness to the next prompt.

    Attributes:
        strategy: ``top`` keeps the nearest, ``bottom`` the farthest, ``random`` any.
    """

    strategy: str

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.RANDOM if self.strategy == "random" else Need.RECEIVER})

    def score(self, sight: Sight) -> Tensor:
        if self.strategy == "random":
            assert sight.random is not None
            return sight.random
        assert sight.receiver is not None
        nearness = similarity(sight.receiver, sight.memory.keys(sight.memory.layers // 2)).to(sight.memory.device)
        return nearness if self.strategy == "top" else -nearness


def similarity(receiver: Tensor, keys: Tensor) -> Tensor:
    """Return the cosine of a folded prompt with each key, ``[B, S]`` in [-1, 1].

    Args:
        receiver: ``[B, E]``.
        keys: ``[B, H, S, D]`` of one layer.

    Raises:
        CapabilityError: E is no multiple of D.
    """
    rows, width, head = receiver.shape[0], receiver.shape[1], keys.shape[3]
    if width % head:
        raise CapabilityError(
            f"filter 'knn' folds the hidden size {width} to the width of a head, {head}, which does not divide it; "
            "use --filter receiver"
        )
    exact = torch.promote_types(keys.dtype, torch.float32)
    folded = receiver.to(keys.device, exact).view(rows, width // head, head).mean(dim=1)  # [B, D]
    return (normalize(keys.to(exact).mean(dim=1), dim=-1) @ normalize(folded, dim=-1)[..., None]).squeeze(-1)


def build(*, strategy: str = "top") -> Filter:
    """Return the filter.

    Raises:
        ConfigError: There is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"knn strategy is {strategy!r}; choose from: {', '.join(STRATEGIES)}")
    return Knn(strategy)
