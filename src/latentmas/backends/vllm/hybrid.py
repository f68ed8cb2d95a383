"""The published hybrid, for comparison: a second model on transformers thinks, stock vLLM writes.

The engine gets every position once more, as input embeddings, so it computes the whole prompt a second time. The first
model's KV cache is thrown away. With `VLLMBackend` alone a position is computed once, on one copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import torch
from torch import Tensor

from latentmas.alignment import Alignment
from latentmas.backends.hf.backend import HFBackend
from latentmas.backends.hf.rollout import Rollout, Row, shape
from latentmas.backends.vllm.engine import Engine, EngineFacts, Finished
from latentmas.backends.vllm.requests import Request
from latentmas.errors import SampleError
from latentmas.program import Program, Read, Step, Think
from latentmas.protocols import ThoughtAccount

THOUGHT: Final = -1
"""Stands for a thought between the two models. It is no token of either, so that no text can hold it."""


@final
class HybridEngine:
    """Looks like an engine that thinks, to `VLLMBackend`.

    Args:
        thinker: Whose model and alignment make the thoughts.
        writer: A stock engine that reads input embeddings.
    """

    def __init__(self, thinker: HFBackend, writer: Engine) -> None:
        self._thinker = thinker
        self._writer = writer
        self._waiting: dict[str, Request] = {}
        self._thinking: dict[str, tuple[ThoughtAccount | None, ...]] = {}

    @property
    def facts(self) -> EngineFacts:
        return self._writer.facts

    def add(self, name: str, request: Request, embeddings: Any = None) -> None:
        assert embeddings is None
        self._waiting[name] = request

    def step(self) -> list[Finished]:
        """Think for one batch of requests, then let the writer work."""
        failed = self._think()
        return failed or [replace(item, thinking=self._thinking.pop(item.name, ())) for item in self._writer.step()]

    def abort(self, names: Iterable[str]) -> None:
        gone = set(names)
        self._waiting = {name: request for name, request in self._waiting.items() if name not in gone}
        self._thinking = {name: thinking for name, thinking in self._thinking.items() if name not in gone}
        self._writer.abort(gone)

    def written(self) -> int:
        return self._writer.written()

    def close(self) -> None:
        self._writer.close()

    def _think(self) -> list[Finished]:
        """Send a batch of requests to the writer; return those that cannot go on."""
        if not self._waiting:
            return []
        programs = {name: _program(request.tokens) for name, request in self._waiting.items()}
        wanted = shape(next(iter(programs.values())))
        names = [name for name, program in programs.items() if shape(program) == wanted]
        names = names[: self._thinker.batch_size]
        results = self._embed_in_parts([programs[name] for name in names])
        failed = []
        for name, result in zip(names, results, strict=True):
            request = self._waiting.pop(name)
            try:
                if isinstance(result, SampleError):
                    raise result
                self._writer.add(name, request, result.inputs)
                self._thinking[name] = tuple(result.thinking.get(think) for think in request.thinks)
            except SampleError as error:
                failed.append(Finished(name=name, written=(), finish_reason=None, error=error))
        return failed

    def _embed_in_parts(self, programs: Sequence[Program]) -> list[_Embedded | SampleError]:
        """Embed a batch; when the thinker's memory runs out, its halves, as the transformers backend does."""
        try:
            return self._embed(programs)
        except (torch.OutOfMemoryError, MemoryError) as error:
            shortage = str(error)
        if len(programs) == 1:
            return [SampleError(f"out of memory with a single sample in the second model: {shortage}")]
        half = (len(programs) + 1) // 2
        self._thinker.batch_size = min(self._thinker.batch_size, half)
        return [*self._embed_in_parts(programs[:half]), *self._embed_in_parts(programs[half:])]

    @torch.inference_mode()
    def _embed(self, programs: Sequence[Program]) -> list[_Embedded | SampleError]:
        """Return the input embeddings of each program, or why there are none."""
        model = self._thinker.model
        rows = [Row(program=program, seed=0) for program in programs]
        alignment = _Remembering(self._thinker.alignment)
        rollout = Rollout(model, alignment, rows)
        alignment.rollout = rollout
        rollout.run()
        embed = model.causal.get_input_embeddings()
        results: list[_Embedded | SampleError] = []
        for row in rows:
            if row.error is not None:
                results.append(row.error)
                continue
            thoughts = iter(alignment.made.get(id(row), ()))
            parts: list[Tensor] = []
            for step in row.steps:
                if isinstance(step, Read):
                    parts.append(embed(torch.tensor(step.tokens, device=model.device)))
                elif isinstance(step, Think):
                    parts += [next(thoughts)[None] for _ in range(step.steps)]
            results.append(_Embedded(torch.cat(parts).cpu(), _thinking(row)))
        return results


@dataclass(frozen=True, slots=True)
class _Embedded:
    """What a program is for the writer.

    Attributes:
        inputs: ``[tokens, E]`` on the CPU.
        thinking: How thoughts changed, by where a Think begins and how many it has.
    """

    inputs: Tensor
    thinking: dict[tuple[int, int], ThoughtAccount | None]


def _thinking(row: Row) -> dict[tuple[int, int], ThoughtAccount | None]:
    position, found = 0, {}
    for account in row.accounts:
        if account.thoughts:
            found[position, account.thoughts] = account.thinking
        position += account.prompt_tokens + account.thoughts
    return found


@dataclass(slots=True)
class _Remembering:
    """An alignment that remembers what it made for which row."""

    inner: Alignment
    rollout: Rollout | None = None
    made: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        return self.inner.norm

    def __call__(self, hidden: Tensor) -> Tensor:
        thoughts = self.inner(hidden)
        assert self.rollout is not None
        for row, thought in zip(self.rollout.rows, thoughts, strict=True):
            self.made.setdefault(id(row), []).append(thought)
        return thoughts


def _program(tokens: Sequence[int]) -> Program:
    """Return the reads and thoughts that a request stands for."""
    steps: list[Step] = []
    start = 0
    while start < len(tokens):
        stop, thought = start, tokens[start] == THOUGHT
        while stop < len(tokens) and (tokens[stop] == THOUGHT) == thought:
            stop += 1
        steps.append(
            Think(agent="", steps=stop - start) if thought else Read(agent="", tokens=tuple(tokens[start:stop]))
        )
        start = stop
    return Program(tuple(steps))
