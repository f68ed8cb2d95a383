"""What is asked, answered, graded and stored: frozen values without behaviour of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

THINK_TAG: Final = "<think>"
RECORD_SCHEMA: Final = 1
"""Version of the lines in ``records.jsonl``."""


class AnswerKind(StrEnum):
    """What an answer is, and therefore how agents are told to end it and how it is graded."""

    NUMBER = "number"
    CHOICE = "choice"
    CODE = "code"


class Verdict(StrEnum):
    """The outcome of grading. A sample that ended with an error has none, and neither has one not graded yet."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TIMEOUT = "timeout"
    CRASHED = "crashed"


LENIENT: Final = frozenset({"last_number"})
"""Ways an answer is found (`Score.found_by`) that a strict score does not count."""


class FinishReason(StrEnum):
    """Why the last Write ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question.

    Attributes:
        id: Stable across runs; unique within a task.
        question: What an agent without a view of its own reads.
        target: The gold answer in the form its scorer expects: a number, a label, or the text of a test.
        views: What single agents read instead, by agent name (split information).
        labels: Of the options, in their order, such as ``A``; empty for what is no choice.
        options: Their texts, as many as labels.
        entry_point: Name of the function that code must define; None for what is no code.
        before: Turns of a dialogue that come before the question, for every agent; a system message is the first, and
            stands in place of the prompt set's.
        verbatim: One agent alone reads the dialogue as it stands, without a prompt around the question.
    """

    id: str
    question: str
    target: str
    views: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    entry_point: str | None = None
    before: tuple[Message, ...] = ()
    verbatim: bool = False

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
        detail: Why the verdict is what it is, for people; None where there is nothing to say.
    """

    verdict: Verdict
    prediction: str | None
    found_by: str | None = None
    detail: str | None = None


class HandoverShareRecord(BaseModel):
    """What a hand-over left of one agent's slots of one kind (`protocols.HandoverShare`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str
    kind: str
    slots_before: float
    slots_after: float
    bytes_before: int
    bytes_after: int


class HandoverRecord(BaseModel):
    """A hand-over that dropped, moved or packed something (`protocols.HandoverAccount`); sizes are measured.

    Attributes:
        slots_before, slots_after, bytes_before, bytes_after: Of the sample, in all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: str
    positions: str
    storage: str
    slots_before: float
    slots_after: float
    bytes_before: int
    bytes_after: int
    storage_before: int
    storage_after: int
    stored_bytes: int
    shares: tuple[HandoverShareRecord, ...]
    trial_tokens: int = 0
    key_error: float | None = None
    value_error: float | None = None


class ThoughtRecord(BaseModel):
    """How the thoughts of one Think changed (`protocols.ThoughtAccount`), rounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cosines: tuple[float, ...]
    hidden_norms: tuple[float, ...]
    effective_rank: float
    collapsed_after: int | None


class AgentRecord(BaseModel):
    """One agent's turn in one sample.

    Attributes:
        prompt: The prompt as the model read it, chat template included.
        prompt_tokens: Tokens prefilled in this turn.
        memory_slots: Real slots (no padding) in memory after the turn.
        memory_bytes: Bytes of their keys and values.
        seconds: The sample's share of the time its batch spent on the turn.
        reused_slots: Of the turn's slots, those that came out of a prefix cache and were not computed.
        prompt_ids, written_ids: Only with ``--save_ids``.
        handovers: Of what the agent left, before the next one read; only those that changed something.
        thinking: Of each Think with thoughts, in order; empty where the backend could not measure them.
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
    reused_slots: int = 0
    prompt_ids: tuple[int, ...] | None = None
    written_ids: tuple[int, ...] | None = None
    handovers: tuple[HandoverRecord, ...] = ()
    thinking: tuple[ThoughtRecord, ...] = ()


class Record(BaseModel):
    """One line of ``records.jsonl``: everything about one sample.

    Attributes:
        verdict: None where the sample ended with an error, or its answer was not graded.
        found_by, detail: As in `Score`.
        error: ``KindOfError: message``; None where it went well.
        donor: Id of the sample whose memory was given, where a control arm does that.
        labels, options, entry_point: Of the sample, so that its answer can be graded again.
        in_thought: The prompt had opened a thinking block, so `text` begins inside of it.
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
    detail: str | None = None
    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    entry_point: str | None = None
    in_thought: bool = False

    def stored(self) -> dict[str, object]:
        """Return its JSON fields, without those of it and of its agents that stand at their default.

        It is not a serializer of pydantic, because what pydantic calls back into Python loses Ctrl-C: it raises a
        `PydanticSerializationError` in place of the `KeyboardInterrupt`.
        """
        return {"schema_version": self.schema_version, **self.model_dump(mode="json", exclude_defaults=True)}

    def answered(self) -> tuple[Answer, Sample] | None:
        """Return what is needed to grade the answer; None where the sample ended with an error."""
        if self.finish_reason is None:
            return None
        # What the prompt opened the model only closes; without the tag a cut thought would be graded.
        text = THINK_TAG + self.text if self.in_thought else self.text
        sample = Sample(
            id=self.id,
            question=self.question,
            target=self.target,
            labels=self.labels,
            options=self.options,
            entry_point=self.entry_point,
        )
        return Answer(text=text, finish_reason=self.finish_reason), sample

    def graded(self, score: Score) -> Record:
        """Return the record with a score."""
        return self.model_copy(
            update={
                "prediction": score.prediction,
                "verdict": score.verdict,
                "found_by": score.found_by,
                "detail": score.detail,
            }
        )

    @property
    def seconds(self) -> float:
        return sum(agent.seconds for agent in self.agents)
