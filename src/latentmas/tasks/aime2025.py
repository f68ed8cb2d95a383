"""AIME 2025: the 30 problems of both papers of the American Invitational Mathematics Examination."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from latentmas.protocols import Task, TaskCard
from latentmas.tasks._aime import build_aime

NAME: Final = "aime2025"
CARD: Final = TaskCard(
    source="yentinglin/aime_2025",
    revision="6f71d77b0b89b9dabe07ab466c51df33f514df7f",
    rows=MappingProxyType({"train": 30}),
    columns=("id", "problem", "answer"),
    licence="none declared; problems (c) MAA",
)


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return build_aime(NAME, CARD)
