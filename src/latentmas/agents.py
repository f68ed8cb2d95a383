"""Who works on a question, and who hears whom.

An `AgentGraph` is a checked directed acyclic graph with one sink, the agent that answers. It says nothing about what
agents are told: that is a prompt set, unless an agent brings a prompt of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from latentmas.errors import ConfigError, shown
from latentmas.yaml_files import field_of, kind_of, line_of, prompt_fault, read_text, read_yaml, sentence

CHAIN_ROLES: Final = ("planner", "critic", "refiner", "judger")
"""The four agents of the paper, in the order in which they work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One member of a team.

    Attributes:
        name: Unique in its team; memory slots and records carry it.
        role: Which prompt of the prompt set it reads.
        text_prompt: Its own prompt when agents exchange text; None takes the prompt set's.
        latent_prompt: Its own prompt when agents exchange memory; None takes the prompt set's.
        latent_steps: Its own number of thoughts; None takes that of the run.
    """

    name: str
    role: str
    text_prompt: str | None = None
    latent_prompt: str | None = None
    latent_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("name", "role"):
            if not isinstance(given := getattr(self, name), str) or not given:
                raise ConfigError(f"the {name} of an agent is {shown(given)}; expected a text")
        for name in ("text_prompt", "latent_prompt"):
            if not isinstance(given := getattr(self, name), str | None):
                raise ConfigError(f"{name} of agent {self.name!r} is {shown(given)}; expected a text, or None")
            if given is not None and (fault := prompt_fault(given)):
                raise ConfigError(f"{name} of agent {self.name!r}: {fault}")
        steps = self.latent_steps
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 0):
            raise ConfigError(
                f"latent_steps of agent {self.name!r} is {shown(steps)}; expected a whole number from 0 on"
            )


@dataclass(frozen=True, slots=True)
class AgentGraph:
    """A team: agents in an order in which they can work, and edges from speaker to hearer.

    Raises:
        ConfigError: Names are not unique, an edge names nobody, there is a cycle, or not exactly one sink.
    """

    agents: tuple[Agent, ...]
    edges: frozenset[tuple[str, str]] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "agents", tuple(_members(self.agents)))
        object.__setattr__(self, "edges", _pairs(self.edges))
        names = [agent.name for agent in self.agents]
        if not names:
            raise ConfigError("a team needs at least one agent")
        if double := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ConfigError(f"two agents are called {double[0]!r}; names must be unique in a team")
        if nobody := sorted({name for edge in self.edges for name in edge} - set(names)):
            raise ConfigError(f"an edge names {nobody[0]!r}, who is not in the team: {', '.join(names)}")
        order = self._order(names)
        sinks = [name for name in names if not any(speaker == name for speaker, _ in self.edges)]
        if len(sinks) != 1:
            raise ConfigError(f"{len(sinks)} agents have nobody to speak to ({', '.join(sinks)}); one must answer")
        by_name = {agent.name: agent for agent in self.agents}
        object.__setattr__(self, "agents", tuple(by_name[name] for name in order))

    @property
    def sink(self) -> Agent:
        """The agent that writes the answer."""
        return self.agents[-1]

    @property
    def is_chain(self) -> bool:
        """Whether everyone hears exactly the one before."""
        names = [agent.name for agent in self.agents]
        return self.edges == frozenset(pairwise(names))

    def heard_by(self, name: str) -> tuple[Agent, ...]:
        """Return everyone whose words or memory reach this agent, directly or through others, in order."""
        reached = {name}
        for agent in reversed(self.agents):
            if any((agent.name, hearer) in self.edges for hearer in reached):
                reached.add(agent.name)
        return tuple(agent for agent in self.agents if agent.name in reached - {name})

    def sources(self, name: str) -> tuple[Agent, ...]:
        """Return whose memory this agent reads on, in order: whom it hears, but for whom it hears through another."""
        direct = [agent for agent in self.agents if (agent.name, name) in self.edges]
        through = {agent.name for speaker in direct for agent in self.heard_by(speaker.name)}
        return tuple(agent for agent in direct if agent.name not in through)

    def _order(self, names: list[str]) -> list[str]:
        """Sort topologically; agents that could go in any order keep the one they were given in."""
        sorter = TopologicalSorter({name: {a for a, b in self.edges if b == name} for name in names})
        try:
            sorter.prepare()
        except CycleError as error:
            raise ConfigError(f"the team has a cycle: {' -> '.join(reversed(error.args[1]))}") from error
        order: list[str] = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready(), key=names.index)
            order += ready
            sorter.done(*ready)
        return order


def chain(agents: Sequence[Agent] | None = None) -> AgentGraph:
    """Return a team in which everyone hears the one before; without `agents` the four of the paper."""
    agents = _members(agents)
    names = [agent.name for agent in agents]
    return AgentGraph(tuple(agents), frozenset(pairwise(names)))


def parallel(agents: Sequence[Agent] | None = None) -> AgentGraph:
    """Return a team of independent experts whom the last one hears; without `agents` the four of the paper."""
    agents = _members(agents)
    names = [agent.name for agent in agents]
    return AgentGraph(tuple(agents), frozenset((expert, names[-1]) for expert in names[:-1]))


def _pairs(edges: object) -> frozenset[tuple[str, str]]:
    """Return edges as pairs of names; anything else is refused, also a text of two letters."""
    if isinstance(edges, str) or not isinstance(edges, Iterable):
        raise ConfigError(f"the edges of a team are {shown(edges)}; expected pairs: {{(speaker, hearer), ...}}")
    found = set()
    for edge in edges:
        pair = tuple(edge) if isinstance(edge, tuple | list) else ()
        if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise ConfigError(f"an edge of a team is {shown(edge)}; expected two names: (speaker, hearer)")
        found.add((str(pair[0]), str(pair[1])))
    return frozenset(found)


def _members(agents: Sequence[Agent] | None) -> list[Agent]:
    """Return the agents of a team; the four of the paper where none are given."""
    if agents is None:
        return [Agent(name=role, role=role) for role in CHAIN_ROLES]
    if isinstance(agents, str) or not isinstance(agents, Iterable):
        raise ConfigError(f"a team was made of {shown(agents)}; expected a list of Agent(name=..., role=...)")
    members = list(agents)
    if strangers := [member for member in members if not isinstance(member, Agent)]:
        raise ConfigError(f"a team was made with {shown(strangers[0])}; expected Agent(name=..., role=...)")
    return members


class _Prompts(BaseModel):
    """A prompt for each way of talking."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = None
    latent: str | None = None


def _for_both(prompt: object) -> object:
    return {"text": prompt, "latent": prompt} if isinstance(prompt, str) else prompt


class _AgentEntry(BaseModel):
    """One agent as a team file describes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1)]
    role: Annotated[str, Field(min_length=1)] | None = None
    prompt: Annotated[_Prompts | None, BeforeValidator(_for_both)] = None
    latent_steps: Annotated[int, Field(ge=0)] | None = None


class _TeamEntry(BaseModel):
    """A team file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    description: str = ""
    agents: Annotated[list[_AgentEntry], Field(min_length=1)]
    edges: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = None


Wiring = Callable[[Sequence[Agent]], AgentGraph]
"""A topology: how agents that are only listed hear each other."""


def load_team(path: Path | str, wiring: Wiring | None = None) -> AgentGraph:
    """Read a team from a YAML file; without ``edges`` it is a chain in the order of the file.

    Args:
        wiring: Makes a team of the listed agents in another way than a chain; a file with ``edges`` is refused then.

    Raises:
        ConfigError: The file cannot be read or describes no team. Names the line and the field.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"the path of a team file is {shown(path)}; expected a text or a Path")
    return parse_team(read_text(Path(path), "team file"), str(path), wiring)


def parse_team(text: str, source: str = "team", wiring: Wiring | None = None) -> AgentGraph:
    """Return the team that this YAML text describes. `source` names it in errors."""
    root, content = read_yaml(text, source, "a team")
    if not isinstance(content, dict):
        raise ConfigError(f"{source}, line 1, top level: expected 'agents:' and a list, found {kind_of(content)}")
    try:
        entry = _TeamEntry.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = first["loc"]
        raise ConfigError(f"{source}, line {line_of(root, place)}, {field_of(place)}: {_sentence(first)}") from error
    agents: list[Agent] = []
    for number, item in enumerate(entry.agents):
        if item.name in {agent.name for agent in agents}:
            place = ("agents", number, "name")
            raise ConfigError(
                f"{source}, line {line_of(root, place)}, {field_of(place)}: two agents are called {item.name!r}; "
                "names must be unique in a team"
            )
        if item.role is None and item.prompt is None:
            place = ("agents", number)
            raise ConfigError(
                f"{source}, line {line_of(root, place)}, {field_of(place)}: {item.name!r} has neither a role nor a "
                "prompt"
            )
        prompts = item.prompt
        for prompt in (prompts.text, prompts.latent) if prompts else ():
            if prompt is not None and (fault := prompt_fault(prompt)):
                place = ("agents", number, "prompt")
                raise ConfigError(f"{source}, line {line_of(root, place)}, {field_of(place)}: {fault}")
        agents.append(
            Agent(
                name=item.name,
                role=item.role or item.name,
                text_prompt=prompts.text if prompts else None,
                latent_prompt=prompts.latent if prompts else None,
                latent_steps=item.latent_steps,
            )
        )
    try:
        if entry.edges is None:
            return (wiring or chain)(agents)
        if wiring is not None:
            raise ConfigError("the file says itself who hears whom; drop --topology, or its edges")
        return AgentGraph(tuple(agents), frozenset((speaker, hearer) for speaker, hearer in entry.edges))
    except ConfigError as error:
        place = ("agents",) if entry.edges is None else ("edges",)
        raise ConfigError(f"{source}, line {line_of(root, place)}, {field_of(place)}: {error}") from error


def _sentence(error: ErrorDetails) -> str:
    expected = "text, or a mapping with 'text' and 'latent'" if error["loc"][-1:] == ("prompt",) else None
    return sentence(error, "team file", expected)
