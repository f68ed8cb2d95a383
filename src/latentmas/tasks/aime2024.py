"""AIME 2024: the 30 problems of both papers of the American Invitational Mathematics Examination."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from latentmas.protocols import Task, TaskCard
from latentmas.tasks._aime import build_aime

NAME: Final = "aime2024"
CARD: Final = TaskCard(
    source="HuggingFaceH4/aime_2024",
    revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    rows=MappingProxyType({"train": 30}),
    columns=("id", "problem", "answer"),
    licence="none declared; problems (c) MAA",
)


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return build_aime(NAME, CARD)
