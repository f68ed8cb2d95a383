"""Agents, prompts and a question become programs.

Everything here is pure: the same agents, prompts, codec and sample give the same program.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from latentmas.agents import Agent, AgentGraph
from latentmas.errors import CapabilityError, ConfigError
from latentmas.program import GREEDY, KEEP_ALL, Handover, KeepSpec, Program, Read, Sampling, Step, Think, Write
from latentmas.prompts import PromptSet, Use
from latentmas.protocols import Codec
from latentmas.samples import AnswerKind, Sample

SINGLE: Final = "single"
"""Name and role of the one agent of `baseline`."""


class HandoverAt(StrEnum):
    """At which hand-overs ``--handover`` applies; the others keep everything."""

    FINAL = "final"
    EVERY = "every"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What all questions of a run have in common.

    Attributes:
        latent_steps: Thoughts of every agent that does not have a number of its own.
        keep: What is handed over, at the hand-overs that `handover_at` names.
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

    def write(self, agent: str) -> Write:
        return Write(agent=agent, max_new_tokens=self.max_new_tokens, sampling=self.sampling)

    def read(self, agent: Agent, use: Use, sample: Sample, context: str = "") -> Read:
        """Return the Read of an agent's prompt."""
        messages = self.prompts.messages(
            self.template(agent, use), question=sample.question_for(agent.name), kind=self.kind, context=context
        )
        encoded = self.codec.encode_chat(messages)
        return Read(agent=agent.name, tokens=encoded.tokens, text=encoded.text)

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
    """Return a whole chain: Read, Think, Handover for every agent, and Read, Write for the last."""
    steps: list[Step] = []
    *thinkers, judger = recipe.graph.agents
    for agent in thinkers:
        final = agent is thinkers[-1]
        applies = final or recipe.handover_at is HandoverAt.EVERY
        steps += [
            recipe.read(agent, Use.LATENT, sample),
            Think(agent=agent.name, steps=thoughts_of(recipe, agent)),
            Handover(agent=agent.name, keep=recipe.keep if applies else KEEP_ALL),
        ]
    return Program((*steps, recipe.read(judger, Use.LATENT, sample), recipe.write(judger.name)))


def thoughts_of(recipe: Recipe, agent: Agent) -> int:
    """Return how many thoughts an agent thinks."""
    return recipe.latent_steps if agent.latent_steps is None else agent.latent_steps


def check_latent(recipe: Recipe) -> None:
    """Refuse what cannot work, before anything is compiled.

    Raises:
        CapabilityError: The team is no chain.
        ConfigError: Only thoughts are handed over and there are none, or a prompt is missing.
    """
    if not recipe.graph.is_chain:
        raise CapabilityError(
            "latent_mas runs chains in this version, and in this team somebody hears several others or none; "
            "give edges that form one line, or use --method text_mas"
        )
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
