"""Programs as requests of an engine, and what the engine says as accounts. Knows neither torch nor vLLM."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from latentmas.errors import CapabilityError, ContextLimitError, SampleError
from latentmas.program import Handover, Join, Program, Read, Recall, Sampling, Step, Think, ThoughtSource, Write
from latentmas.protocols import StepAccount, ThoughtAccount
from latentmas.samples import FinishReason

TRANSFORMERS_CAN: Final = "leave --use_vllm out: the transformers backend can"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an engine is asked for.

    Attributes:
        tokens: With the placeholder at every thought.
        max_tokens: At most so many are written, at least 1.
        seed: 63 bits; a greedy request ignores it.
        thinks: Of each Think that is new in it the position of its first thought, and how many it has.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    thinks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a request.

    Attributes:
        written: Without end of text.
        finish_reason: None where nothing was asked for but to read.
        reused: Positions that the prefix cache had.
        thinking: How the thoughts of each Think of the request changed; None where it was not measured.
    """

    written: tuple[int, ...]
    finish_reason: FinishReason | None
    reused: int = 0
    thinking: tuple[ThoughtAccount | None, ...] = ()


def refuse(program: Program) -> None:
    """Refuse what no request can be, by name.

    Raises:
        CapabilityError: The program joins memories, drops slots at a hand-over, thinks noise, or penalizes repetition
            on the memory of others.
    """
    for number, step in enumerate(program, start=1):
        match step:
            case Join():
                what = "Join: it concatenates memories"
            case Handover() if not step.passes_everything:
                how = f"positions {step.positions.value}, stored as {step.storage.value}"
                what = f"a Handover that keeps {step.keep}, {how}: a request reads all of its own prompt"
            case Think(source=ThoughtSource.NOISE, steps=steps) if steps:
                what = "noise in place of thoughts"
            case Write(agent=agent, sampling=sampling) if sampling.repetition_penalty != 1 and _reads_on(
                program, number, agent
            ):
                what = (
                    f"a Write with a repetition penalty of {sampling.repetition_penalty:g} on the memory of other "
                    "agents: an engine would count their prompts in"
                )
            case _:
                continue
        raise CapabilityError(f"step {number} is {what}, which the vllm backend cannot do; {TRANSFORMERS_CAN}")


def _reads_on(program: Program, number: int, agent: str) -> bool:
    """Return whether anything before a step, which is counted from 1, is of another agent."""
    return any(isinstance(step, Join | Recall) or step.agent != agent for step in program.steps[: number - 1])


def thinks(program: Program) -> bool:
    """Return whether a program has a thought."""
    return any(isinstance(step, Think) and step.steps for step in program)


def unfit(program: Program, *, context: int, vocabulary: int, placeholder: int | None) -> SampleError | None:
    """Return why this one program cannot run on an engine; None where it can.

    Args:
        context: Positions the engine has for one request.
        placeholder: The id that stands for thoughts; None for an engine that cannot think.
    """
    if (needed := program.count().positions) > context:
        return ContextLimitError(
            f"prompt, thoughts and new tokens need {needed} positions, the engine has {context}; "
            "lower --max_new_tokens or --latent_steps, or raise --max_model_len"
        )
    for step in program:
        if not isinstance(step, Read):
            continue
        if strange := [token for token in step.tokens if not 0 <= token < vocabulary]:
            return SampleError(
                f"the prompt of {step.agent!r} has token {strange[0]}, the model knows 0 to {vocabulary - 1}; "
                "the tokenizer belongs to another model"
            )
        if placeholder is not None and placeholder in step.tokens:
            return SampleError(
                f"the prompt of {step.agent!r} has token {placeholder} in it, which stands for a thought on this "
                f"engine; take its text out of the question, or {TRANSFORMERS_CAN}"
            )
    return None


class Passage:
    """One program on its way through an engine: a request for every Write, each on top of what came before.

    Nearly every program is one request. Where a program goes on after a Write, the next request repeats the tokens so
    far, and the prefix cache has them.
    """

    def __init__(self, program: Program, seed: int, placeholder: int | None) -> None:
        self._steps = program.steps
        self._seed = seed
        self._placeholder = placeholder
        self._tokens: list[int] = []
        self._next = 0
        self.replies: list[Reply] = []

    def request(self) -> Request:
        """Return the next request; call it while `ended` is false."""
        write = self._write
        return Request(
            tokens=(*self._tokens, *self._read()),
            max_tokens=write.max_new_tokens if write else 1,
            sampling=write.sampling if write else Sampling(),
            seed=write_seed(self._seed, len(self.replies)),
            thinks=self._thinks(),
        )

    def take(
        self,
        written: Sequence[int],
        finish_reason: FinishReason,
        reused: int,
        thinking: tuple[ThoughtAccount | None, ...] = (),
    ) -> None:
        """Take what came of the last request.

        Raises:
            SampleError: An agent that comes later would read what was written as a thought.
        """
        self._tokens += self._read()
        wrote = self._write is not None
        self._next = self._stop + 1
        if not wrote:  # something has to be asked for; nobody wants the one token
            self.replies.append(Reply(written=(), finish_reason=None, reused=reused, thinking=thinking))
            return
        reply = Reply(written=tuple(written), finish_reason=finish_reason, reused=reused, thinking=thinking)
        self.replies.append(reply)
        if not self.ended and self._placeholder in written:
            raise SampleError("an agent wrote the token that stands for a thought, and another one would read it")
        self._tokens += written

    @property
    def _stop(self) -> int:
        """Number of the next Write, or of steps."""
        later = range(self._next, len(self._steps))
        return next((number for number in later if isinstance(self._steps[number], Write)), len(self._steps))

    @property
    def _write(self) -> Write | None:
        step = self._steps[self._stop] if self._stop < len(self._steps) else None
        return step if isinstance(step, Write) else None

    def _read(self) -> list[int]:
        """Return the tokens of the steps up to the next Write."""
        tokens: list[int] = []
        for step in self._steps[self._next : self._stop]:
            match step:
                case Read():
                    tokens += step.tokens
                case Think() if step.steps:
                    assert self._placeholder is not None
                    tokens += [self._placeholder] * step.steps
                case _:
                    pass
        return tokens

    def _thinks(self) -> tuple[tuple[int, int], ...]:
        """Return the first position and the length of each Think up to the next Write."""
        position, found = len(self._tokens), []
        for step in self._steps[self._next : self._stop]:
            if isinstance(step, Read):
                position += len(step.tokens)
            elif isinstance(step, Think) and step.steps:
                found.append((position, step.steps))
                position += step.steps
        return tuple(found)

    @property
    def ended(self) -> bool:
        return self._next >= len(self._steps)

    def accounts(self, *, slot_bytes: int, seconds: float) -> tuple[StepAccount, ...]:
        """Return one account per step, once the passage has ended.

        An engine does not say how long a step took; seconds are shared out by forward passes. What the prefix cache had
        is counted from the front.

        Args:
            slot_bytes: Keys and values of one slot.
            seconds: The job's share of the engine's time.
        """
        thinking = iter([account for reply in self.replies for account in reply.thinking])
        drafts = [
            replace(draft, thinking=next(thinking, None)) if draft.thoughts else draft
            for draft in _accounts(self._steps, iter(self.replies))
        ]
        passes = sum(draft.forward_passes for draft in drafts) or 1
        reused = max((reply.reused for reply in self.replies), default=0)
        accounts = []
        for draft in drafts:
            had = min(reused, draft.prompt_tokens + draft.thoughts)
            reused -= had
            accounts.append(
                replace(
                    draft,
                    memory_bytes=draft.slots * slot_bytes,
                    reused_slots=had,
                    seconds=seconds * draft.forward_passes / passes,
                )
            )
        return tuple(accounts)


def _accounts(steps: Sequence[Step], replies: Iterator[Reply]) -> Iterator[StepAccount]:
    slots = 0
    for number, step in enumerate(steps, start=1):
        assert not isinstance(step, Join | Recall)
        prompt = thoughts = passes = 0
        written: tuple[int, ...] = ()
        match step:
            case Read():
                prompt, passes = len(step.tokens), 1
                slots += prompt
            case Think():
                thoughts = passes = step.steps
                slots += thoughts
            case Write():
                reply = next(replies)
                written = reply.written
                # The last token of a text that was cut is read back only where a step follows.
                passes = len(written) - (reply.finish_reason is FinishReason.LENGTH and number == len(steps))
                slots += passes
            case Handover():
                pass
        yield StepAccount(
            verb=type(step).__name__,
            agent=step.agent,
            prompt_tokens=prompt,
            thoughts=thoughts,
            written=written,
            slots=slots,
            forward_passes=passes,
        )


def write_seed(seed: int, number: int) -> int:
    """Return 63 bits that depend on the job and on which of its texts it is."""
    digest = hashlib.sha256(f"vllm\x1f{seed}\x1f{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
