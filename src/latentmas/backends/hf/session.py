"""Session: the verbs of a program, one call at a time, on one memory.

What a session has done is itself a program, so the same rules are checked and the same accounts are kept.

Each agent has a dialogue of its own. What it reads first is a whole chat, with the system message, whatever others left
in memory before: so agents read on each other's memory (DESIGN section 2). What it reads after that goes on with this
chat: it closes the agent's reply and opens the next user message, so that everything the agent has read and written is,
token by token, one chat. A hand-over ends no dialogue; what it drops, the agent no longer sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import final

import torch

from latentmas.alignment import Alignment
from latentmas.backends.hf import handover
from latentmas.backends.hf.backend import HFBackend
from latentmas.backends.hf.dialogue import Dialogue, NextRead
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.errors import (
    CapabilityError,
    ConfigError,
    ContextLimitError,
    MemoryMismatchError,
    ProgramError,
    shown,
)
from latentmas.memory import LatentMemory
from latentmas.program import (
    KEEP_ALL,
    Handover,
    KeepSpec,
    Positions,
    Program,
    Read,
    Sampling,
    Step,
    Storage,
    Think,
    ThoughtSource,
    Write,
)
from latentmas.protocols import Codec, StepAccount
from latentmas.samples import Message


@final
class Session:
    """One conversation of agents with a model, under your own control.

    Args:
        backend: Whose model thinks; the session leaves its jobs alone.
        seed: Fixes sampling and noise.
        memory: To go on from, one row; None starts empty. Without a Read there is nothing to think from yet, and no
            agent has a dialogue: what each reads first is a whole chat.
        system: System message of every agent's chat; None leaves the chat template its own, where it has one.

    Raises:
        CapabilityError: The backend is another one.
        ConfigError: Something is of another type.
        MemoryMismatchError: The memory is not of this model.
    """

    def __init__(
        self, backend: HFBackend, *, seed: int = 0, memory: LatentMemory | None = None, system: str | None = None
    ) -> None:
        if not isinstance(backend, HFBackend):
            raise CapabilityError(
                f"a session was given {shown(backend)}; it runs on the transformers backend: Session(team.backend), "
                "with a team opened without use_vllm"
            )
        _expect("seed", seed, int)
        if memory is not None and not isinstance(memory, LatentMemory):
            raise MemoryMismatchError(
                f"memory is {shown(memory)}; expected a LatentMemory, or Session.load(backend, path) for a file"
            )
        if system is not None:
            _check_text("system", system)
        self._model: LoadedModel = backend.model
        self._alignment: Alignment = backend.alignment
        self._codec: Codec = backend.codec
        self._new = Dialogue(codec=self._codec, system=system)
        self._dialogues: dict[str, Dialogue] = {}
        self._busy = Lock()
        self._steps: tuple[Step, ...] = ()
        self._row = Row(program=None, seed=seed)
        if memory is not None and (memory.rows, memory.layers) != (1, self._model.layers):
            raise MemoryMismatchError(
                f"the memory has {memory.rows} rows and {memory.layers} layers; "
                f"a session needs 1 row and the model's {self._model.layers} layers"
            )
        # A copy: two sessions on one memory would write into each other's slots.
        own = memory.clone() if memory is not None else None
        self._rollout = Rollout(self._model, self._alignment, [self._row], own)

    @classmethod
    def load(cls, backend: HFBackend, path: Path | str, *, seed: int = 0, system: str | None = None) -> Session:
        """Go on from a memory file. It holds no dialogues: what each agent reads first is a whole chat.

        Raises:
            MemoryMismatchError: The file is no memory of this model.
        """
        empty = cls(backend, seed=seed, system=system)
        memory = LatentMemory.load(_path(path), empty._model.fingerprint, empty._model.device)
        return cls(backend, seed=seed, memory=memory, system=system)

    @property
    def program(self) -> Program:
        """What the session has done so far."""
        return Program(self._steps)

    @property
    def memory(self) -> LatentMemory:
        """The memory as it is, one row."""
        return self._rollout.memory

    @property
    def accounts(self) -> tuple[StepAccount, ...]:
        """One account per step so far."""
        return tuple(self._row.accounts)

    def messages(self, agent: str) -> tuple[Message, ...]:
        """Return the dialogue of an agent: what it read, and what it wrote so far."""
        dialogue = self._dialogues.get(agent, self._new)
        written = (Message("assistant", dialogue.reply),) if dialogue.written is not None else ()
        return dialogue.messages + written

    def read(self, agent: str, text: str, *, as_written: bool = False) -> Session:
        """Let an agent read a user message, as a chat that ends where its reply begins.

        The first message of an agent comes with the beginning of a chat. A later one closes what the agent wrote; where
        it only thought, or others took their turns, the reply is closed as an empty one. Where nothing at all happened
        since its last message, the two stand in a row as the template shows them, and the Read grows.

        Memory keeps what was written, even where its text would be cut into other tokens, or the template trims blanks.

        Args:
            as_written: Go on although the template would show the agent's reply in other words, such as without its
                thinking. What memory has is then no longer one chat.

        Raises:
            ConfigError: The template refuses the chat, or shows earlier turns in other words.
        """
        _expect("agent", agent, str)
        _check_text("text", text)
        with self._alone():
            dialogue, last = self._dialogues.get(agent, self._new), self._steps[-1] if self._steps else None
            untouched = isinstance(last, Read) and last.agent == agent
            after, turn = dialogue.heard(text, untouched=untouched, as_written=as_written)
            if untouched:
                self._read_on(turn)
            else:
                self._do(Read(agent=agent, tokens=turn.read.tokens, text=turn.read.text))
            self._dialogues[agent] = after
            return self

    def think(self, agent: str, steps: int, source: ThoughtSource = ThoughtSource.OWN) -> Session:
        """Append latent thoughts.

        Raises:
            ProgramError: The agent has read nothing yet.
            NumericalError: A thought is not finite.
        """
        _expect("steps", steps, int)
        _expect("source", source, ThoughtSource)
        with self._alone():
            self._check_has_read(agent)
            return self._do(Think(agent=agent, steps=steps, source=source))

    def hand_over(
        self,
        agent: str,
        keep: KeepSpec = KEEP_ALL,
        *,
        positions: Positions = Positions.TRUE,
        storage: Storage = Storage.NATIVE,
        to: str | None = None,
        reader: str | None = None,
    ) -> Session:
        """Drop, move or pack the slots that the next agent gets.

        Args:
            to: The message the next agent will read; filters that look at the receiver need it. It is not read yet.
            reader: Who will read it; None is an agent that has read nothing yet.

        Raises:
            CapabilityError: There is no such filter, this model or a session cannot do it, or `to` is missing.
            ProgramError: The agent has left nothing in memory.
        """
        _expect("keep", keep, KeepSpec)
        _expect("positions", positions, Positions)
        _expect("storage", storage, Storage)
        if reader is not None and to is None:
            raise ProgramError(f"reader is {reader!r}, and to is not given; say what {reader!r} will read")
        with self._alone():
            return self._hand_over(Handover(agent=agent, keep=keep, positions=positions, storage=storage), to, reader)

    def _hand_over(self, step: Handover, to: str | None, reader: str | None) -> Session:
        if not self._steps:
            raise ProgramError("nobody has read anything in this session yet; a hand-over comes after the first Read")
        keep = step.keep
        if step.agent not in self.memory.agent_names:
            raise ProgramError(
                f"agent {step.agent!r} has left nothing in this memory; those who have: "
                f"{', '.join(self.memory.agent_names)}"
            )
        ahead: tuple[Step, ...] = ()
        if to is not None:
            _check_text("to", to)
            dialogue = self._new if reader is None else self._dialogues.get(reader, self._new)
            _, turn = dialogue.heard(to, as_written=True)
            ahead = (Read(agent=reader or "next", tokens=turn.read.tokens),)
        handover.check(Program((*self._steps, step, *ahead)), self._model)
        if handover.wants_sender([step]):
            raise CapabilityError(
                f"filter {keep.name!r} has to watch the sender while it reads, and a session does not know beforehand; "
                "run a Program instead"
            )
        return self._do(step, ahead)

    def write(self, agent: str, max_new_tokens: int = 512, sampling: Sampling | None = None) -> str:
        """Decode and return text; what was written stays in memory, without its end of text.

        Raises:
            ProgramError: The agent has read nothing yet.
        """
        _expect("max_new_tokens", max_new_tokens, int)
        if sampling is not None:
            _expect("sampling", sampling, Sampling)
        with self._alone():
            self._check_has_read(agent)
            self._do(Write(agent=agent, max_new_tokens=max_new_tokens, sampling=sampling or Sampling()))
            written = self._row.accounts[-1].written
            self._dialogues[agent] = self._dialogues[agent].wrote(written)
            return self._codec.decode(written)

    def fork(self, seed: int | None = None) -> Session:
        """Return an independent session that starts where this one is.

        Raises:
            ProgramError: Another thread is at work in this one, so nobody can tell where it is.
        """
        if seed is not None:
            _expect("seed", seed, int)
        with self._alone():
            return self._copy(seed)

    def _copy(self, seed: int | None) -> Session:
        other = copy(self)
        other._busy = Lock()
        other._dialogues = dict(self._dialogues)
        other._row = copy(self._row)
        other._row.accounts = list(self._row.accounts)
        if seed is not None:
            other._row.seed = seed
        other._rollout = Rollout(self._model, self._alignment, [other._row], self.memory.clone())
        other._rollout.hidden = self._rollout.hidden
        other._rollout.thought = self._rollout.thought
        return other

    def save(self, path: Path | str, storage: Storage = Storage.NATIVE) -> None:
        """Write the memory to a safetensors file that only this model reads back, in 8 bits where told to."""
        _expect("storage", storage, Storage)
        with self._alone():
            self.memory.save(_path(path), self._model.fingerprint, storage)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a second thread, whose turn would come where nobody can tell.

        Raises:
            ProgramError: Another thread is at work in this session.
        """
        if not self._busy.acquire(blocking=False):
            raise ProgramError("another thread is at work in this session; wait for it, or give each thread a fork()")
        try:
            yield
        finally:
            self._busy.release()

    def _check_has_read(self, agent: str) -> None:
        _expect("agent", agent, str)
        if self._steps and agent not in self._dialogues:
            raise ProgramError(
                f"agent {agent!r} has read nothing in this session; those who have: {', '.join(self._dialogues)}"
            )

    def _read_on(self, turn: NextRead) -> None:
        """Let the last Read grow, after forgetting how it ended."""
        rollout, accounts, steps = self._rollout, self._row.accounts, self._steps
        last = steps[-1]
        assert isinstance(last, Read)
        before = rollout.memory, rollout.fed, list(accounts)
        kept = last.tokens[: len(last.tokens) - turn.forgotten]
        rollout.memory = rollout.memory.clone()  # what is forgotten is overwritten, and this may fail
        try:
            rollout.forget_newest(turn.forgotten)
            first = accounts.pop()
            self._steps = steps[:-1]
            if kept:
                accounts.append(first)
                self._steps = (*self._steps, replace(last, tokens=kept))
            self._do(Read(agent=last.agent, tokens=turn.read.tokens, text=turn.read.text))
        except BaseException:
            rollout.memory, rollout.fed, self._steps = before[0], before[1], steps
            accounts[:] = before[2]
            raise
        whole = accounts[-1]
        if kept:
            again = accounts.pop()
            whole = replace(again, forward_passes=2, seconds=first.seconds + again.seconds)
        accounts[-1] = replace(whole, prompt_tokens=len(kept) + len(turn.read.tokens))
        self._steps = (*steps[:-1], Read(agent=last.agent, tokens=kept + turn.read.tokens, text=turn.read.text))

    @torch.inference_mode()
    def _do(self, step: Step, ahead: tuple[Step, ...] = ()) -> Session:
        """Run one more step, with those that may come after it in sight.

        Raises:
            ProgramError: The step may not come here.
            ContextLimitError: The memory would be longer than the model's context.
            SampleError: The model does not know a token of the prompt.
        """
        if self._row.error is not None:
            raise self._row.error
        program = Program((*self._steps, step))
        self._model.check_tokens(token for each in (step, *ahead) if isinstance(each, Read) for token in each.tokens)
        needed = int(self.memory.next_position.max()) + _positions(step)
        if self._model.context is not None and needed > self._model.context:
            raise ContextLimitError(f"this step needs {needed} positions, the model has {self._model.context}")
        reached, switch = int(self.memory.next_position.max()), self._model.switch
        if switch is not None and reached > 0 and max(reached, self._row.reach) <= switch < needed:
            raise ContextLimitError(
                f"this step goes from position {reached} to {needed}, and {self._model.kind} rotates keys in another "
                f"way beyond {switch}; what is in memory would not fit it. Run all of it as one Program, which knows "
                "beforehand how long it gets"
            )
        rollout, row, memory = self._rollout, self._row, self._rollout.memory
        of_row = row.thoughts, row.writes, row.handovers, row.reach
        before = memory.slots, memory.next_position, memory.made, rollout.hidden, rollout.thought
        row.program = Program((*program, *ahead))
        try:
            rollout.step(len(self._steps), last=False)
        except BaseException:  # Ctrl-C in a notebook, for one: the session is as it was before this step
            rollout.memory = memory
            memory.slots, memory.next_position, memory.made, rollout.hidden, rollout.thought = before
            row.thoughts, row.writes, row.handovers, row.reach = of_row
            raise
        if self._row.error is not None:
            raise self._row.error
        self._steps = program.steps
        return self


def _positions(step: Step) -> int:
    """Return how many positions a step takes at most."""
    match step:
        case Read():
            return len(step.tokens)
        case Think():
            return step.steps
        case Write():
            return step.max_new_tokens
        case _:
            return 0


def _expect(name: str, value: object, kind: type) -> None:
    """Refuse an argument of another type.

    Raises:
        ConfigError: It is none of this type.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        article = "an" if kind.__name__[0] in "aeiou" else "a"
        raise ConfigError(f"{name} is {shown(value)}; expected {article} {kind.__name__}")


def _check_text(name: str, text: object) -> None:
    """Refuse what no tokenizer takes.

    Raises:
        ConfigError: It is no text, or holds half a character.
    """
    _expect(name, text, str)
    try:
        str(text).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} has half a character at {error.start}; read the text it comes from as UTF-8"
        ) from error


def _path(given: Path | str) -> Path:
    if not isinstance(given, str | Path):
        raise ConfigError(f"path is {shown(given)}; expected the path of a memory file")
    return Path(given)
