"""ARC, challenge set: science questions of grades 3 to 9 that simple retrieval gets wrong."""

from __future__ import annotations

from latentmas.protocols import Task
from latentmas.tasks._arc import build_arc


def build() -> Task:
    """Return the task; its data is loaded when its rows are asked for."""
    return build_arc("arc_challenge", "ARC-Challenge", {"test": 1172, "validation": 299, "train": 1119})
