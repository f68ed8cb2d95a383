"""VLLMBackend: jobs in, outcomes out, on an engine that is kept full. A broken engine is started again.

An engine that dies takes everything in it along, and does not say which request it died of. So the jobs that were in it
run again; those that were there twice run alone, at the end; and the one that kills an engine alone is to blame - if
another engine is well without it.
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count
from threading import RLock
from typing import Final, final

from latentmas.backends.given import seeds_for
from latentmas.backends.one_at_a_time import one_at_a_time
from latentmas.backends.vllm.engine import Engine, EngineFacts, Finished
from latentmas.backends.vllm.requests import TRANSFORMERS_CAN, Passage, refuse, thinks, unfit
from latentmas.errors import (
    CapabilityError,
    EngineError,
    LatentMASError,
    SampleError,
)
from latentmas.program import Program
from latentmas.protocols import Capability, Codec, Completion, Job, JobError, Outcome, Phase, Progress, Report

logger = logging.getLogger(__name__)

LATENT_CAPABILITIES: Final = frozenset({Capability.MEMORY, Capability.TEMPERATURE})
STOCK_CAPABILITIES: Final = frozenset({Capability.TEMPERATURE})
SUSPECT: Final = 2
"""Deaths of an engine after which the jobs that were in it each time run alone."""
MOST_DEATHS: Final = 8
"""Deaths and failed starts in a row, without one finished request between them, after which the engine is given up."""
SECONDS_BEFORE_A_START: Final = 10.0
"""Wait after a start that failed: a dead process may hold its device's memory for a while."""
SECONDS_BETWEEN_REPORTS: Final = 0.25
MOST_RETRIES: Final = 1
"""Times a request is asked for again that the engine gave up."""


@dataclass(slots=True, eq=False)
class _Work:
    """One job on its way."""

    job: Job
    passage: Passage
    began: float
    deaths: int = 0
    retries: int = 0

    @property
    def is_suspect(self) -> bool:
        return self.deaths >= SUSPECT


@final
class VLLMBackend:
    """Runs each linear program as one request of a vLLM engine.

    Args:
        start: Starts an engine; called again when one died.
        placeholder: The id that stands for thoughts; None for an engine that cannot think.
        environment: What the manifest must know beside what the engine says of itself.
        report: Is told how many requests go on, each time the engine has said something.
    """

    def __init__(
        self,
        start: Callable[[], Engine],
        codec: Codec,
        *,
        placeholder: int | None,
        model_id: str = "",
        environment: Callable[[EngineFacts], Mapping[str, str | int | float | bool | None]] = lambda facts: {},
        report: Report = lambda progress: None,
    ) -> None:
        self._start = start
        self._report = report
        report(Progress(phase=Phase.LOADING))
        self._engine: Engine | None = start()
        self._facts = self._engine.facts
        self._codec = codec
        self._placeholder = placeholder
        self._model_id = model_id
        self._notes = environment(self._facts)
        self._names = map(str, count())
        self._queue: deque[_Work] = deque()
        self._running: dict[str, _Work] = {}
        self._done: list[Outcome] = []
        self._blamed: list[Outcome] = []
        self._deaths = 0
        self._share = 0.0
        self._begun = 0
        self._tokens = 0
        self._said = -math.inf
        self._lock = RLock()

    @property
    def model_id(self) -> str:
        return self._model_id

    @property
    def capabilities(self) -> frozenset[Capability]:
        return STOCK_CAPABILITIES if self._placeholder is None else LATENT_CAPABILITIES

    @property
    def capacity(self) -> int:
        """Twice what the engine runs at once, so that it never waits for the next request."""
        return 2 * self._facts.running

    @property
    def codec(self) -> Codec:
        return self._codec

    @one_at_a_time
    def submit(self, job: Job) -> None:
        """Take a job; one that does not fit the engine comes back from `collect` as an error.

        Raises:
            CapabilityError: No request can be this program.
        """
        refuse(job.program)
        if self._placeholder is None and thinks(job.program):
            raise CapabilityError(f"this vLLM engine was started without thoughts; {TRANSFORMERS_CAN}")
        facts = self._facts
        error = unfit(job.program, context=facts.context, vocabulary=facts.vocabulary, placeholder=self._placeholder)
        if error is not None:
            self._done.append(JobError(key=job.key, error=error))
            return
        passage = Passage(job.program, job.seed, self._placeholder)
        self._queue.append(_Work(job=job, passage=passage, began=self._share))
        self._begun += 1

    @one_at_a_time
    def collect(self) -> list[Outcome]:
        """Return finished jobs, in the order in which they finished.

        Raises:
            EngineError: The engine died and does not come back, or dies again and again.
        """
        while not self._done and (self._queue or self._running):
            began, in_flight = time.perf_counter(), len(self._queue) + len(self._running)
            self._say(in_flight)
            finished = self._advance()
            self._share += (time.perf_counter() - began) / in_flight
            for item in finished:
                self._take(item)
        if not self._done:  # nothing else is left that could show an engine to be well
            self._done, self._blamed = self._blamed, []
        done, self._done = self._done, []
        return done

    @one_at_a_time
    def abort(self, key: str) -> None:
        """Take back a job, also one that the engine is at work on."""
        self._forget([key])

    @one_at_a_time
    def run(self, programs: Sequence[Program], seeds: Sequence[int] | None = None) -> list[Completion]:
        """Run programs and return their completions in order; the first error is raised.

        Other jobs in flight go on meanwhile and come back from `collect`.
        """
        seeds = seeds_for(programs, seeds)
        own = [f"run\x1f{number}" for number in range(len(programs))]
        done: dict[str, Completion] = {}
        others: list[Outcome] = []
        try:
            for key, program, seed in zip(own, programs, seeds, strict=True):
                self.submit(Job(key=key, program=program, seed=seed))
            while len(done) < len(own):
                for outcome in self.collect():
                    if outcome.key not in own:
                        others.append(outcome)
                    elif isinstance(outcome, JobError):
                        raise outcome.error
                    else:
                        done[outcome.key] = outcome
        finally:
            self._forget(own)
            self._done[:0] = others
        return [replace(done[key], key="") for key in own]

    def environment(self) -> Mapping[str, str | int | float | bool | None]:
        """Return what a manifest needs to repeat a run."""
        facts = self._facts
        return {
            "backend": "vllm",
            "device": facts.device,
            "device_name": facts.device_name,
            "dtype": facts.dtype,
            "attention": "vllm",
            "context": facts.context,
            "requests_at_once": facts.running,
            "model_runner": facts.runner or None,
            "placeholder": self._placeholder,
            "python": platform.python_version(),
            "vllm": facts.version,
            **{name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
            **self._notes,
        }

    @one_at_a_time
    def close(self) -> None:
        """End the engine. Jobs in flight are lost."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _say(self, in_flight: int) -> None:
        """Report how many programs go on, but not at every step: counting tokens looks at every request."""
        now = time.monotonic()
        if self._engine is None or now - self._said < SECONDS_BETWEEN_REPORTS:
            return
        self._said = now
        tokens = self._tokens + self._engine.written()
        self._report(Progress(phase=Phase.ANSWERING, rows=self._begun, going=in_flight, tokens=tokens))

    def _advance(self) -> list[Finished]:
        """Send what the engine has room for, and let it work until it has something to say."""
        if self._engine is None:
            raise EngineError("the vLLM engine was closed, or did not come back after it died; open the model again")
        try:
            self._send(self._engine)
            return self._engine.step() if self._running else []
        except LatentMASError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an engine dies of, what was in it has to run again
            self._bring_back(error)
            return []

    def _send(self, engine: Engine) -> None:
        while self._queue:
            alone = self._queue[0].is_suspect or any(work.is_suspect for work in self._running.values())
            if self._running and alone:
                return
            work, name = self._queue.popleft(), next(self._names)
            # Before it is added: an engine that dies of it here must give it back.
            self._running[name] = work
            try:
                engine.add(name, work.passage.request())
            except SampleError as error:
                del self._running[name]
                self._done.append(JobError(key=work.job.key, error=error))

    def _take(self, item: Finished) -> None:
        work = self._running.pop(item.name, None)
        if work is None:
            return  # taken back in the meantime
        self._deaths = 0
        self._tokens += len(item.written)
        self._done += self._blamed
        self._blamed = []
        key = work.job.key
        if item.may_pass and work.retries < MOST_RETRIES:
            work.retries += 1
            self._queue.appendleft(work)
            return
        if item.error is not None or item.finish_reason is None:
            error = item.error or SampleError("the engine gave neither a text nor a reason")
            self._done.append(JobError(key=key, error=error))
            return
        try:
            work.passage.take(item.written, item.finish_reason, item.reused, item.thinking)
        except SampleError as error:
            self._done.append(JobError(key=key, error=error))
            return
        if work.passage.ended:
            self._done.append(self._completion(work))
        else:
            self._queue.appendleft(work)

    def _completion(self, work: _Work) -> Completion:
        seconds = self._share - work.began
        accounts = tuple(
            replace(account, text=self._codec.decode(account.written)) if account.written else account
            for account in work.passage.accounts(slot_bytes=self._facts.slot_bytes, seconds=seconds)
        )
        texts = [account.text for account in accounts if account.verb == "Write"]
        reasons = [reply.finish_reason for reply in work.passage.replies if reply.finish_reason]
        return Completion(
            key=work.job.key,
            text=texts[-1] if texts else "",
            finish_reason=reasons[-1] if reasons else None,
            steps=accounts,
        )

    def _bring_back(self, error: Exception) -> None:
        """Start the engine again after it died, and queue what was in it.

        Raises:
            EngineError: It does not start, or has died too often.
        """
        self._deaths += 1
        lost, self._running = list(self._running.values()), {}
        reason = f"{type(error).__name__}: {error}"
        for work in lost:
            work.deaths += 1
        if len(lost) == 1 and lost[0].deaths > SUSPECT:
            blame = SampleError(f"the vLLM engine died {lost[0].deaths} times with this sample in it, at last {reason}")
            self._blamed.append(JobError(key=lost.pop().job.key, error=blame))
            for work in self._queue:  # it was not them
                work.deaths = min(work.deaths, SUSPECT - 1)
        self._queue.extendleft(work for work in reversed(lost) if not work.is_suspect)
        self._queue.extend(work for work in lost if work.is_suspect)
        logger.warning("the vLLM engine died (%s); %d samples in it run again", reason, len(lost))
        try:
            self.close()
        except Exception as complaint:  # noqa: BLE001 - what is broken may break again when it is put away
            logger.warning("the dead vLLM engine could not be put away: %s", complaint)
        if self._deaths >= MOST_DEATHS:
            raise EngineError(
                f"the vLLM engine died {self._deaths} times in a row, at last {reason}. Nothing that was stored is "
                "lost: the same command goes on"
            ) from error
        self._engine = self._start_again()

    def _start_again(self) -> Engine:
        """Start an engine in place of a dead one; a start that fails is tried again.

        Raises:
            EngineError: It fails too often.
        """
        while True:
            self._report(Progress(phase=Phase.LOADING))
            try:
                return self._start()
            except EngineError as error:
                self._deaths += 1
                if self._deaths >= MOST_DEATHS:
                    raise
                logger.warning("%s; trying again in %.0f s", error, SECONDS_BEFORE_A_START)
            time.sleep(SECONDS_BEFORE_A_START)

    def _forget(self, keys: Sequence[str]) -> None:
        """Take jobs back, wherever they are."""
        gone = set(keys)
        self._queue = deque(work for work in self._queue if work.job.key not in gone)
        self._done = [outcome for outcome in self._done if outcome.key not in gone]
        self._blamed = [outcome for outcome in self._blamed if outcome.key not in gone]
        names = [name for name, work in self._running.items() if work.job.key in gone]
        for name in names:
            del self._running[name]
        if names and self._engine is not None:
            self._engine.abort(names)
