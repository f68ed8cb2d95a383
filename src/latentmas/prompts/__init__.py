"""Prompt sets: what agents are told, as data. One YAML file is one set, and its file name is its name.

A set has a prompt for every role and use. The uses: ``single`` (one agent alone), ``text`` (agents read each other's
text) and ``latent`` (agents share memory). Placeholders, replaced in one pass so that a question may contain braces:

    {question}       as this agent sees it
    {answer_format}  how to end, by answer kind
    {context}        what the agents before wrote, each through `context_entry`
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from importlib.resources import files
from typing import Final

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from latentmas.errors import ConfigError, UnknownNameError
from latentmas.protocols import Message
from latentmas.samples import AnswerKind

_PLACEHOLDER: Final = re.compile(r"\{(question|answer_format|context)\}")


class Use(StrEnum):
    """How the agents talk."""

    SINGLE = "single"
    TEXT = "text"
    LATENT = "latent"


class PromptSet(BaseModel):
    """What agents are told.

    Attributes:
        description: One sentence for people.
        system: System message of every agent; None sends none.
        context_entry: How one earlier agent's ``{text}`` stands in ``{context}``; ``{agent}`` is its name.
        answer_format: How to end, for each answer kind.
        agents: User message of each role, by use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    system: str | None = None
    context_entry: str
    answer_format: Mapping[AnswerKind, str]
    agents: Mapping[str, Mapping[Use, str]]

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over every word of the set."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def template(self, role: str, use: Use) -> str:
        """Return the user message of a role, placeholders included.

        Raises:
            ConfigError: The set has no such role, or the role no such use.
        """
        if role not in self.agents:
            raise UnknownNameError("role of this prompt set", role, self.agents)
        uses = self.agents[role]
        if use not in uses:
            raise ConfigError(f"role {role!r} has no {use} prompt, only: {', '.join(uses)}")
        return uses[use]

    def entry(self, agent: str, text: str) -> str:
        """Return what an agent wrote as it stands in the context of another."""
        return _fill(self.context_entry, {"agent": agent, "text": text}, re.compile(r"\{(agent|text)\}"))

    def messages(self, template: str, *, question: str, kind: AnswerKind, context: str = "") -> list[Message]:
        """Return the chat an agent reads."""
        values = {"question": question, "answer_format": self.answer_format[kind], "context": context}
        user = Message("user", _fill(template, values, _PLACEHOLDER))
        return [user] if self.system is None else [Message("system", self.system), user]


def load_prompts(name: str) -> PromptSet:
    """Return the prompt set of this name.

    Raises:
        UnknownNameError: There is none.
        ConfigError: Its file breaks the form.
    """
    folder = files(__name__)
    known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in known:
        raise UnknownNameError("prompt set", name, known)
    try:
        return PromptSet.model_validate(yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"prompt set {name!r}, {place}: {first['msg']}") from error


def _fill(template: str, values: Mapping[str, str], placeholder: re.Pattern[str]) -> str:
    return placeholder.sub(lambda match: values[match[1]], template)
