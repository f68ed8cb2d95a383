"""HFBackend: jobs in, outcomes out, on any causal language model of transformers with rotary positions."""

from __future__ import annotations

import gc
import logging
import platform
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from threading import RLock
from typing import Final, final

import torch

from latentmas.alignment import Alignment
from latentmas.backends.given import seeds_for
from latentmas.backends.hf import handover
from latentmas.backends.hf.chat import ChatCodec
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.rollout import Rollout, Row, positions_ahead, shape
from latentmas.backends.hf.verify import check_watch, try_handovers
from latentmas.backends.one_at_a_time import one_at_a_time
from latentmas.errors import ConfigError, ContextLimitError, SampleError, StoreError
from latentmas.program import Program, Write
from latentmas.protocols import (
    ArtifactSink,
    Capability,
    Capture,
    Codec,
    Completion,
    Job,
    JobError,
    Outcome,
    Phase,
    Progress,
    Report,
)
from latentmas.told import Told

logger = logging.getLogger(__name__)

CAPABILITIES: Final = frozenset(Capability)


@final
class HFBackend:
    """Runs programs in batches of one shape. Keeps the laws of DESIGN section 2.

    Several threads may call `run`, beside sessions and one user of `submit` and `collect`, who are more with a
    `SharedBackend`.

    Args:
        alignment: How hidden states become thoughts.
        batch_size: Rows of a batch; halved for good, with a warning, when memory runs out. A Join runs its branches as
            further rows.
        sink: Takes similarities and vectors while programs run.
        report: Is told what the backend does.
    """

    def __init__(
        self,
        model: LoadedModel,
        codec: ChatCodec,
        alignment: Alignment,
        *,
        batch_size: int = 20,
        model_id: str = "",
        sink: ArtifactSink | None = None,
        report: Report | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
        self.model = model
        self.alignment = alignment
        self.batch_size = batch_size
        self._codec = codec
        self._model_id = model_id
        self._sink = sink
        self._report = report
        self._watches = False
        self._tried: set[tuple[object, ...]] = set()
        self._pending: deque[Job] = deque()
        self._refused: list[Outcome] = []
        self._told = Told()
        self._lock = RLock()

    @property
    def model_id(self) -> str:
        return self._model_id

    @property
    def capabilities(self) -> frozenset[Capability]:
        return CAPABILITIES

    @property
    def capacity(self) -> int:
        return self.batch_size

    @property
    def codec(self) -> Codec:
        return self._codec

    @one_at_a_time
    def submit(self, job: Job) -> None:
        """Take a job; one that is too long for the model's context comes back from `collect` as an error.

        Raises:
            CapabilityError: This model cannot be joined, moved, filtered or watched in this way; says what it can.
        """
        handover.check(job.program, self.model)
        if not self._watches and handover.looks_at_attention(job.program):
            self._say_checking()
            check_watch(self.model)
            self._watches = True
        if (error := self._unfit(job.program)) is not None:
            self._refused.append(JobError(key=job.key, error=error))
            return
        if handover.drops(job.program) and (kind := shape(job.program)) not in self._tried:
            self._say_checking()
            try_handovers(self.model, self.alignment, job.program)
            self._tried.add(kind)
        self._pending.append(job)

    @one_at_a_time
    def collect(self) -> list[Outcome]:
        """Run the oldest jobs of one shape as a batch; return their outcomes in the order of submission."""
        outcomes, self._refused = self._refused, []
        if outcomes or not self._pending:
            return outcomes
        wanted = shape(self._pending[0].program)
        batch: list[Job] = []
        rest: deque[Job] = deque()
        while self._pending:
            job = self._pending.popleft()
            fits = len(batch) < self.batch_size and shape(job.program) == wanted
            (batch if fits else rest).append(job)
        self._pending = rest
        return self._run_batch(batch)

    @one_at_a_time
    def abort(self, key: str) -> None:
        """Take back a job that has not run yet."""
        self._pending = deque(job for job in self._pending if job.key != key)
        self._refused = [outcome for outcome in self._refused if outcome.key != key]

    @one_at_a_time
    def run(self, programs: Sequence[Program], seeds: Sequence[int] | None = None) -> list[Completion]:
        """Run programs and return their completions in order; the first error is raised.

        Jobs in flight are left alone.
        """
        seeds = seeds_for(programs, seeds)
        in_flight = self._pending, self._refused
        self._pending, self._refused = deque(), []
        done: dict[str, Completion] = {}
        try:
            for number, (program, seed) in enumerate(zip(programs, seeds, strict=True)):
                self.submit(Job(key=str(number), program=program, seed=seed))
            while len(done) < len(programs):
                for outcome in self.collect():
                    if isinstance(outcome, JobError):
                        raise outcome.error
                    done[outcome.key] = outcome
        finally:
            self._pending, self._refused = in_flight  # a run that fails leaves nothing behind
        return [replace(done[str(number)], key="") for number in range(len(programs))]

    def environment(self) -> Mapping[str, str | int | float | bool | None]:
        """Return what a manifest needs to repeat a run."""
        device = self.model.device
        return {
            "backend": "transformers",
            "model_fingerprint": self.model.fingerprint,
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.attention,
            "alignment": type(self.alignment).__name__,
            "context": self.model.context,
            "hidden_size": self.model.causal.config.get_text_config().hidden_size,
            "stop_tokens": " ".join(map(str, sorted(self.model.stop_tokens))),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        }

    def close(self) -> None:
        """Nothing runs beside this process."""

    def _say_checking(self) -> None:
        if self._report is not None:
            self._report(Progress(phase=Phase.CHECKING))

    def _unfit(self, program: Program) -> SampleError | None:
        """Return why this one program cannot run; None where it can."""
        needed, context = program.count().positions, self.model.context
        if context is not None and needed > context:
            return ContextLimitError(
                f"prompt, thoughts and new tokens need {needed} positions, the model has {context}; "
                "lower --max_new_tokens or --latent_steps"
            )
        if (error := self._crosses(program, needed)) is not None:
            return error
        try:
            self.model.check_tokens({token for read in program.reads for token in read.tokens})
        except SampleError as unknown:
            return unknown
        return None

    def _crosses(self, program: Program, needed: int) -> SampleError | None:
        """Return why a text may not grow over longrope's switch; None where it may or does not.

        There its memory is computed once more, which nobody can do after slots were dropped.
        """
        switch = self.model.switch
        if switch is None or not handover.drops(program) or not positions_ahead(program.steps) <= switch < needed:
            return None
        return ContextLimitError(
            f"the text may go from position {positions_ahead(program.steps)} to {needed}, and {self.model.kind} "
            f"rotates keys in another way beyond {switch}, for which dropped slots would be needed again; "
            "lower --max_new_tokens, or hand over everything"
        )

    def _run_batch(self, batch: Sequence[Job]) -> list[Outcome]:
        """Run a batch; when memory runs out, run its halves instead, and stay at that size.

        A batch that breaks for another reason is run row by row, so that only the job that breaks it ends.
        """
        rows = [Row(program=job.program, seed=job.seed, key=job.key) for job in batch]
        shortage = None
        try:
            Rollout(self.model, self.alignment, rows, sink=self._sink, releases=True, report=self._report).run()
        except StoreError:
            raise  # a picture that cannot be written: the disk is full for all of them
        except Exception as error:  # noqa: BLE001 - what one job breaks, other jobs do not feel (DESIGN law 6)
            if not _is_out_of_memory(error):
                return self._run_apart(batch, error)
            shortage = (str(error).splitlines() or ["no memory"])[0]
        # Outside the except block, where the traceback would keep the tensors of the failed batch alive.
        if shortage is not None:
            _free()
            if len(batch) == 1:
                error_of_one = SampleError(f"out of memory with a single sample in the batch: {shortage}")
                return [JobError(key=batch[0].key, error=error_of_one)]
            half = (len(batch) + 1) // 2
            self.batch_size = min(self.batch_size, half)
            logger.warning("out of memory with %d samples in a batch; going on with %d", len(batch), half)
            return [*self._run_batch(batch[:half]), *self._run_batch(batch[half:])]
        if self._sink is not None and Capture.EMBEDDINGS in self._sink.wants:
            for row in rows:
                self._sink.vectors(row.key, row.vectors)
        return [self._outcome(job, row) for job, row in zip(batch, rows, strict=True)]

    def _run_apart(self, batch: Sequence[Job], error: Exception) -> list[Outcome]:
        """Run the rows of a broken batch one by one; a single one ends with the error, shown the first time only."""
        first = self._told.first(error)
        if len(batch) == 1:
            if first:
                logger.error("sample %s broke the rollout", batch[0].key, exc_info=error)
            return [JobError(key=batch[0].key, error=SampleError(f"{type(error).__name__}: {error}"))]
        if first:
            logger.warning("a batch of %d broke; running its samples apart", len(batch), exc_info=error)
        return [outcome for job in batch for outcome in self._run_batch([job])]

    def _outcome(self, job: Job, row: Row) -> Outcome:
        if row.error is not None:
            return JobError(key=job.key, error=row.error)
        accounts = tuple(
            replace(account, text=self._codec.decode(account.written)) if account.written else account
            for account in row.accounts
        )
        writes = [account for account, step in zip(accounts, job.program, strict=True) if isinstance(step, Write)]
        return Completion(
            key=job.key,
            text=writes[-1].text if writes else "",
            finish_reason=row.finish_reason,
            steps=accounts,
        )


def _is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class of its own; the CPU allocator raises a RuntimeError with this sentence."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
