"""An engine without a model, for everything around the engine: it keeps the same hash as `ScriptedBackend`.

What goes wrong in it is said in advance, request by request.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

from latentmas.backends.scripted import ByteCodec, ScriptedBackend
from latentmas.backends.vllm.backend import VLLMBackend
from latentmas.backends.vllm.engine import EngineFacts, Finished
from latentmas.backends.vllm.requests import Request
from latentmas.errors import NumericalError, SampleError
from latentmas.program import Program, Read, Step, Think, Write

PLACEHOLDER = 299
VOCABULARY = 300
SLOT_BYTES = 64


class Fault(StrEnum):
    DIES_WHEN_ADDED = "dies when added"
    DIES_AT_WORK = "dies at work"
    GIVES_UP = "gives up"
    NOT_FINITE = "not finite"
    REFUSES = "refuses"


Faults = Callable[[Request, int], Fault | None]
"""What happens to a request, by what it is and how often it was asked for before."""


class DeadEngineError(RuntimeError):
    """What an engine raises when it is lost."""


class ScriptedEngine:
    """Two requests end in each step, not always the oldest ones.

    Args:
        asked: How often each prompt was asked for, kept by the test, since engines come and go.
    """

    def __init__(self, *, running: int, context: int, faults: Faults, asked: Counter[tuple[int, ...]]) -> None:
        self.facts = EngineFacts(
            context=context,
            vocabulary=VOCABULARY,
            slot_bytes=SLOT_BYTES,
            running=running,
            dtype="none",
            version="0",
            device="cpu",
        )
        self._faults = faults
        self._asked = asked
        self._waiting: dict[str, tuple[Request, Fault | None]] = {}
        self._order = random.Random(0)
        self.closed = False

    def add(self, name: str, request: Request, embeddings: Any = None) -> None:
        assert not self.closed
        fault = self._faults(request, self._asked[request.tokens])
        self._asked[request.tokens] += 1
        if fault is Fault.REFUSES:
            raise SampleError("too odd for this engine")
        if fault is Fault.DIES_WHEN_ADDED:
            raise DeadEngineError("while a request was added")
        self._waiting[name] = (request, fault)

    def step(self) -> list[Finished]:
        assert not self.closed
        assert self._waiting, "nobody steps an idle engine"
        for _, fault in self._waiting.values():
            if fault is Fault.DIES_AT_WORK:
                raise DeadEngineError("CUDA error: an illegal memory access was encountered")
        names = self._order.sample(sorted(self._waiting), k=min(2, len(self._waiting)))
        return [self._finish(name, *self._waiting.pop(name)) for name in names]

    def abort(self, names: Iterable[str]) -> None:
        for name in names:
            self._waiting.pop(name, None)

    def written(self) -> int:
        return 0  # each writes all of its text in the step in which it ends

    def close(self) -> None:
        self.closed = True

    def _finish(self, name: str, request: Request, fault: Fault | None) -> Finished:
        if fault is Fault.GIVES_UP:
            error = SampleError("vLLM gave the request up (error)")
            return Finished(name=name, written=(), finish_reason=None, error=error, may_pass=True)
        program = Program((*_steps(request.tokens), write_of(request)))
        [completion] = ScriptedBackend().run([program], seeds=[request.seed])
        return Finished(
            name=name,
            written=completion.steps[-1].written,
            finish_reason=completion.finish_reason,
            error=NumericalError("not finite") if fault is Fault.NOT_FINITE else None,
        )


def write_of(request: Request) -> Write:
    return Write(agent="", max_new_tokens=request.max_tokens, sampling=request.sampling)


def _steps(tokens: tuple[int, ...]) -> Iterable[Step]:
    for token in tokens:
        yield Think(agent="", steps=1) if token == PLACEHOLDER else Read(agent="", tokens=(token,))


def engine_backend(
    *,
    running: int = 4,
    context: int = 1024,
    faults: Faults = lambda request, before: None,
    starts: list[ScriptedEngine] | None = None,
) -> VLLMBackend:
    """Return a backend on a scripted engine; every engine it starts is added to `starts`."""
    asked: Counter[tuple[int, ...]] = Counter()

    def start() -> ScriptedEngine:
        engine = ScriptedEngine(running=running, context=context, faults=faults, asked=asked)
        if starts is not None:
            starts.append(engine)
        return engine

    return VLLMBackend(start, ByteCodec(), placeholder=PLACEHOLDER, model_id="scripted")
