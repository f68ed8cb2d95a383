"""ARC, easy set: science questions of grades 3 to 9 that simple retrieval can answer."""

from __future__ import annotations

from latentmas.protocols import Task
from latentmas.tasks._arc import build_arc


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return build_arc("arc_easy", "ARC-Easy", {"test": 2376, "validation": 570, "train": 2251})
