"""Agents, prompts and a question become programs.

Everything here is pure: the same agents, prompts, codec and sample give the same program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from latentmas.agents import Agent, AgentGraph
from latentmas.errors import ConfigError
from latentmas.program import (
    GREEDY,
    KEEP_ALL,
    Handover,
    Join,
    KeepSpec,
    Positions,
    Program,
    Read,
    Sampling,
    Step,
    Storage,
    Think,
    Write,
)
from latentmas.prompts import PromptSet, Use
from latentmas.protocols import Codec, Message
from latentmas.samples import AnswerKind, Sample

SINGLE: Final = "single"
"""Name and role of the one agent of `baseline`."""


class HandoverAt(StrEnum):
    """At which hand-overs ``--handover`` applies; the others keep everything."""

    FINAL = "final"
    EVERY = "every"


class BranchOrder(StrEnum):
    """In which order the memories of independent agents are laid end to end."""

    TEAM = "team"
    """The order of the team."""
    REVERSED = "reversed"
    SHUFFLED = "shuffled"
    """Another order for each sample, by the seed of the run and the sample's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What all questions of a run have in common.

    Attributes:
        latent_steps: Thoughts of every agent that does not have a number of its own.
        keep: What is handed over, at the hand-overs that `handover_at` names.
        filter: Which slots are kept of that, at the hand-overs that `filter_at` names; None keeps all.
        positions: Of every hand-over that drops something.
        storage: Of every hand-over.
        include_old_prompts: Each latent prompt begins with those of everyone the agent hears.
        seed: Of the run; decides a shuffled branch order.
    """

    graph: AgentGraph
    prompts: PromptSet
    codec: Codec
    kind: AnswerKind
    max_new_tokens: int
    sampling: Sampling = GREEDY
    latent_steps: int = 20
    keep: KeepSpec = KEEP_ALL
    handover_at: HandoverAt = HandoverAt.FINAL
    filter: KeepSpec | None = None
    filter_at: HandoverAt = HandoverAt.EVERY
    positions: Positions = Positions.TRUE
    storage: Storage = Storage.NATIVE
    branch_order: BranchOrder = BranchOrder.TEAM
    include_old_prompts: bool = False
    seed: int = 0

    def write(self, agent: str) -> Write:
        return Write(agent=agent, max_new_tokens=self.max_new_tokens, sampling=self.sampling)

    def read(self, agent: Agent, use: Use, sample: Sample, context: str = "") -> Read:
        """Return the Read of an agent's prompt."""
        messages = self._messages(agent, use, sample, context)
        if self.include_old_prompts and use is Use.LATENT:
            heard = self.graph.heard_by(agent.name)
            old = [self._messages(other, use, sample, context)[-1].content for other in heard]
            messages = [*messages[:-1], Message("user", "\n\n".join([*old, messages[-1].content]))]
        encoded = self.codec.encode_chat(messages)
        return Read(agent=agent.name, tokens=encoded.tokens, text=encoded.text)

    def _messages(self, agent: Agent, use: Use, sample: Sample, context: str) -> list[Message]:
        return self.prompts.messages(
            self.template(agent, use), question=sample.question_for(agent.name), kind=self.kind, context=context
        )

    def template(self, agent: Agent, use: Use) -> str:
        """Return the agent's own prompt, else that of its role.

        Raises:
            ConfigError: There is neither.
        """
        own = {Use.TEXT: agent.text_prompt, Use.LATENT: agent.latent_prompt}.get(use)
        if own is not None:
            return own
        try:
            return self.prompts.template(agent.role, use)
        except ConfigError as error:
            raise ConfigError(f"agent {agent.name!r} has no {use} prompt of its own, and {error}") from error


def single_program(recipe: Recipe, sample: Sample) -> Program:
    """Return one agent alone: Read, Write."""
    agent = Agent(name=SINGLE, role=SINGLE)
    return Program((recipe.read(agent, Use.SINGLE, sample), recipe.write(SINGLE)))


def text_program(recipe: Recipe, agent: Agent, sample: Sample, context: str) -> Program:
    """Return one agent of `text_mas`: Read, Write."""
    return Program((recipe.read(agent, Use.TEXT, sample, context), recipe.write(agent.name)))


def latent_program(recipe: Recipe, sample: Sample) -> Program:
    """Return a whole team: each agent reads on the memory of whom it hears, all but the last think, the last writes."""
    judger = recipe.graph.sink
    return Program((*_up_to(recipe, sample, judger), recipe.write(judger.name)))


def _up_to(recipe: Recipe, sample: Sample, agent: Agent) -> list[Step]:
    """Return the steps of everyone an agent hears, the hand-over to it, and its Read.

    Independent agents are branches of a Join. Who is heard through several of them is in each; the Join lays down once
    what that agent left.
    """
    read = recipe.read(agent, Use.LATENT, sample)
    sources = _in_order(recipe, sample, recipe.graph.sources(agent.name))
    if not sources:
        return [read]
    final = agent == recipe.graph.sink
    keep = recipe.keep if final or recipe.handover_at is HandoverAt.EVERY else KEEP_ALL
    filtered = recipe.filter if final or recipe.filter_at is HandoverAt.EVERY else None
    joins = len(sources) > 1
    branches: list[list[Step]] = []
    for source in sources:
        steps = [*_up_to(recipe, sample, source), Think(agent=source.name, steps=thoughts_of(recipe, source))]
        # What agent and kind decide is dropped before memories are joined, where it is known who hands over.
        if keep != KEEP_ALL or not (joins or filtered):
            steps.append(_handover(recipe, source, keep))
        branches.append(steps)
    before: list[Step] = [Join(branches=tuple(map(_program, branches)))] if joins else branches[0]
    if filtered or joins:
        before = [*before, _handover(recipe, sources[-1], filtered or KEEP_ALL)]
    return [*before, read]


def _program(steps: list[Step]) -> Program:
    return Program(tuple(steps))


def _handover(recipe: Recipe, agent: Agent, keep: KeepSpec) -> Handover:
    # Where nothing is dropped there is nothing to move.
    positions = Positions.TRUE if keep == KEEP_ALL else recipe.positions
    return Handover(agent=agent.name, keep=keep, positions=positions, storage=recipe.storage)


def _in_order(recipe: Recipe, sample: Sample, sources: Sequence[Agent]) -> list[Agent]:
    """Return the agents whose memories are laid end to end, in the order in which they are."""
    match recipe.branch_order:
        case BranchOrder.TEAM:
            return list(sources)
        case BranchOrder.REVERSED:
            return list(reversed(sources))
        case BranchOrder.SHUFFLED:
            draw = f"{recipe.seed}/branches/{sample.id}"
            return sorted(sources, key=lambda agent: hashlib.sha256(f"{draw}/{agent.name}".encode()).digest())


def thoughts_of(recipe: Recipe, agent: Agent) -> int:
    """Return how many thoughts an agent thinks."""
    return recipe.latent_steps if agent.latent_steps is None else agent.latent_steps


def check_latent(recipe: Recipe) -> None:
    """Refuse what cannot work, before anything is compiled.

    Raises:
        ConfigError: Only thoughts are handed over and there are none, or a prompt is missing.
    """
    thinkers = recipe.graph.agents[:-1]
    if recipe.keep.name == "thoughts" and not any(thoughts_of(recipe, agent) for agent in thinkers):
        raise ConfigError(
            "--handover thoughts with --latent_steps 0 hands over nothing; raise the steps, or use "
            "--control no_transfer to measure exactly that"
        )
    for agent in recipe.graph.agents:
        recipe.template(agent, Use.LATENT)


def check_noise(recipe: Recipe) -> None:
    """Refuse noise in place of thoughts that nobody thinks.

    Raises:
        ConfigError: No agent thinks.
    """
    if not any(thoughts_of(recipe, agent) for agent in recipe.graph.agents[:-1]):
        raise ConfigError("--control noise replaces thoughts, and nobody thinks; give --latent_steps at least 1")


def check_text(recipe: Recipe) -> None:
    """Refuse a team whose agents could not read each other.

    Raises:
        ConfigError: A prompt is missing, or has no place for what the agents before wrote.
    """
    for agent in recipe.graph.agents:
        template = recipe.template(agent, Use.TEXT)
        if recipe.graph.heard_by(agent.name) and "{context}" not in template:
            raise ConfigError(
                f"the text prompt of {agent.name!r} has no {{context}}, so it would never see what the others wrote"
            )
