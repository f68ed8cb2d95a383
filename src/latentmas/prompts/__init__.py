"""Prompt sets: what agents are told, as data. One YAML file is one set; those that come with the package stand here.

A set has a prompt for every role and use. The uses: ``single`` (one agent alone), ``text`` (agents read each other's
text) and ``latent`` (agents share memory). Placeholders, replaced in one pass so that a question may contain braces:

    {question}       as this agent sees it
    {answer_format}  how to end, by answer kind or task
    {context}        what the agents before wrote, each through `context_entry`
    {old_prompts}    with ``--include_old_prompts``: what the agents before were told, through `old_prompt_entry`

Nothing is stripped or added: what stands in a file is what agents read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from latentmas.errors import ConfigError, UnknownNameError
from latentmas.samples import AnswerKind, Message
from latentmas.yaml_files import PLACEHOLDERS, field_of, kind_of, line_of, prompt_fault, read_text, read_yaml, sentence

FILE_SUFFIXES: Final = (".yaml", ".yml")
"""The name of a prompt set that ends like this is the path of a file."""
EVERY: Final = ""
"""Key of a wording that serves every task."""

Wording = Mapping[str, str]
"""A prompt by task name or answer kind; `EVERY` where it is the same for all."""
Topology = Literal["chain", "parallel"]


class Use(StrEnum):
    """How the agents talk."""

    SINGLE = "single"
    TEXT = "text"
    LATENT = "latent"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """What agents are told.

    Attributes:
        source: Where it comes from, for errors.
        system: System message of every agent; None sends none.
        context_entry: How one earlier agent's ``{text}`` stands in ``{context}``; ``{agent}`` is what readers know it
            by. None where no agent reads texts.
        old_prompt_entry: How one earlier agent's ``{prompt}`` stands in ``{old_prompts}``; None where it never does.
        names: What readers know a role by, where that is not its name.
        topology: Who hears whom unless told otherwise, by use; a chain where nothing is said.
        answer_format: How to end.
        agents: User message of each role, by use.
        lines: Of each field that stands in a file, for errors.
    """

    source: str
    system: str | None
    context_entry: str | None
    old_prompt_entry: str | None
    names: Mapping[str, str]
    topology: Mapping[Use, Topology]
    answer_format: Wording
    agents: Mapping[str, Mapping[Use, Wording]]
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over everything agents are told."""
        told = (self.system, self.context_entry, self.old_prompt_entry, self.names, self.answer_format, self.agents)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def tasks(self) -> frozenset[str]:
        """Names of the tasks for which it has words of their own."""
        wordings = [self.answer_format, *(wording for uses in self.agents.values() for wording in uses.values())]
        return frozenset(key for wording in wordings for key in wording) - {EVERY, *AnswerKind}

    def place(self, name: str) -> str:
        """Return where a field stands, for an error."""
        while name and name not in self.lines:
            name = name.rpartition(".")[0]
        return f"{self.source}, line {self.lines[name]}, {name}" if name else self.source

    def template(self, role: str, use: Use, kind: AnswerKind, task: str | None = None) -> str:
        """Return the user message of a role, placeholders included but for ``{answer_format}``.

        Args:
            task: Its own words come before those of its answer kind; None asks for those of the kind.

        Raises:
            ConfigError: The set has no such role, or the role no such use, or no words for this task.
        """
        if role not in self.agents:
            raise UnknownNameError(f"role of {self.place('agents')}", role, self.agents)
        uses = self.agents[role]
        if use not in uses:
            raise ConfigError(
                f"{self.place(f'agents.{role}')}: role {role!r} has no {use} prompt, only: {', '.join(uses)}"
            )
        return self._words(uses[use], f"agents.{role}.{use}", kind, task)

    def ending(self, kind: AnswerKind, task: str | None = None) -> str:
        """Return what stands for ``{answer_format}``.

        Raises:
            ConfigError: The set has no words for this task.
        """
        return self._words(self.answer_format, "answer_format", kind, task)

    def name_of(self, role: str) -> str:
        """Return what readers know an agent by that is called like its role."""
        return self.names.get(role, role)

    def entry(self, agent: str, text: str) -> str:
        """Return what an agent wrote as it stands in the context of another.

        Raises:
            ConfigError: The set does not say how.
        """
        if self.context_entry is None:
            raise ConfigError(
                f"{self.source} has no context_entry, so agents cannot read each other's text; add one such as "
                r'context_entry: "[{agent}]\n{text}\n\n"'
            )
        return _fill(self.context_entry, {"agent": agent, "text": text})

    def old_prompt(self, agent: str, prompt: str) -> str:
        """Return what an agent was told as it stands in the prompt of another.

        Raises:
            ConfigError: The set does not say how.
        """
        if self.old_prompt_entry is None:
            raise ConfigError(
                f"{self.source} has no old_prompt_entry, so --include_old_prompts cannot say whose prompt is whose; "
                r'add one such as old_prompt_entry: "The {agent} was told:\n{prompt}\n\n"'
            )
        return _fill(self.old_prompt_entry, {"agent": agent, "prompt": prompt})

    def messages(
        self, template: str, *, question: str, ending: str = "", context: str = "", old_prompts: str = ""
    ) -> list[Message]:
        """Return the chat an agent reads.

        Args:
            ending: For ``{answer_format}``.
        """
        values = {"question": question, "answer_format": ending, "context": context, "old_prompts": old_prompts}
        user = Message("user", _fill(template, values))
        return [user] if self.system is None else [Message("system", self.system), user]

    def _words(self, wording: Wording, name: str, kind: AnswerKind, task: str | None) -> str:
        for key in (task, kind.value, EVERY):
            if key is not None and key in wording:
                return wording[key]
        what = f"answer kind {kind.value!r}" + (f" (task {task!r})" if task is not None else "")
        only = f", only for: {', '.join(wording)}" if wording else ""
        raise ConfigError(f"{self.place(name)}: there are no words for {what}{only}")


def load_prompts(name: str) -> PromptSet:
    """Return the prompt set of this name, or the one in this file.

    Raises:
        UnknownNameError: There is none.
        ConfigError: The file cannot be read or breaks the form; names the line and the field.
    """
    if name.endswith(FILE_SUFFIXES):
        return parse_prompts(read_text(Path(name), "prompt file"), name)
    folder = files(__name__)
    known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in known:
        raise UnknownNameError("prompt set", name, known)
    return parse_prompts((folder / f"{name}.yaml").read_text(encoding="utf-8"), f"prompt set {name!r}")


def _for_all(prompt: object) -> object:
    return {EVERY: prompt} if isinstance(prompt, str) else prompt


_Words = Annotated[dict[str, str], BeforeValidator(_for_all)]


class _File(BaseModel):
    """A prompt file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    description: str = ""
    system: str | None = None
    context_entry: str | None = None
    old_prompt_entry: str | None = None
    names: dict[str, str] = {}
    topology: dict[Literal["text", "latent"], Topology] = {}
    answer_format: _Words = {}
    agents: dict[str, dict[Literal["single", "text", "latent"], _Words]]


def parse_prompts(text: str, source: str = "prompt file") -> PromptSet:
    """Return the prompt set that this YAML text is. `source` names it in errors.

    Raises:
        ConfigError: It is none; names the line and the field.
    """
    root, content = read_yaml(text, source, "a prompt set")
    if not isinstance(content, dict):
        raise ConfigError(f"{source}, line 1, top level: expected 'agents:' and a mapping, found {kind_of(content)}")
    try:
        entry = _File.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = tuple(part for part in first["loc"] if part != "[key]")
        said = sentence(first, "prompt file", _EXPECTED.get(str(place[0]) if len(place) > 1 else ""))
        if first["type"] == "literal_error":
            said = f"expected {first['ctx']['expected']}, found {first['input']!r}"
        raise ConfigError(f"{source}, line {line_of(root, place)}, {field_of(place)}: {said}") from error
    for place, fault in _faults(entry):
        raise ConfigError(f"{source}, line {line_of(root, place)}, {field_of(place)}: {fault}")
    return PromptSet(
        source=source,
        system=entry.system,
        context_entry=entry.context_entry,
        old_prompt_entry=entry.old_prompt_entry,
        names=entry.names,
        topology={Use(use): topology for use, topology in entry.topology.items()},
        answer_format=entry.answer_format,
        agents={role: {Use(use): words for use, words in uses.items()} for role, uses in entry.agents.items()},
        lines=_lines(root),
    )


_EXPECTED: Final = {
    "agents": "text, or a mapping from answer kinds (number, choice, code) and task names to texts",
    "answer_format": "text for each answer kind (number, choice, code) or task name",
    "names": "a text",
}


def _lines(root: yaml.Node | None) -> dict[str, int]:
    """Return the line of every key of a checked file, under all keys on the way to it."""
    found: dict[str, int] = {}
    waiting: list[tuple[str, yaml.Node | None]] = [("", root)]
    while waiting:
        place, node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{place}.{key.value}" if place else str(key.value)
                found[name] = key.start_mark.line + 1
                waiting.append((name, value))
    return found


def _faults(entry: _File) -> list[tuple[tuple[str, ...], str]]:
    """Return the place and what is wrong there, of every word agents would be told."""
    found: list[tuple[tuple[str, ...], str]] = []

    def look(place: tuple[str, ...], prompt: str, allowed: tuple[str, ...], needed: str | None = None) -> None:
        if fault := prompt_fault(prompt, allowed):
            found.append((place, fault))
        elif needed is not None and f"{{{needed}}}" not in prompt:
            found.append((place, f"has no {{{needed}}}"))

    def look_at_words(place: tuple[str, ...], words: Wording, allowed: tuple[str, ...], needed: str | None) -> None:
        for key, prompt in words.items():
            near = difflib.get_close_matches(key, [kind.value for kind in AnswerKind], n=1, cutoff=0.7)
            if near and key != near[0]:
                found.append(((*place, key), f"{key!r} is no answer kind; did you mean {near[0]!r}?"))
            look((*place, key) if key != EVERY else place, prompt, allowed, needed)

    if entry.context_entry is not None:
        look(("context_entry",), entry.context_entry, ("agent", "text"), "text")
    if entry.old_prompt_entry is not None:
        look(("old_prompt_entry",), entry.old_prompt_entry, ("agent", "prompt"), "prompt")
    look_at_words(("answer_format",), entry.answer_format, (), None)
    for role, uses in entry.agents.items():
        if not uses:
            found.append((("agents", role), "expected at least one of 'single', 'text' and 'latent'"))
        for use, words in uses.items():
            look_at_words(("agents", role, use), words, PLACEHOLDERS, "question" if use == "single" else None)
    for role in entry.names.keys() - entry.agents.keys():
        found.append((("names", role), f"there are no prompts for role {role!r}: {', '.join(entry.agents)}"))
    return found


def _fill(template: str, values: Mapping[str, str]) -> str:
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda match: values[match[1]], template)
