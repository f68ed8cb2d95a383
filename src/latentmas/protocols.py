"""The seams: what a backend, a method, a task and a scorer are to the rest of the package.

Nothing here does anything. An implementation is a final class in a file of its own.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from latentmas.errors import ProgramError, SampleError
from latentmas.program import Count, Program
from latentmas.samples import Answer, AnswerKind, FinishReason, Message, Sample, Score

if TYPE_CHECKING:
    from torch import Tensor


class Capability(StrEnum):
    """What a backend can do beyond Read and Write."""

    MEMORY = "memory"
    """Hand-overs that keep everything, and thoughts in memory."""
    PARTIAL_HANDOVER = "partial_handover"
    """Hand-overs of thoughts only, or of the last agent only."""
    NOISE = "noise"
    JOIN = "join"
    HANDOVER_FILTER = "handover_filter"
    """Hand-overs that look at what slots hold, move them, or store them in another way."""
    CAPTURE = "capture"
    """Giving similarities and embeddings to an artifact sink."""
    TEMPERATURE = "temperature"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as the model reads it: the rendered text and its token ids."""

    text: str
    tokens: tuple[int, ...]


class Codec(Protocol):
    """Chats to tokens and back; needs no weights."""

    @property
    def digest(self) -> str:
        """Changes whenever the same chat could become other tokens."""
        ...

    def encode_chat(self, messages: Sequence[Message], *, think: bool = False) -> Encoded:
        """Render a chat that ends where the model's reply begins.

        Args:
            think: End it with the mark that opens a thinking block, unless it ends with one already.
        """
        ...

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Return the tokens of plain text, without any special token."""
        ...

    @property
    def printed_date(self) -> datetime.date | None:
        """The day that chats show to the model; None where they show none."""
        ...

    def decode(self, tokens: Sequence[int], *, marks: bool = True) -> str:
        """Return the text of written tokens, without special tokens.

        Args:
            marks: Leave those in the text that mark where thinking begins and ends, which grading has to know.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverShare:
    """What a hand-over left of one agent's slots of one kind; slots are a mean over layers and heads."""

    agent: str
    kind: str
    slots_before: float
    slots_after: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverAccount:
    """What a hand-over did to one sample's memory, measured from its tensors.

    Attributes:
        keep, positions, storage: What was asked for, in words.
        shares: By agent and kind of slot, in the order in which they lie in the row.
        storage_before, storage_after: Bytes of the storages behind the whole batch's memory, each counted once, per
            sample; padding and reserve are in them.
        stored_bytes: Bytes of the sample's share as they waited for the next agent.
        trial_tokens: Prompt tokens the next agent read once more on trial, to see what it attends to.
        key_error, value_error: Root mean square of what int8 changed, as a share of that of what was stored; None where
            nothing was stored so.

    Two accounts are equal without what depends on the batch.
    """

    keep: str
    positions: str
    storage: str
    shares: tuple[HandoverShare, ...]
    trial_tokens: int = 0
    storage_before: int = field(default=0, compare=False)
    storage_after: int = field(default=0, compare=False)
    stored_bytes: int = field(default=0, compare=False)
    key_error: float | None = field(default=None, compare=False)
    value_error: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtAccount:
    """How the thoughts of one Think changed, as they were fed back.

    Attributes:
        cosines: Of each thought to the one before. The first has none, unless another Think came directly before.
        hidden_norms: Of the hidden state that each thought was made from, before alignment.
        effective_rank: How many directions the thoughts take (Roy and Vetterli 2007), in [1, thoughts].
        collapsed_after: Number of the thought, counted from 1, from which on they are one vector
            (`collapse.collapsed_after`); None where they go on moving.
    """

    cosines: tuple[float, ...]
    hidden_norms: tuple[float, ...]
    effective_rank: float
    collapsed_after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAccount:
    """What one step of a program did for one sample.

    Attributes:
        verb: ``Read``, ``Think``, ``Handover``, ``Write`` or ``Join``.
        slots: Real slots in memory after the step.
        memory_bytes: Bytes of their keys and values.
        text: The text of a Write; empty otherwise.
        written: The token ids of a Write, without end of text; empty otherwise.
        forward_passes: Times the decoder ran for the sample in this step.
        reused_slots: Of the new slots, those that came out of a prefix cache and were not computed.
        seconds: The sample's share of the batch's time. Two accounts are equal without it, without what was reused and
            without how thoughts changed, where the batch decides about rounding.
        thinking: Of a Think with thoughts, where it was measured; None otherwise.
        handover: Of a Handover that changed something; None otherwise.
        branches: Accounts of each branch of a Join; empty otherwise. What a Join itself counts is the joining.
    """

    verb: str
    agent: str
    prompt_tokens: int = 0
    thoughts: int = 0
    written: tuple[int, ...] = ()
    text: str = ""
    slots: int = 0
    memory_bytes: int = 0
    forward_passes: int = 0
    reused_slots: int = field(default=0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    thinking: ThoughtAccount | None = field(default=None, compare=False)
    handover: HandoverAccount | None = None
    branches: tuple[tuple[StepAccount, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One program to run.

    Attributes:
        key: Names the job among those in flight; the outcome carries it back.
        seed: The only source of randomness of the job (DESIGN law 2).

    Raises:
        ProgramError: The program is a branch: it goes on from others that are not in it.
    """

    key: str
    program: Program
    seed: int = 0

    def __post_init__(self) -> None:
        if recalled := self.program.recalled:
            raise ProgramError(f"a job begins with a Recall of {recalled}; only a branch of a Join may")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A program that ran to its end.

    Attributes:
        text: What the last Write wrote; empty where the program has none.
        finish_reason: Why it ended; None where the program has no Write.
        steps: One account per step, in the order of the program.
    """

    key: str
    text: str
    finish_reason: FinishReason | None
    steps: tuple[StepAccount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """A job that cannot go on. The others do not feel it."""

    key: str
    error: SampleError


Outcome = Completion | JobError


class Capture(StrEnum):
    """What a backend can give to an artifact sink while it runs."""

    SIMILARITY = "similarity"
    """At every hand-over: the cosine of the next prompt with each key of each layer, before anything is dropped."""
    EMBEDDINGS = "embeddings"
    """Of every agent: mean input embedding of its prompt, its thoughts, its last hidden state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """How near the next prompt is to each slot of a sample's memory, before a hand-over drops any.

    Attributes:
        sender, receiver: Names of agents.
        cosines: ``[L, S]`` in [-1, 1], float32, on the CPU.
        positions: Of each slot.
        agents: Name for each slot.
        kinds: `SlotKind` of each slot.
    """

    sender: str
    receiver: str
    cosines: Tensor
    positions: tuple[int, ...]
    agents: tuple[str, ...]
    kinds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentVectors:
    """What an agent was and made in the space of input embeddings: float32, on the CPU.

    Attributes:
        prompt: ``[E]`` mean input embedding of its prompt.
        thoughts: ``[m, E]`` as they were fed back.
        hidden: ``[E]`` last hidden state of its turn, before alignment.
    """

    agent: str
    prompt: Tensor
    thoughts: Tensor
    hidden: Tensor


class Phase(StrEnum):
    """What a backend is busy with, in words for people."""

    LOADING = "loading model"
    CHECKING = "checking model"
    ALIGNING = "preparing alignment"
    READING = "reading"
    THINKING = "thinking"
    HANDING_OVER = "handing over"
    JOINING = "joining memories"
    WRITING = "writing"
    ANSWERING = "answering"
    """Programs as a whole: this backend does not see where in them it is."""


PREPARING: Final = frozenset({Phase.LOADING, Phase.CHECKING, Phase.ALIGNING})
"""Phases before any program; they can come again when an engine died, or before a hand-over of a new kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a backend is at this moment.

    Attributes:
        agents: Whose turn it is; several where branches, or samples at different agents, share a batch. Each once.
        step: Thought that is being made, or tokens of the longest text so far; counts from 1, 0 is nothing yet.
        steps: Thoughts of this turn, or tokens a text may have; 0 where a phase has no steps.
        rows: Rows that began the step; while ANSWERING programs that were begun so far.
        going: Those of them that have not ended.
        tokens: Written so far in this step, by all rows; while ANSWERING by all programs so far.
        batch: Programs that run together and end together; 0 where each ends for itself.
    """

    phase: Phase
    agents: tuple[str, ...] = ()
    step: int = 0
    steps: int = 0
    rows: int = 0
    going: int = 0
    tokens: int = 0
    batch: int = 0


Report = Callable[[Progress], None]
"""Is told what a backend does, at every thought and token, by the thread that works. It returns at once, does not
raise, and decides itself how often anybody sees it."""


class ArtifactSink(Protocol):
    """Takes tensors when they are produced, so that no completion carries any."""

    @property
    def wants(self) -> frozenset[Capture]: ...

    def similarity(self, key: str, number: int, similarity: Similarity) -> None:
        """Take what a sample's hand-over number so and so looked at."""
        ...

    def vectors(self, key: str, agents: Sequence[AgentVectors]) -> None:
        """Take the vectors of a sample, once it is done."""
        ...


class Backend(Protocol):
    """Runs programs. Keeps the laws of a backend, which ``tests/contracts`` checks."""

    @property
    def model_id(self) -> str: ...
    @property
    def capabilities(self) -> frozenset[Capability]: ...
    @property
    def capacity(self) -> int:
        """Jobs worth keeping in flight."""
        ...

    @property
    def codec(self) -> Codec: ...

    def submit(self, job: Job) -> None:
        """Take a job. What this backend can never do is refused here, by name.

        Raises:
            CapabilityError: No job of this kind can run here.
        """
        ...

    def collect(self) -> list[Outcome]:
        """Return finished jobs; block until there is at least one. Empty only when nothing is in flight."""
        ...

    def environment(self) -> Mapping[str, str | int | float | bool | None]:
        """Return what a manifest must know: model fingerprint, device, dtype, attention, library versions."""
        ...

    def close(self) -> None:
        """Give back processes and devices. Jobs in flight are lost; a second call does nothing."""
        ...


@runtime_checkable
class Aborts(Protocol):
    """A backend that can take a job back, which then has no outcome."""

    def abort(self, key: str) -> None:
        """Take back a job that has not ended; where there is none of this key, nothing happens."""
        ...


class Method(Protocol):
    """How one question is answered. One generator per sample: yields programs, gets completions."""

    @property
    def name(self) -> str: ...
    @property
    def roles(self) -> Mapping[str, str]:
        """Role of each agent, by name."""
        ...

    @property
    def needs(self) -> frozenset[Capability]: ...

    def solve(self, sample: Sample) -> Generator[Program, Completion, Answer]: ...

    def count(self, sample: Sample) -> Count:
        """Return what a sample costs at most, before anything runs."""
        ...

    def donor_of(self, sample: Sample) -> str | None:
        """Return the id of the sample whose memory `sample` is given by a control arm; None without one."""
        ...


class Scorer(Protocol):
    """Grades an answer. Never raises on any text; what breaks is the sample's target, and that is a `DataError`.

    Can be pickled, because answers are graded in other processes as well.
    """

    def __call__(self, answer: Answer, sample: Sample) -> Score: ...


Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCard:
    """What a person should know of a task's data.

    Attributes:
        source: Hub id, or where else rows come from.
        config: Of the data set on the hub; None where it has only one.
        revision: Commit of the data set; None is its newest.
        rows: How many rows each split has.
        columns: Those a row must have.
        licence: As its makers declare it.
        gated: The hub gives it only to who has accepted its terms.
        withheld: Its makers ask not to show its texts; records and logs leave them out.
    """

    source: str
    config: str | None = None
    revision: str | None = None
    rows: Mapping[str, int]
    columns: tuple[str, ...]
    licence: str
    gated: bool = False
    withheld: bool = False


class Task(Protocol):
    """A benchmark: rows to samples, and how answers are graded."""

    @property
    def name(self) -> str: ...
    @property
    def card(self) -> TaskCard: ...
    @property
    def answer_kind(self) -> AnswerKind: ...
    @property
    def splits(self) -> tuple[str, ...]:
        """The first one is what is evaluated unless another is asked for."""
        ...

    @property
    def defaults(self) -> Mapping[str, object]:
        """Option names and the values this task recommends."""
        ...

    @property
    def scorer(self) -> Scorer | None:
        """How answers are graded; None is the package's way for the answer kind."""
        ...

    def rows(self, split: str) -> Iterable[Row]:
        """Return the rows of the published data set (or of a generator)."""
        ...

    def sample(self, row: Row, index: int) -> Sample:
        """Turn a row into a sample.

        Raises:
            DataError: A column is missing or its value cannot be read. Names the column.
        """
        ...
