"""baseline: one agent, one answer. The control every multi-agent number is read against."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import final

from latentmas.methods.compile import SINGLE, Recipe, check_single, single_program
from latentmas.program import Count, Program
from latentmas.protocols import Capability, Completion
from latentmas.samples import Answer, FinishReason, Sample


@final
@dataclass(frozen=True, slots=True)
class Baseline:
    """One agent reads the question and writes the answer."""

    recipe: Recipe
    name: str = "baseline"
    needs: frozenset[Capability] = frozenset()

    @property
    def roles(self) -> Mapping[str, str]:
        return {SINGLE: SINGLE}

    def solve(self, sample: Sample) -> Generator[Program, Completion, Answer]:
        completion = yield single_program(self.recipe, sample)
        return Answer(text=completion.text, finish_reason=completion.finish_reason or FinishReason.LENGTH)

    def count(self, sample: Sample) -> Count:
        return single_program(self.recipe, sample).count()

    def donor_of(self, sample: Sample) -> str | None:
        return None


def build(recipe: Recipe) -> Baseline:
    """Return the method.

    Raises:
        ConfigError: The prompt set has nothing to say to one agent alone.
    """
    check_single(recipe)
    return Baseline(recipe)
