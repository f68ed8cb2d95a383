"""Agents, prompts and a question become programs.

Everything here is pure: the same agents, prompts, codec and sample give the same program.
"""

from __future__ import annotations

import hashlib
from collections import Counter
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
    Recall,
    Sampling,
    Step,
    Storage,
    Think,
    Write,
)
from latentmas.prompts import PromptSet, Use
from latentmas.protocols import Codec
from latentmas.samples import AnswerKind, Message, Sample

SINGLE: Final = "single"
"""Name and role of the one agent of `baseline`."""
_ALONE: Final = Agent(name=SINGLE, role=SINGLE)


class HandoverAt(StrEnum):
    """At which hand-overs ``--handover`` applies; the others keep everything."""

    FINAL = "final"
    EVERY = "every"


class BranchOrder(StrEnum):
    """In which order the memories of independent agents are concatenated."""

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
        include_old_prompts: Each latent prompt quotes those of the agents whose memory it is read on, which quote those
            before them; each is quoted once.
        think: Every text begins inside a thinking block.
        seed: Of the run; decides a shuffled branch order.
        task: Name of the task, for prompts that have words of their own for it.
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
    think: bool = False
    seed: int = 0
    task: str | None = None

    def write(self, agent: str) -> Write:
        return Write(agent=agent, max_new_tokens=self.max_new_tokens, sampling=self.sampling)

    def read(self, agent: Agent, use: Use, sample: Sample, context: str = "") -> Read:
        """Return the Read of an agent's prompt."""
        writes = use is not Use.LATENT or agent == self.graph.sink
        encoded = self.codec.encode_chat(self._messages(agent, use, sample, context), think=self.think and writes)
        return Read(agent=agent.name, tokens=encoded.tokens, text=encoded.text)

    def entry(self, agent: Agent, text: str) -> str:
        """Return what an agent wrote as others read it."""
        return self.prompts.entry(self.told_as(agent), text)

    def told_as(self, agent: Agent) -> str:
        """Return what others know an agent by: its own name, else what the prompt set calls its role."""
        return agent.name if agent.name != agent.role else self.prompts.name_of(agent.role)

    def _messages(
        self, agent: Agent, use: Use, sample: Sample, context: str = "", quoted: set[str] | None = None
    ) -> list[Message]:
        """Return the prompt of an agent.

        Args:
            quoted: Names of whom the prompt that quotes this one has quoted so far; each is quoted once in all.
        """
        template, old = self.template(agent, use), ""
        quoted = set() if quoted is None else quoted
        if self.include_old_prompts and use is Use.LATENT:
            for other in self.graph.sources(agent.name):
                if other.name in quoted:
                    continue
                quoted.add(other.name)
                told = self._messages(other, use, sample, quoted=quoted)[-1].content
                old += self.prompts.old_prompt(self.told_as(other), told)
            if "{old_prompts}" not in template:
                template = "{old_prompts}" + template
        chat = self.prompts.messages(
            template,
            question=sample.question_for(agent.name),
            ending=self.prompts.ending(self.kind, self.task) if "{answer_format}" in template else "",
            context=context,
            old_prompts=old,
        )
        has_system = any(message.role == "system" for message in sample.before)
        return [*([] if has_system else chat[:-1]), *sample.before, chat[-1]]

    def template(self, agent: Agent, use: Use) -> str:
        """Return the agent's own prompt, else that of its role.

        Raises:
            ConfigError: There is neither.
        """
        own = {Use.TEXT: agent.text_prompt, Use.LATENT: agent.latent_prompt}.get(use)
        if own is not None:
            return own
        try:
            return self.prompts.template(agent.role, use, self.kind, self.task)
        except ConfigError as error:
            raise ConfigError(f"agent {agent.name!r} has no {use} prompt of its own, and {error}") from error

    def check_prompt(self, agent: Agent, use: Use) -> str:
        """Return the template of an agent, after making sure that everything it asks for is there.

        Raises:
            ConfigError: It is missing, or the prompt set has no words for this task to end it with.
        """
        template = self.template(agent, use)
        if "{answer_format}" in template:
            self.prompts.ending(self.kind, self.task)
        return template


def single_program(recipe: Recipe, sample: Sample) -> Program:
    """Return one agent alone: Read, Write."""
    if sample.verbatim:
        chat = [*sample.before, Message("user", sample.question)]
        encoded = recipe.codec.encode_chat(chat, think=recipe.think)
        return Program((Read(agent=SINGLE, tokens=encoded.tokens, text=encoded.text), recipe.write(SINGLE)))
    return Program((recipe.read(_ALONE, Use.SINGLE, sample), recipe.write(SINGLE)))


def text_program(recipe: Recipe, agent: Agent, sample: Sample, context: str) -> Program:
    """Return one agent of `text_mas`: Read, Write."""
    return Program((recipe.read(agent, Use.TEXT, sample, context), recipe.write(agent.name)))


def latent_program(recipe: Recipe, sample: Sample) -> Program:
    """Return a whole team: each agent reads on the memory of whom it hears, all but the last think, the last writes."""
    judger, team = recipe.graph.sink, _Team(recipe, sample)
    first, *rest = team.up_to(judger)
    if isinstance(first, Recall):
        first = Join(branches=tuple(team.branches), joined=first.branches)
    return Program((first, *rest, recipe.write(judger.name)))


class _Team:
    """One question's agents on their way into a program: each is computed once, whoever hears it.

    Attributes:
        branches: Of the program's Join: what several agents hear, and what one hears beside others. Those who hear them
            recall them.
    """

    def __init__(self, recipe: Recipe, sample: Sample) -> None:
        self.recipe, self.sample = recipe, sample
        self.branches: list[Program] = []
        self._hearers = Counter(
            source.name for agent in recipe.graph.agents for source in recipe.graph.sources(agent.name)
        )
        self._made: dict[str, Recall] = {}

    def up_to(self, agent: Agent) -> list[Step]:
        """Return the steps of everyone an agent hears, the hand-over to it, and its Read."""
        recipe = self.recipe
        read = recipe.read(agent, Use.LATENT, self.sample)
        sources = _in_order(recipe, self.sample, recipe.graph.sources(agent.name))
        if not sources:
            return [read]
        final = agent == recipe.graph.sink
        keep = recipe.keep if final or recipe.handover_at is HandoverAt.EVERY else KEEP_ALL
        filtered = recipe.filter if final or recipe.filter_at is HandoverAt.EVERY else None
        joins = len(sources) > 1
        before: list[Step] = []
        recalled: list[int] = []
        for source in sources:
            before = self._left_by(source)
            # What agent and kind decide is dropped before memories are joined, where it is known who hands over.
            if keep != KEEP_ALL or not (joins or filtered):
                before = [*before, _handover(recipe, source, keep)]
            if joins:
                recalled += self._as_branch(before).branches
        if joins:
            before = [Recall(branches=tuple(recalled))]
        if filtered or joins:
            before = [*before, _handover(recipe, sources[-1], filtered or KEEP_ALL)]
        return [*before, read]

    def _left_by(self, agent: Agent) -> list[Step]:
        """Return the steps that make what an agent leaves; those of whom several hear are a branch to recall."""
        if agent.name in self._made:
            return [self._made[agent.name]]
        steps = [*self.up_to(agent), Think(agent=agent.name, steps=thoughts_of(self.recipe, agent))]
        if self._hearers[agent.name] > 1:
            self._made[agent.name] = self._as_branch(steps)
            return [self._made[agent.name]]
        return steps

    def _as_branch(self, steps: Sequence[Step]) -> Recall:
        """Return what recalls a branch of these steps."""
        match steps:
            case [Recall() as recall] if len(recall.branches) == 1:
                return recall
        self.branches.append(Program(tuple(steps)))
        return Recall(branches=(len(self.branches) - 1,))


def _handover(recipe: Recipe, agent: Agent, keep: KeepSpec) -> Handover:
    # Where nothing is dropped there is nothing to move.
    positions = Positions.TRUE if keep == KEEP_ALL else recipe.positions
    return Handover(agent=agent.name, keep=keep, positions=positions, storage=recipe.storage)


def _in_order(recipe: Recipe, sample: Sample, sources: Sequence[Agent]) -> list[Agent]:
    """Return the agents whose memories are concatenated, in the order in which they are."""
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


def check_single(recipe: Recipe) -> None:
    """Refuse a prompt set that has nothing to say to one agent alone.

    Raises:
        ConfigError: Its prompt is missing.
    """
    recipe.check_prompt(_ALONE, Use.SINGLE)


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
        recipe.check_prompt(agent, Use.LATENT)
        if recipe.include_old_prompts:
            recipe.prompts.old_prompt(agent.name, "")


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
        template = recipe.check_prompt(agent, Use.TEXT)
        if not recipe.graph.heard_by(agent.name):
            continue
        recipe.entry(agent, "")
        if "{context}" not in template:
            raise ConfigError(
                f"the text prompt of {agent.name!r} has no {{context}}, so it would never see what the others wrote"
            )
