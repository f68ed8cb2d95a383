"""What is asked, answered, graded and stored: frozen values without behaviour of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

RECORD_SCHEMA: Final = 1
"""Version of the lines in ``records.jsonl``."""


class AnswerKind(StrEnum):
    """What an answer is, and therefore how agents are told to end it and how it is graded."""

    NUMBER = "number"
    CHOICE = "choice"
    CODE = "code"


class Verdict(StrEnum):
    """The outcome of grading. A sample that ended with an error has none."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TIMEOUT = "timeout"
    CRASHED = "crashed"


class FinishReason(StrEnum):
    """Why the last Write ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question.

    Attributes:
        id: Stable across runs; unique within a task.
        question: What an agent without a view of its own reads.
        target: The gold answer in the form its scorer expects.
        views: What single agents read instead, by agent name (split information).
    """

    id: str
    question: str
    target: str
    views: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def question_for(self, agent: str) -> str:
        """Return the question as `agent` sees it."""
        return self.views.get(agent, self.question)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a method returns for a sample: the text of the last agent, and why it ended."""

    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A graded answer.

    Attributes:
        prediction: The answer as found in the text; None where none was found.
        found_by: How it was found: ``box``, ``marker``, ``last_number`` ...; None where none was found.
    """

    verdict: Verdict
    prediction: str | None
    found_by: str | None = None


class AgentRecord(BaseModel):
    """One agent's turn in one sample.

    Attributes:
        prompt: The prompt as the model read it, chat template included.
        prompt_tokens: Tokens prefilled in this turn.
        memory_slots: Real slots (no padding) in memory after the turn.
        memory_bytes: Bytes of their keys and values.
        seconds: The sample's share of the time its batch spent on the turn.
        prompt_ids, written_ids: Only with ``--save_ids``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: str
    prompt: str
    prompt_tokens: int
    thoughts: int
    written_tokens: int
    text: str
    memory_slots: int
    memory_bytes: int
    seconds: float
    prompt_ids: tuple[int, ...] | None = None
    written_ids: tuple[int, ...] | None = None

    @model_serializer(mode="wrap")
    def _without_absent_ids(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields: dict[str, object] = serialize(self)
        return {name: value for name, value in fields.items() if value is not None}


class Record(BaseModel):
    """One line of ``records.jsonl``: everything about one sample.

    Attributes:
        verdict: None where the sample ended with an error.
        error: ``KindOfError: message``; None where it went well.
        donor: Id of the sample whose memory was given, where a control arm does that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = RECORD_SCHEMA
    id: str
    question: str
    target: str
    prediction: str | None
    verdict: Verdict | None
    found_by: str | None
    text: str
    finish_reason: FinishReason | None
    error: str | None
    donor: str | None
    agents: tuple[AgentRecord, ...]

    @property
    def seconds(self) -> float:
        return sum(agent.seconds for agent in self.agents)
