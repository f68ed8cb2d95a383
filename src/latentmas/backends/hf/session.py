"""Session: the verbs of a program, one call at a time, on one memory.

What a session has done is itself a program, so the same rules are checked and the same accounts are kept.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import final

import torch

from latentmas.alignment import Alignment
from latentmas.backends.hf import handover
from latentmas.backends.hf.backend import HFBackend
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.errors import CapabilityError, ContextLimitError, MemoryMismatchError, ProgramError
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
from latentmas.protocols import Codec, Message, StepAccount


@final
class Session:
    """One conversation of agents with a model, under your own control.

    Args:
        backend: Whose model thinks; the session leaves its jobs alone.
        seed: Fixes sampling and noise.
        memory: To go on from, one row; None starts empty. Without a Read there is nothing to think from yet.

    Raises:
        CapabilityError: The backend is another one.
        MemoryMismatchError: The memory is not of this model.
    """

    def __init__(self, backend: HFBackend, *, seed: int = 0, memory: LatentMemory | None = None) -> None:
        if not isinstance(backend, HFBackend):
            raise CapabilityError("a session runs on the transformers backend; open the team without use_vllm")
        self._model: LoadedModel = backend.model
        self._alignment: Alignment = backend.alignment
        self._codec: Codec = backend.codec
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
    def load(cls, backend: HFBackend, path: Path | str, *, seed: int = 0) -> Session:
        """Go on from a memory file.

        Raises:
            MemoryMismatchError: The file is no memory of this model.
        """
        memory = LatentMemory.load(path, backend.model.fingerprint, backend.model.device)
        return cls(backend, seed=seed, memory=memory)

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

    def read(self, agent: str, text: str) -> Session:
        """Let an agent read a user message, as a chat that ends where its reply begins."""
        encoded = self._codec.encode_chat([Message("user", text)])
        return self._do(Read(agent=agent, tokens=encoded.tokens, text=encoded.text))

    def think(self, agent: str, steps: int, source: ThoughtSource = ThoughtSource.OWN) -> Session:
        """Append latent thoughts.

        Raises:
            NumericalError: A thought is not finite.
        """
        return self._do(Think(agent=agent, steps=steps, source=source))

    def hand_over(
        self,
        agent: str,
        keep: KeepSpec = KEEP_ALL,
        *,
        positions: Positions = Positions.TRUE,
        storage: Storage = Storage.NATIVE,
        to: str | None = None,
    ) -> Session:
        """Drop, move or pack the slots that the next agent gets.

        Args:
            to: The message the next agent will read; filters that look at the receiver need it. It is not read yet.

        Raises:
            CapabilityError: There is no such filter, this model or a session cannot do it, or `to` is missing.
        """
        if not self._steps:
            raise ProgramError("nobody has read anything in this session yet; a hand-over comes after the first Read")
        step = Handover(agent=agent, keep=keep, positions=positions, storage=storage)
        ahead = (
            () if to is None else (Read(agent="next", tokens=self._codec.encode_chat([Message("user", to)]).tokens),)
        )
        handover.check(Program((*self._steps, step, *ahead)), self._model)
        if handover.wants_sender([step]):
            raise CapabilityError(
                f"filter {keep.name!r} has to watch the sender while it reads, and a session does not know beforehand; "
                "run a Program instead"
            )
        return self._do(step, ahead)

    def write(self, agent: str, max_new_tokens: int = 512, sampling: Sampling | None = None) -> str:
        """Decode and return text; what was written stays in memory, without its end of text."""
        self._do(Write(agent=agent, max_new_tokens=max_new_tokens, sampling=sampling or Sampling()))
        return self._codec.decode(self._row.accounts[-1].written)

    def fork(self, seed: int | None = None) -> Session:
        """Return an independent session that starts where this one is."""
        other = copy(self)
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
        self.memory.save(path, self._model.fingerprint, storage)

    @torch.inference_mode()
    def _do(self, step: Step, ahead: tuple[Step, ...] = ()) -> Session:
        """Run one more step, with those that may come after it in sight.

        Raises:
            ProgramError: The step may not come here.
            ContextLimitError: The memory would be longer than the model's context.
        """
        if self._row.error is not None:
            raise self._row.error
        program = Program((*self._steps, step))
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
