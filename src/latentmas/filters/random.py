"""random: any slots, as a control; the same ones in any batch, and without touching the stream of sampling."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from latentmas.filters import Filter, Need, Sight


@final
class Random:
    """A number of each slot's own."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.RANDOM})

    def score(self, sight: Sight) -> Tensor:
        assert sight.random is not None
        return sight.random


def build() -> Filter:
    """Return the filter."""
    return Random()
