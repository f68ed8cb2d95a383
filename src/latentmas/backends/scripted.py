"""ScriptedBackend: runs programs without a model, for tests and for the documentation.

It keeps the same laws as the real backends and needs no torch. Its "model" is a pure hash of the visible
slots taken as a set of (position, content): what was dropped cannot matter, and positions can. The hash is a
sum, so a slot more or less costs the same however many there are.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final, NamedTuple, final

from latentmas.errors import CapabilityError, ConfigError, ContextLimitError, ProgramError, SampleError
from latentmas.program import (
    Handover,
    Join,
    Program,
    Read,
    Recall,
    Sampling,
    SlotKind,
    Step,
    Think,
    ThoughtSource,
    Write,
)
from latentmas.protocols import (
    Capability,
    Completion,
    Encoded,
    Job,
    JobError,
    Outcome,
    Phase,
    Progress,
    Report,
    StepAccount,
)
from latentmas.samples import THINK_TAG, FinishReason, Message
from latentmas.turns import Turn, add, concatenate

MODEL_VERSION: Final = "scripted-1"
"""Changes whenever the hash, and with it a generated text, changes."""
SLOT_BYTES: Final = 16
ALPHABET: Final = tuple(b"abcdefghijklmnopqrstuvwxyz ")
END_OF_TEXT: Final = 256
"""One past the last byte; it is chosen like any letter and never stays in memory."""


@final
class ByteCodec:
    """Text as its UTF-8 bytes. A chat is one ``role: content`` line per message, then ``assistant: ``."""

    @property
    def digest(self) -> str:
        return "bytes-1"

    def encode_chat(self, messages: Sequence[Message], *, think: bool = False) -> Encoded:
        text = "".join(f"{message.role}: {message.content}\n" for message in messages) + "assistant: "
        text += THINK_TAG if think else ""
        return Encoded(text=text, tokens=self.encode_text(text))

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    @property
    def printed_date(self) -> None:
        return None

    def decode(self, tokens: Sequence[int], *, marks: bool = True) -> str:
        """Return the text; what is no UTF-8, such as half a character, becomes U+FFFD."""
        # 0xFF occurs in no UTF-8 text, so an id that is no byte is replaced as well.
        return bytes(token if token < 256 else 0xFF for token in tokens).decode(errors="replace")


class VisibleRun(NamedTuple):
    """Neighbouring slots of one agent and one kind that the writer can see. A run of thoughts has no text."""

    agent: str
    kind: SlotKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedTurn:
    """What a scripted reply may depend on.

    Attributes:
        prompt: Everything the writing agent read itself and still sees.
        visible: All of the memory, in the order of its positions.
        thoughts: Latent thoughts among it, of all agents.
    """

    agent: str
    prompt: str
    visible: tuple[VisibleRun, ...]
    thoughts: int
    seed: int


Reply = str | Callable[[ScriptedTurn], str]


@final
class ScriptedBackend:
    """A deterministic backend without a model.

    Args:
        reply: What every Write writes, or how to make it of the turn; a reply that raises `SampleError` ends
            that job only. None generates letters from a hash of the memory, as a language model would.
        capacity: Jobs worth keeping in flight.
        context: Positions a program may use; None is without limit.
        report: Is told of each job of a batch.
    """

    def __init__(
        self,
        *,
        reply: Reply | None = None,
        capacity: int = 8,
        context: int | None = None,
        report: Report = lambda progress: None,
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity is {capacity}; expected at least 1")
        self._reply = reply
        self._capacity = capacity
        self._context = context
        self._report = report
        self._waiting: deque[Job] = deque()

    @property
    def model_id(self) -> str:
        return "scripted"

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset(
            {
                Capability.MEMORY,
                Capability.PARTIAL_HANDOVER,
                Capability.NOISE,
                Capability.JOIN,
                Capability.TEMPERATURE,
            }
        )

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def codec(self) -> ByteCodec:
        return ByteCodec()

    def environment(self) -> dict[str, str | int | float | bool | None]:
        return {
            "backend": "scripted",
            "model_fingerprint": MODEL_VERSION,
            "reply": "generated" if self._reply is None else "scripted",
            "context": self._context,
            "device": "cpu",
        }

    def close(self) -> None:
        """Nothing runs beside this process."""

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            CapabilityError: A hand-over looks at what slots hold, moves them, or stores them in another way.
        """
        _refuse(job.program)
        self._waiting.append(job)

    def collect(self) -> list[Outcome]:
        """Return the outcomes of the jobs that wait, at most `capacity` of them, in the order they came."""
        jobs = [self._waiting.popleft() for _ in range(min(self._capacity, len(self._waiting)))]
        outcomes: list[Outcome] = []
        for job in jobs:
            going = len(jobs) - len(outcomes)
            self._report(Progress(phase=Phase.ANSWERING, rows=len(jobs), going=going, batch=len(jobs)))
            outcomes.append(self._outcome(job))
        return outcomes

    def abort(self, key: str) -> None:
        """Take back a job that has not run yet."""
        self._waiting = deque(job for job in self._waiting if job.key != key)

    def run(self, programs: Sequence[Program], seeds: Sequence[int] | None = None) -> list[Completion]:
        """Run programs at once and return their completions in order; jobs in flight are left alone.

        Args:
            seeds: One per program; None is 0, 1, 2 ...

        Raises:
            SampleError: The first program that could not go on.
        """
        completions = []
        if seeds is not None and len(seeds) != len(programs):
            raise ProgramError(f"{len(programs)} programs came with {len(seeds)} seeds; give one for each")
        for program, seed in zip(programs, seeds or range(len(programs)), strict=True):
            _refuse(program)
            # No key: equal work gives equal completions, wherever it stands in the list.
            outcome = self._outcome(Job(key="", program=program, seed=seed))
            if isinstance(outcome, JobError):
                raise outcome.error
            completions.append(outcome)
        return completions

    def _outcome(self, job: Job) -> Outcome:
        needed = job.program.count().positions
        if self._context is not None and needed > self._context:
            return JobError(
                key=job.key,
                error=ContextLimitError(
                    f"the program needs {needed} positions, the context has {self._context}; "
                    "shorten the prompt, think fewer steps or write fewer tokens"
                ),
            )
        try:
            return _Run(program=job.program, seed=job.seed, reply=self._reply).complete(job.key)
        except SampleError as error:
            return JobError(key=job.key, error=error)


def _refuse(program: Program) -> None:
    """Raise for the first step that no job of the scripted backend can do."""
    for step in program.flat():
        if isinstance(step, Handover) and not step.structural:
            raise CapabilityError(
                f"a hand-over of {step.agent!r} keeps {step.keep}, positions {step.positions.value}, stored as "
                f"{step.storage.value}, and the scripted backend has no capability "
                f"{Capability.HANDOVER_FILTER.value!r}; choose a backend that has it"
            )


@dataclass(frozen=True, slots=True)
class _Slot:
    """One slot. `token` is None for a thought."""

    position: int
    agent: str
    kind: SlotKind
    content: bytes
    token: int | None

    @property
    def weight(self) -> int:
        """What the slot adds to the hash of a memory that holds it."""
        return int.from_bytes(_hash(self.position, self.content), "big")


@dataclass(slots=True)
class _Run:
    """A program on its way."""

    program: Program
    seed: int
    reply: Reply | None
    slots: list[_Slot] = field(default_factory=list)
    total: int = 0  # sum of the weights of the slots: the same for the same set, in whatever order it came about
    hidden: bytes = b""  # hidden state of the last token that ran; a hand-over leaves it as it is
    next_position: int = 0  # one past the largest true position; dropping slots does not lower it
    turns: list[Turn] = field(default_factory=list)  # who took how many positions, in order
    thoughts: int = 0
    writes: int = 0
    finish_reason: FinishReason | None = None

    def complete(self, key: str) -> Completion:
        steps = self.do_all()
        text = next((account.text for account in reversed(steps) if account.verb == "Write"), "")
        return Completion(key=key, text=text, finish_reason=self.finish_reason, steps=steps)

    def do_all(self) -> tuple[StepAccount, ...]:
        last = len(self.program.steps) - 1
        return tuple(self._do(step, number == last) for number, step in enumerate(self.program))

    def _do(self, step: Step, is_last: bool) -> StepAccount:
        prompt_tokens = thoughts = passes = 0
        branches: tuple[tuple[StepAccount, ...], ...] = ()
        written: tuple[int, ...] = ()
        match step:
            case Read():
                for token in step.tokens:
                    self._append(step.agent, SlotKind.PROMPT, _hash("token", token), token)
                prompt_tokens, passes = len(step.tokens), 1
            case Think():
                for _ in range(step.steps):
                    self._think(step)
                thoughts = passes = step.steps
            case Handover():
                self._hand_over(step)
            case Write():
                before = len(self.slots)
                written = self._write(step, is_last=is_last)
                passes = len(self.slots) - before
            case Join():
                branches = self._join(step)
            case Recall():
                pass  # what it goes on from was there when the branch began
        return StepAccount(
            verb=type(step).__name__,
            agent="" if isinstance(step, Join | Recall) else step.agent,
            prompt_tokens=prompt_tokens,
            thoughts=thoughts,
            written=written,
            text=ByteCodec().decode(written),
            slots=len(self.slots),
            memory_bytes=len(self.slots) * SLOT_BYTES,
            forward_passes=passes,
            branches=branches,
        )

    def _join(self, step: Join) -> tuple[tuple[StepAccount, ...], ...]:
        """Run each branch on a memory of its own, join those that are to be joined, and return their accounts."""
        runs: list[_Run] = []
        accounts = []
        for number, branch in enumerate(step.branches):
            seed = int.from_bytes(_hash("branch", self.seed, number), "big") >> 65
            run = _Run(program=branch, seed=seed, reply=self.reply)
            run._concatenate([runs[other] for other in branch.recalled])
            accounts.append(run.do_all())
            runs.append(run)
        self._concatenate([runs[number] for number in step.joined_branches])
        return tuple(accounts)

    def _concatenate(self, runs: Sequence[_Run]) -> None:
        """Put memories one behind the other into this empty one, each turn of an agent once."""
        union = concatenate([run.turns for run in runs])
        for run, starts in zip(runs, union.starts, strict=True):
            # Where each position of that memory is now.
            now = [
                at for start, turn in zip(starts, run.turns, strict=True) for at in range(start, start + turn.length)
            ]
            already = {slot.agent for slot in self.slots}
            for slot in run.slots:
                if slot.agent not in already:  # an agent in several branches is there once
                    moved = replace(slot, position=now[slot.position])
                    self.slots.append(moved)
                    self.total += moved.weight
        self.slots.sort(key=lambda slot: slot.position)  # a later memory may hold what lies before an earlier one's
        self.turns, self.next_position = union.turns, union.end

    def _append(self, agent: str, kind: SlotKind, content: bytes, token: int | None) -> None:
        slot = _Slot(self.next_position, agent, kind, content, token)
        self.slots.append(slot)
        self.next_position += 1
        add(self.turns, agent, 1)
        self.total += slot.weight
        self.hidden = _hash("hidden", self.total)

    def _think(self, step: Think) -> None:
        if step.source is ThoughtSource.NOISE:
            content = _hash(self.seed, "noise", self.thoughts)
        else:
            content = _hash("thought", self.hidden)
        self.thoughts += 1
        self._append(step.agent, SlotKind.THOUGHT, content, None)

    def _hand_over(self, step: Handover) -> None:
        match step.keep.name:
            case "full":
                return
            case "thoughts":
                kept = [slot for slot in self.slots if slot.kind is SlotKind.THOUGHT]
            case _:
                kept = [slot for slot in self.slots if slot.agent == step.agent]
        self.slots = kept
        self.total = sum(slot.weight for slot in kept)

    def _write(self, step: Write, *, is_last: bool) -> tuple[int, ...]:
        written: list[int] = []
        script = None if self.reply is None else (*self._scripted(step.agent), END_OF_TEXT)
        self.finish_reason = FinishReason.LENGTH
        for number in range(step.max_new_tokens):
            token = self._choose(step, number) if script is None else script[number]
            if token == END_OF_TEXT:
                self.finish_reason = FinishReason.STOP
                break
            written.append(token)
            if is_last and len(written) == step.max_new_tokens:
                break  # nothing comes after it, so no backend runs this token through the model
            self._append(step.agent, SlotKind.TEXT, _hash("token", token), token)
        self.writes += 1
        return tuple(written)

    def _scripted(self, agent: str) -> tuple[int, ...]:
        assert self.reply is not None
        if isinstance(self.reply, str):
            return ByteCodec().encode_text(self.reply)
        runs = tuple(
            VisibleRun(name, kind, ByteCodec().decode([slot.token for slot in group if slot.token is not None]))
            for (name, kind), group in groupby(self.slots, key=lambda slot: (slot.agent, slot.kind))
        )
        turn = ScriptedTurn(
            agent=agent,
            prompt="".join(run.text for run in runs if run.agent == agent and run.kind is SlotKind.PROMPT),
            visible=runs,
            thoughts=sum(slot.kind is SlotKind.THOUGHT for slot in self.slots),
            seed=self.seed,
        )
        return ByteCodec().encode_text(self.reply(turn))

    def _choose(self, step: Write, number: int) -> int:
        """Return the next token: the likeliest, or with a temperature one drawn by Gumbel-max."""
        sampling = step.sampling
        tokens = (*ALPHABET, END_OF_TEXT)
        bits = hashlib.blake2b(self.hidden, person=b"logits").digest()
        logits = {
            token: int.from_bytes(bits[2 * place : 2 * place + 2], "big") / 2**14 for place, token in enumerate(tokens)
        }
        if sampling.repetition_penalty != 1:  # no logit here is negative
            own = {slot.token for slot in self.slots if slot.agent == step.agent}
            logits = {
                token: logit / (sampling.repetition_penalty if token in own else 1) for token, logit in logits.items()
            }
        if sampling.greedy:
            return max(tokens, key=logits.__getitem__)
        allowed = _allowed({token: logit / sampling.temperature for token, logit in logits.items()}, sampling)
        return max(allowed, key=lambda token: allowed[token] + _gumbel(self.seed, self.writes, number, token))


def _allowed(logits: dict[int, float], sampling: Sampling) -> dict[int, float]:
    """Return the logits that top-k, then top-p, then min-p leave. The likeliest token always stays."""
    ranked = sorted(logits, key=lambda token: (-logits[token], token))[: sampling.top_k or None]
    peak = logits[ranked[0]]
    weights = [math.exp(logits[token] - peak) for token in ranked]
    needed = sampling.top_p * sum(weights)
    reached = 0.0
    kept: dict[int, float] = {}
    for token, weight in zip(ranked, weights, strict=True):
        if kept and (reached >= needed or weight < sampling.min_p):
            break
        kept[token] = logits[token]
        reached += weight
    return kept


def _gumbel(*key: int) -> float:
    """Return standard Gumbel noise that depends on the key only."""
    # 53 bits and a half: never 0, never 1.
    uniform = ((int.from_bytes(_hash("gumbel", *key), "big") >> 75) + 0.5) / 2**53
    return -math.log(-math.log(uniform))


def _hash(*parts: str | int | bytes) -> bytes:
    """Return 16 bytes that depend on the parts only, on every machine."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
