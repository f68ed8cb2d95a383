"""latent_mas: the agents of a team hand over working memory; only the last one writes. One program per question."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from latentmas.errors import ConfigError
from latentmas.methods.compile import Recipe, check_latent, check_noise, latent_program
from latentmas.methods.controls import Control, control, donors
from latentmas.program import KEEP_ALL, Count, Positions, Program, Storage
from latentmas.protocols import Capability, Completion
from latentmas.samples import Answer, FinishReason, Sample


@final
@dataclass(frozen=True, slots=True)
class LatentMAS:
    """A team on one growing memory, or one of its control arms.

    Attributes:
        donors: For ``other_question``: whose memory each sample id is given; empty otherwise.
    """

    recipe: Recipe
    control: Control
    donors: Mapping[str, Sample]
    name: str = "latent_mas"

    @property
    def needs(self) -> frozenset[Capability]:
        needs, recipe = {Capability.MEMORY}, self.recipe
        if self.control is Control.NO_TRANSFER:
            return frozenset(needs)
        if recipe.keep != KEEP_ALL:
            needs.add(Capability.PARTIAL_HANDOVER)
        moves = recipe.keep != KEEP_ALL and recipe.positions is not Positions.TRUE
        if recipe.filter is not None or moves or recipe.storage is not Storage.NATIVE:
            needs.add(Capability.HANDOVER_FILTER)
        if any(len(recipe.graph.sources(agent.name)) > 1 for agent in recipe.graph.agents):
            needs.add(Capability.JOIN)
        if self.control is Control.NOISE:
            needs.add(Capability.NOISE)
        return frozenset(needs)

    @property
    def roles(self) -> Mapping[str, str]:
        return {agent.name: agent.role for agent in self.recipe.graph.agents}

    def solve(self, sample: Sample) -> Generator[Program, Completion, Answer]:
        completion = yield self.program(sample)
        return Answer(text=completion.text, finish_reason=completion.finish_reason or FinishReason.LENGTH)

    def program(self, sample: Sample) -> Program:
        """Return the one program of a sample."""
        giver = self.donors.get(sample.id)
        donor = latent_program(self.recipe, giver) if giver else None
        return control(self.control, latent_program(self.recipe, sample), donor)

    def count(self, sample: Sample) -> Count:
        return self.program(sample).count()

    def donor_of(self, sample: Sample) -> str | None:
        giver = self.donors.get(sample.id)
        return giver.id if giver else None


def build(recipe: Recipe, *, arm: Control = Control.NONE, samples: Sequence[Sample] = (), seed: int = 0) -> LatentMAS:
    """Return the method.

    Args:
        samples: The full ordered sample set; ``other_question`` draws donors from it.
        seed: Of the run; fixes who is whose donor.

    Raises:
        ConfigError: The team, the hand-over or the control arm cannot work.
    """
    check_latent(recipe)
    if arm is not Control.NONE and len(recipe.graph.agents) == 1:
        raise ConfigError(f"--control {arm} needs a team that hands over memory; this team has one agent")
    if arm is Control.NOISE:
        check_noise(recipe)
    giving = donors(samples, seed) if arm is Control.OTHER_QUESTION else {}
    return LatentMAS(recipe, arm, giving)
