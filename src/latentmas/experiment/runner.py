"""The main path: samples go in, records come out.

    Task --samples()--> Sample --Method--> Program --Backend--> Completion --> Answer --Scorer--> Score --> Record

`run` keeps as many samples in flight as the backend has room for. Each sample is one generator of its method: it
yields a program, gets the completion, and goes on until it returns an answer. Answers are graded beside that, and
records are stored in the order in which answers came.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, field, replace
from typing import Final, Protocol

from latentmas.errors import ConfigError, EngineError, LatentMASError, SampleError, shown
from latentmas.experiment.first_batch import FirstBatch
from latentmas.experiment.grading import InPlace, result_of
from latentmas.program import Program, Read
from latentmas.protocols import (
    Backend,
    Completion,
    HandoverAccount,
    Job,
    JobError,
    Method,
    Outcome,
    Scorer,
    StepAccount,
    ThoughtAccount,
)
from latentmas.samples import (
    AgentRecord,
    Answer,
    HandoverRecord,
    HandoverShareRecord,
    Record,
    Sample,
    Score,
    ThoughtRecord,
)
from latentmas.thinking import opens_thought
from latentmas.told import Told

logger = logging.getLogger(__name__)

WITHHELD: Final = "(withheld: the makers of the data set ask not to show its texts)"
FEWEST_UNGRADED: Final = 8
MOST_UNGRADED: Final = 64
"""Answers that may wait for their verdict: as many as a batch has, within these bounds. A run that is killed loses no
more than those and a batch."""


class RecordStore(Protocol):
    """Where finished records go. `append` returns only when the record is safe."""

    def append(self, record: Record) -> None: ...


def run(
    samples: Iterable[Sample],
    *,
    method: Method,
    backend: Backend,
    store: RecordStore,
    seed: int,
    scorer: Scorer | None = None,
    graders: Executor | None = None,
    save_ids: bool = False,
    withhold: bool = False,
    stops: bool = False,
    on_record: Callable[[Record], None] = lambda record: None,
    on_answer: Callable[[], None] = lambda: None,
) -> None:
    """Answer, grade and store every sample, `backend.capacity` at a time.

    Args:
        scorer: Grades answers; without one records have no verdict.
        graders: Where it runs; None is here and at once.
        seed: With the id of a sample it fixes all randomness of that sample: batch size, order and resuming do not.
        save_ids: Store the token ids of prompts and texts as well.
        withhold: Leave questions, options and prompts out of the records.
        stops: End when the whole first batch fails alike, and store none of it; for a run without an answer so far.
        on_record: Called after each record is stored.
        on_answer: Called when a sample is through, or has come to nothing; grading and storing come later.

    Raises:
        ConfigError: Something that was given is of another kind, or two samples have one id; nothing has run then.
        EngineError: The backend is lost, or has lost jobs. What was answered before is stored.
        RunStoppedError: The first batch failed alike, and `stops` says so.
    """
    waiting = _checked(samples, method, backend, store, seed)
    first = FirstBatch(min(backend.capacity, len(waiting))) if stops and waiting else None
    told = Told()
    active: dict[str, _InFlight] = {}
    broken: set[str] = set()
    ungraded: deque[tuple[Record, Future[Score] | None]] = deque()
    graders = graders or InPlace()

    def store_graded(*, leave: int) -> None:
        """Store records from the oldest on while they are graded, waiting where more than `leave` are not."""
        while ungraded and (len(ungraded) > leave or (score := ungraded[0][1]) is None or score.done()):
            record, score = ungraded[0]
            if score is not None and (graded := result_of(score)) is not None:
                record = record.graded(graded)
            ungraded.popleft()
            store.append(record)
            on_record(record)

    try:
        while waiting or active:
            outcomes: list[Outcome] = []
            while waiting and len(active) < backend.capacity:
                work = _InFlight(sample=waiting.popleft(), generator=None, seed=seed)
                active[work.sample.id] = work
                outcomes += work.start(method, backend)
            if not outcomes:
                outcomes = _collect(backend, active, broken, told)
            for outcome in outcomes:
                if outcome.key not in active:
                    _check_late(outcome, broken)
                    continue
                if (record := active[outcome.key].advance(outcome, method, backend, save_ids)) is not None:
                    del active[outcome.key]
                    on_answer()
                    for ready in [record] if first is None else first.ready(record):
                        answered = ready.answered() if scorer else None
                        score = graders.submit(scorer, *answered) if scorer and answered else None
                        ungraded.append((_withheld(ready) if withhold else ready, score))
                    store_graded(leave=len(ungraded))
            # Nobody waits for a verdict before all answers of a batch are counted.
            store_graded(leave=min(max(FEWEST_UNGRADED, backend.capacity), MOST_UNGRADED))
    except EngineError:  # an engine that is lost must not take along what was answered
        store_graded(leave=0)
        raise
    store_graded(leave=0)


def _checked(
    samples: Iterable[Sample], method: Method, backend: Backend, store: RecordStore, seed: int
) -> deque[Sample]:
    """Return the samples; refuse what would end the run in the middle of it.

    Raises:
        ConfigError: Says what was given.
    """
    if not isinstance(seed, int):
        raise ConfigError(f"seed is {shown(seed)}; expected a whole number")
    for name, given, verb in (("method", method, "solve"), ("backend", backend, "submit"), ("store", store, "append")):
        if not callable(getattr(given, verb, None)):
            raise ConfigError(f"{name} is {shown(given)}, which has no {verb}()")
    if isinstance(samples, str) or not isinstance(samples, Iterable):
        raise ConfigError(f"samples are {shown(samples)}; expected a list of Sample(id=..., question=..., target=...)")
    checked: dict[str, Sample] = {}
    for sample in samples:
        if not isinstance(sample, Sample):
            raise ConfigError(f"a sample is {shown(sample)}; expected Sample(id=..., question=..., target=...)")
        if sample.id in checked:
            raise ConfigError(f"two samples have the id {sample.id!r}; the record of one would be lost")
        checked[sample.id] = sample
    return deque(checked.values())


def job_seed(run_seed: int, sample_id: str, program_number: int) -> int:
    """Return 63 bits that depend on nothing but the run, the sample and which of its programs this is."""
    material = f"{run_seed}\x1f{sample_id}\x1f{program_number}".encode()
    return int.from_bytes(hashlib.sha256(material).digest()[:8], "big") >> 1


def _collect(backend: Backend, active: Mapping[str, _InFlight], broken: set[str], told: Told) -> list[Outcome]:
    """Collect; a batch that broke ends the samples in flight with an error, and the run goes on.

    Args:
        broken: Samples that ended so; those in flight are added.
        told: What has been shown.

    Raises:
        EngineError: The backend has nothing although samples are in flight.
    """
    try:
        outcomes = backend.collect()
    except LatentMASError:
        raise
    except Exception as error:  # broad: what breaks a backend as a whole must not lose the run
        if told.first(error):
            logger.exception("a batch broke; its %d samples end with an error", len(active))
        failed = SampleError(f"{type(error).__name__}: {error}")
        broken.update(active)
        return [JobError(key=key, error=failed) for key in active]
    if (twice := _twice(outcomes)) is not None:
        raise EngineError(
            f"the backend returned two outcomes of job {twice!r} at once, and one of them is not its own; a backend "
            "that several threads use needs a SharedBackend, with a client for each"
        )
    if not outcomes:
        raise EngineError(
            f"the backend has lost {len(active)} job{'s' * (len(active) != 1)}: it has nothing left to return; "
            "a backend that several threads use needs a SharedBackend, with a client for each"
        )
    return outcomes


def _twice(outcomes: Sequence[Outcome]) -> str | None:
    """Return a key that two outcomes have; None where each has its own."""
    seen: set[str] = set()
    for outcome in outcomes:
        if outcome.key in seen:
            return outcome.key
        seen.add(outcome.key)
    return None


def _check_late(outcome: Outcome, broken: Collection[str]) -> None:
    """Refuse the outcome of a job that is not in flight, unless its sample has ended already, in a batch that broke.

    Raises:
        EngineError: It is somebody else's, who waits for it.
    """
    if outcome.key not in broken:
        raise EngineError(
            f"the backend returned an outcome of job {outcome.key!r}, which is not in flight here; a backend that "
            "several threads use needs a SharedBackend, with a client for each"
        )


@dataclass(slots=True)
class _InFlight:
    """One sample on its way from question to record."""

    sample: Sample
    generator: Generator[Program, Completion, Answer] | None
    seed: int
    program: Program | None = None
    programs: int = 0
    turns: list[AgentRecord] = field(default_factory=list)

    def start(self, method: Method, backend: Backend) -> list[Outcome]:
        """Submit the first program. What cannot even start comes back as an error."""
        self.generator = method.solve(self.sample)
        try:
            self._submit(next(self.generator), backend)
        except SampleError as error:
            return [JobError(key=self.sample.id, error=error)]
        return []

    def advance(self, outcome: Outcome, method: Method, backend: Backend, save_ids: bool) -> Record | None:
        """Take an outcome; return the record, not graded yet, once the sample is done."""
        if isinstance(outcome, JobError):
            return self._record(method, error=outcome.error)
        assert self.generator is not None
        assert self.program is not None
        self.turns += _turns(self.program, outcome, method.roles, save_ids)
        try:
            self._submit(self.generator.send(outcome), backend)
        except StopIteration as finished:
            return self._record(method, answer=finished.value)
        except SampleError as error:
            return self._record(method, error=error)
        return None

    def _submit(self, program: Program, backend: Backend) -> None:
        self.program = program
        seed = job_seed(self.seed, self.sample.id, self.programs)
        self.programs += 1
        backend.submit(Job(key=self.sample.id, program=program, seed=seed))

    def _record(self, method: Method, *, answer: Answer | None = None, error: SampleError | None = None) -> Record:
        return Record(
            id=self.sample.id,
            question=self.sample.question,
            target=self.sample.target,
            prediction=None,
            verdict=None,
            found_by=None,
            text=answer.text if answer else "",
            finish_reason=answer.finish_reason if answer else None,
            error=f"{type(error).__name__}: {error}" if error else None,
            donor=method.donor_of(self.sample),
            agents=tuple(self.turns),
            labels=self.sample.labels,
            options=self.sample.options,
            entry_point=self.sample.entry_point,
            in_thought=answer is not None and _opens_thought(self.program),
        )


def _opens_thought(program: Program | None) -> bool:
    """Whether the last prompt ends with an opened thought."""
    reads = [step for step in program or () if isinstance(step, Read)]
    return bool(reads) and opens_thought(reads[-1].text)


def _withheld(record: Record) -> Record:
    """Return the record without the texts of the data set, and without token ids that could be decoded to them."""
    agents = tuple(agent.model_copy(update={"prompt": WITHHELD, "prompt_ids": None}) for agent in record.agents)
    return record.model_copy(update={"question": WITHHELD, "options": (), "agents": agents})


def _turns(program: Program, completion: Completion, roles: Mapping[str, str], save_ids: bool) -> list[AgentRecord]:
    """Fold the account of each step into one record per agent, in the order of their turns."""
    prompts: dict[str, list[Read]] = {}
    for read in program.reads:
        # Who is heard through two branches of a Join reads its prompt in each of them.
        if read not in (of_agent := prompts.setdefault(read.agent, [])):
            of_agent.append(read)
    turns = []
    steps = list(_flat(completion.steps))
    for name in dict.fromkeys(step.agent for step in steps):
        # A hand-over belongs to what comes after it: the memory of a turn is what the agent itself left.
        own = [step for step in steps if step.agent == name and step.verb != "Handover"]
        prompt_ids = tuple(token for read in prompts.get(name, []) for token in read.tokens)
        written = tuple(token for step in own for token in step.written)
        turns.append(
            AgentRecord(
                name=name,
                role=roles.get(name, name),
                prompt="".join(read.text for read in prompts.get(name, [])),
                prompt_tokens=sum(step.prompt_tokens for step in own),
                thoughts=sum(step.thoughts for step in own),
                written_tokens=len(written),
                text="".join(step.text for step in own),
                memory_slots=own[-1].slots,
                memory_bytes=own[-1].memory_bytes,
                seconds=sum(step.seconds for step in steps if step.agent == name),
                reused_slots=sum(step.reused_slots for step in own),
                prompt_ids=prompt_ids if save_ids else None,
                written_ids=written if save_ids else None,
                handovers=tuple(_handover(step.handover) for step in steps if step.agent == name and step.handover),
                thinking=tuple(_thinking(step.thinking) for step in own if step.thinking),
            )
        )
    return turns


def _flat(steps: Iterable[StepAccount]) -> Iterator[StepAccount]:
    """Yield what agents did, in branches as well; joining is nobody's turn, its time goes to whom it was done for."""
    joining = 0.0
    for step in steps:
        for branch in step.branches:
            yield from _flat(branch)
        if step.verb in {"Join", "Recall"}:
            joining += step.seconds
        else:
            yield replace(step, seconds=step.seconds + joining)
            joining = 0.0


def _handover(account: HandoverAccount) -> HandoverRecord:
    shares = tuple(HandoverShareRecord(**asdict(share)) for share in account.shares)
    return HandoverRecord(
        keep=account.keep,
        positions=account.positions,
        storage=account.storage,
        slots_before=sum(share.slots_before for share in shares),
        slots_after=sum(share.slots_after for share in shares),
        bytes_before=sum(share.bytes_before for share in shares),
        bytes_after=sum(share.bytes_after for share in shares),
        storage_before=account.storage_before,
        storage_after=account.storage_after,
        stored_bytes=account.stored_bytes,
        shares=shares,
        trial_tokens=account.trial_tokens,
        key_error=account.key_error,
        value_error=account.value_error,
    )


def _thinking(account: ThoughtAccount) -> ThoughtRecord:
    """Return what is stored: as many digits as say something, because thoughts depend on rounding in a batch."""
    return ThoughtRecord(
        cosines=tuple(round(cosine, 3) for cosine in account.cosines),
        hidden_norms=tuple(float(f"{norm:.4g}") for norm in account.hidden_norms),
        effective_rank=round(account.effective_rank, 2),
        collapsed_after=account.collapsed_after,
    )
