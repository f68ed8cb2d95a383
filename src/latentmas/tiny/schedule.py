"""In which order the embedded model is taught: the recipe's numbers and the batches that follow from them."""

import random
from dataclasses import dataclass

from latentmas.tiny.curriculum import AGENTS, Curriculum, Lesson

ROUND = 4
"""Batches drawn together and sorted by length, so that rows of a batch need little padding."""
STEP_COUNTS = (1, 2, 3, 5, 10, 20)
STEP_WEIGHTS = (12, 12, 16, 35, 15, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The hyper-parameters. Shares of the run are in [0, 1]."""

    steps: int = 12000
    seed: int = 1
    matrix_rate: float = 0.02
    vector_rate: float = 0.004
    warm_up: float = 0.01
    decay_from: float = 0.4
    lines_until: float = 0.03
    roles_until: float = 0.28
    chains_until: float = 0.38
    thoughts_seen_until: float = 0.45
    role_batch: int = 16
    chain_batch: int = 8
    realign_share: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Lessons of one kind. `steps` thoughts follow each prompt but the last."""

    kind: str
    lessons: list[Lesson]
    steps: int = 0
    realign: bool = False
    only_thoughts: bool = False


def draw_round(rng: random.Random, recipe: Recipe, curriculum: Curriculum, progress: float) -> list[Batch]:
    """Return `ROUND` batches of one kind, which depends on the progress of the run."""
    kind = _draw_kind(rng, recipe, progress)
    lessons: list[Lesson] = []
    size = recipe.role_batch if kind in {"lines", "role"} else recipe.chain_batch
    divided_share = 0.8 if kind == "only thoughts" else 0.5
    for _ in range(ROUND * size):
        if kind == "lines":
            lessons.append(curriculum.lines(rng))
        elif kind == "role":
            lessons.append(curriculum.role(rng, rng.choice(("single", *AGENTS))))
        else:
            lessons.append(curriculum.chain(rng, rng.random() < divided_share))
    lessons.sort(key=lambda lesson: lesson.length)
    batches: list[Batch] = []
    for first in range(0, len(lessons), size):
        thinks = kind in {"thoughts", "only thoughts"}
        batches.append(
            Batch(
                kind=kind,
                lessons=lessons[first : first + size],
                steps=rng.choices(STEP_COUNTS, STEP_WEIGHTS)[0] if thinks else 0,
                realign=thinks and rng.random() < recipe.realign_share,
                only_thoughts=kind == "only thoughts",
            )
        )
    rng.shuffle(batches)
    return batches


def _draw_kind(rng: random.Random, recipe: Recipe, progress: float) -> str:
    if progress < recipe.lines_until:
        return "lines"
    if progress < recipe.roles_until:
        return "role"
    if progress < recipe.chains_until:
        return rng.choices(("role", "chain"), (3, 7))[0]
    if progress < recipe.thoughts_seen_until:
        return rng.choices(("role", "chain", "thoughts"), (15, 25, 60))[0]
    return rng.choices(("role", "chain", "thoughts", "only thoughts"), (14, 8, 36, 42))[0]
