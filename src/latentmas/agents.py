"""Who works on a question, and who hears whom.

An `AgentGraph` is a checked directed acyclic graph with one sink, the agent that answers. It says nothing about what
agents are told: that is a prompt set, unless an agent brings a prompt of its own.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from latentmas.errors import ConfigError

PLACEHOLDERS: Final = ("question", "answer_format", "context")
"""What a prompt may leave to be filled in, in braces."""
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


@dataclass(frozen=True, slots=True)
class AgentGraph:
    """A team: agents in an order in which they can work, and edges from speaker to hearer.

    Raises:
        ConfigError: Names are not unique, an edge names nobody, there is a cycle, or not exactly one sink.
    """

    agents: tuple[Agent, ...]
    edges: frozenset[tuple[str, str]] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", frozenset((speaker, hearer) for speaker, hearer in self.edges))
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
    if agents is None:
        agents = [Agent(name=role, role=role) for role in CHAIN_ROLES]
    names = [agent.name for agent in agents]
    return AgentGraph(tuple(agents), frozenset(pairwise(names)))


def parallel(agents: Sequence[Agent] | None = None) -> AgentGraph:
    """Return a team of independent experts whom the last one hears; without `agents` the four of the paper."""
    if agents is None:
        agents = [Agent(name=role, role=role) for role in CHAIN_ROLES]
    names = [agent.name for agent in agents]
    return AgentGraph(tuple(agents), frozenset((expert, names[-1]) for expert in names[:-1]))


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
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"team file {str(path)!r} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"team file {str(path)!r} cannot be read: {error.strerror}") from error
    return parse_team(text, str(path), wiring)


def parse_team(text: str, source: str = "team", wiring: Wiring | None = None) -> AgentGraph:
    """Return the team that this YAML text describes. `source` names it in errors."""
    root, content = _read_yaml(text, source)
    if not isinstance(content, dict):
        raise ConfigError(f"{source}, line 1, top level: expected 'agents:' and a list, found {_kind(content)}")
    try:
        entry = _TeamEntry.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = first["loc"]
        raise ConfigError(f"{source}, line {_line(root, place)}, {_field(place)}: {_sentence(first)}") from error
    agents: list[Agent] = []
    for number, item in enumerate(entry.agents):
        if item.name in {agent.name for agent in agents}:
            place = ("agents", number, "name")
            raise ConfigError(
                f"{source}, line {_line(root, place)}, {_field(place)}: two agents are called {item.name!r}; "
                "names must be unique in a team"
            )
        if item.role is None and item.prompt is None:
            place = ("agents", number)
            raise ConfigError(
                f"{source}, line {_line(root, place)}, {_field(place)}: {item.name!r} has neither a role nor a prompt"
            )
        prompts = item.prompt
        for prompt in (prompts.text, prompts.latent) if prompts else ():
            if prompt is not None and (fault := _fault(prompt)):
                place = ("agents", number, "prompt")
                raise ConfigError(f"{source}, line {_line(root, place)}, {_field(place)}: {fault}")
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
        raise ConfigError(f"{source}, line {_line(root, place)}, {_field(place)}: {error}") from error


def _read_yaml(text: str, source: str) -> tuple[yaml.Node | None, object]:
    """Return the nodes, which know their lines, and the values of a YAML text."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        faults = list(_key_faults(root))
        content = None if faults else yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply to be a team") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: no valid YAML: {getattr(error, 'problem', error)}") from error
    except (AttributeError, LookupError, ValueError) as error:  # PyYAML's own, for the date 2020-13-45 or !!bool x
        raise ConfigError(f"{source}: a value is not what its form says; put it in quotes ({error})") from error
    if faults:
        number, fault = faults[0]
        raise ConfigError(f"{source}, line {number}: {fault}")
    return root, content


_KINDS: Final = {dict: "a mapping", list: "a list", str: "text", bool: "yes or no", int: "a number", float: "a number"}
_EXPECTED: Final = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "text, in quotes if need be",
    "int_type": "a whole number",
}
_HALF_PAIR: Final = "holds half of a surrogate pair, which is no Unicode text; write the character itself"


def _kind(value: object) -> str:
    """Return what a YAML value is, in plain words."""
    return "nothing" if value is None else _KINDS.get(type(value), "a date or another special value")


def _sentence(error: ErrorDetails) -> str:
    """Return what is wrong with a value of a team file, in words that name nothing of this module."""
    limits = error.get("ctx", {})
    match error["type"]:
        case kind if kind in _EXPECTED:
            expected = (
                "text, or a mapping with 'text' and 'latent'" if error["loc"][-1] == "prompt" else _EXPECTED[kind]
            )
            sentence = f"expected {expected}, found {_kind(error['input'])}"
        case "too_short" | "too_long" as kind:
            bound = f"at least {limits['min_length']}" if kind == "too_short" else f"at most {limits['max_length']}"
            sentence = f"expected {bound} in the list, found {limits['actual_length']}"
        case "string_unicode":
            sentence = _HALF_PAIR
        case "missing":
            sentence = "is missing"
        case "extra_forbidden":
            sentence = "is no field of a team file"
        case _:
            sentence = error["msg"].replace("Input should", "it should").replace("String should", "it should")
    return sentence


def _key_faults(root: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Yield line and fault of each key that is no text or stands twice in its mapping."""
    waiting: list[yaml.Node | None] = [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if key.tag.rpartition(":")[2] not in {"str", "merge"}:
                    given = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                    yield line, f"a key must be text, and this one is {given}"
                elif key.value in lines:
                    yield line, f"{key.value!r} stands here a second time, the first is in line {lines[key.value]}"
                else:
                    lines[key.value] = line
            waiting += [value for _, value in reversed(node.value)]


def _fault(prompt: str) -> str | None:
    """Return what is wrong with a prompt; None where nothing is. Braces of LaTeX are left alone."""
    if not prompt.strip():
        return "the prompt is blank"
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        return f"the prompt {_HALF_PAIR}"
    plain = re.sub(r"\\[A-Za-z]+\*?(\{[^{}]*\})+", "", prompt)
    for word in re.findall(r"\{(\s*[\w-]+\s*)\}", plain):
        near = difflib.get_close_matches(word.strip().lower(), PLACEHOLDERS, n=1, cutoff=0.75)
        if near and word != near[0]:
            return f"{{{word}}} is no placeholder; did you mean {{{near[0]}}}?"
    return None


def _line(root: yaml.Node | None, place: Sequence[str | int]) -> int:
    """Return the line, counted from 1, of the deepest node on the way to `place`."""
    node = root
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = [value for key, value in node.value if key.value == part]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = node.value[part : part + 1]
        else:
            found = []
        if not found:
            # An unknown key is itself the place.
            keys = [key for key, _ in node.value if key.value == part] if isinstance(node, yaml.MappingNode) else []
            node = keys[0] if keys else node
            break
        node = found[0]
    return node.start_mark.line + 1 if node is not None else 1


def _field(place: Sequence[str | int]) -> str:
    """Return a place as ``agents[1].name``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "top level"
