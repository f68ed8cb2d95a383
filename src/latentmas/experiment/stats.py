"""Summary: the numbers of a run, computed from its records alone, so that they can be computed again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Final

from pydantic import BaseModel, ConfigDict

from latentmas.experiment.config import RunConfig
from latentmas.samples import LENIENT, FinishReason, Record, ThoughtRecord, Verdict

SUMMARY_SCHEMA: Final = 1
Z_95: Final = 1.959963984540054
"""Standard normal quantile of 0.975: intervals cover 95 %."""


class ThinkingSummary(BaseModel):
    """How thoughts changed, over all Thinks of all agents in which they were measured.

    Attributes:
        samples: Those with a Think that was measured.
        collapsed: Of them, those in which the thoughts of an agent collapsed (`collapse.collapsed_after`).
        collapsed_after: Median over these agents of the thought after which; None without any.
        thoughts: Mean number of thoughts of a Think.
        last_cosine: Mean cosine of a last thought to the one before; None where every Think has one thought.
        effective_rank: Mean over Thinks, in [1, thoughts].
        hidden_norm: Mean over thoughts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    collapsed: int
    collapsed_after: int | None
    thoughts: float
    last_cosine: float | None
    effective_rank: float
    hidden_norm: float


class Summary(BaseModel):
    """Content of ``summary.json``.

    Attributes:
        config_digest: Of the options that decide what comes out.
        samples: Samples of the run.
        n: Samples that have a record.
        complete: All of them have one.
        errors: Records that ended with an error; they count as not correct.
        ungraded: Answers without a verdict, as a run without code execution leaves them.
        first_error: The oldest of them; None without any.
        correct_strict: Of the correct ones those that were marked as the answer, and not just the last number.
        accuracy: correct / n, in [0, 1]; None while n is 0 or an answer is not graded.
        accuracy_low, accuracy_high: Ends of its 95 % Wilson interval.
        verdicts: How many records have each verdict; errors have none.
        reused_slots: Prompt tokens and thoughts that came out of a prefix cache and were not computed.
        cut_by_length: Answers that ended because `max_new_tokens` was reached.
        peak_memory_slots, peak_memory_bytes: Largest memory of any agent in any sample, without padding.
        bytes_before_handovers, bytes_after_handovers: Of all hand-overs that changed something; 0 without any.
        trial_tokens: Prompt tokens that were read once more, to see what a receiver attends to.
        thinking: How thoughts changed; None where none were measured.
        seconds: Sum over records (shares of their batches), so resuming keeps it right; loading not included.
        wall_seconds: Of the last session, loading not included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: int = SUMMARY_SCHEMA
    method: str
    model: str
    task: str
    prompt: str
    control: str
    split: str
    seed: int
    config_digest: str
    samples: int
    n: int
    complete: bool
    errors: int
    ungraded: int = 0
    first_error: str | None
    correct: int
    correct_strict: int = 0
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    verdicts: dict[Verdict, int]
    written_tokens: int
    written_tokens_per_sample: float | None
    thoughts: int
    prompt_tokens: int
    reused_slots: int = 0
    cut_by_length: int
    peak_memory_slots: int
    peak_memory_bytes: int
    bytes_before_handovers: int = 0
    bytes_after_handovers: int = 0
    trial_tokens: int = 0
    thinking: ThinkingSummary | None = None
    seconds: float
    seconds_per_sample: float | None
    wall_seconds: float


def summarize(records: Iterable[Record], *, config: RunConfig, samples: int, wall_seconds: float) -> Summary:
    """Return the numbers of a run. Reads `records` once and keeps none of them.

    Args:
        samples: How many records a complete run has.
    """
    n = errors = strict = written = thoughts = prompt = cut = slots = memory = reused = before = after = trial = 0
    seconds = 0.0
    first_error: str | None = None
    verdicts: Counter[Verdict] = Counter()
    thinking = _ThoughtSums()
    for record in records:
        n += 1
        seconds += record.seconds
        errors += record.error is not None
        first_error = first_error or record.error
        cut += record.finish_reason is FinishReason.LENGTH
        if record.verdict is not None:
            verdicts[record.verdict] += 1
        strict += record.verdict is Verdict.CORRECT and record.found_by not in LENIENT
        thinking.add([each for agent in record.agents for each in agent.thinking])
        for agent in record.agents:
            written += agent.written_tokens
            thoughts += agent.thoughts
            prompt += agent.prompt_tokens
            reused += agent.reused_slots
            slots = max(slots, agent.memory_slots)
            memory = max(memory, agent.memory_bytes)
            before += sum(handover.bytes_before for handover in agent.handovers)
            after += sum(handover.bytes_after for handover in agent.handovers)
            trial += sum(handover.trial_tokens for handover in agent.handovers)
    correct = verdicts[Verdict.CORRECT]
    ungraded = n - errors - verdicts.total()
    low, high = wilson(correct, n) if n and not ungraded else (None, None)
    return Summary(
        method=config.method,
        model=config.model_name,
        task=config.task,
        prompt=config.prompt,
        control=config.control,
        split=config.split,
        seed=config.seed,
        config_digest=config.digest,
        samples=samples,
        n=n,
        complete=n == samples,
        errors=errors,
        ungraded=ungraded,
        first_error=first_error,
        correct=correct,
        correct_strict=strict,
        accuracy=correct / n if n and not ungraded else None,
        accuracy_low=low,
        accuracy_high=high,
        verdicts={verdict: verdicts[verdict] for verdict in Verdict},
        written_tokens=written,
        written_tokens_per_sample=written / n if n else None,
        thoughts=thoughts,
        prompt_tokens=prompt,
        reused_slots=reused,
        cut_by_length=cut,
        peak_memory_slots=slots,
        peak_memory_bytes=memory,
        bytes_before_handovers=before,
        bytes_after_handovers=after,
        trial_tokens=trial,
        thinking=thinking.summary(),
        seconds=seconds,
        seconds_per_sample=seconds / n if n else None,
        wall_seconds=wall_seconds,
    )


@dataclass(slots=True)
class _ThoughtSums:
    """Sums over records; keeps none of them."""

    samples: int = 0
    collapsed: int = 0
    after: Counter[int] = field(default_factory=Counter)
    thinks: int = 0
    thoughts: int = 0
    norm: float = 0.0
    rank: float = 0.0
    cosine: float = 0.0
    with_cosine: int = 0

    def add(self, of_sample: Sequence[ThoughtRecord]) -> None:
        if not of_sample:
            return
        steps = [each.collapsed_after for each in of_sample if each.collapsed_after is not None]
        self.samples += 1
        self.collapsed += bool(steps)
        self.after.update(steps)
        for each in of_sample:
            self.thinks += 1
            self.thoughts += len(each.hidden_norms)
            self.norm += math.fsum(each.hidden_norms)
            self.rank += each.effective_rank
            if each.cosines:
                self.cosine += each.cosines[-1]
                self.with_cosine += 1

    def summary(self) -> ThinkingSummary | None:
        if not self.samples:
            return None
        return ThinkingSummary(
            samples=self.samples,
            collapsed=self.collapsed,
            collapsed_after=median_low(self.after.elements()) if self.after else None,
            thoughts=self.thoughts / self.thinks,
            last_cosine=self.cosine / self.with_cosine if self.with_cosine else None,
            effective_rank=self.rank / self.thinks,
            hidden_norm=self.norm / self.thoughts,
        )


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the ends of the Wilson score interval of a share, inside [0, 1].

    Unlike the usual mean +- z * error it keeps its coverage at small n and at shares near 0 or 1
    (Wilson 1927; Brown, Cai and DasGupta 2001, equation 4).

    Args:
        n: Trials, at least 1.
        z: Standard normal quantile; the default covers 95 %.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} trials; expected 0 to n of at least 1")
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends of the range the two terms are equal up to rounding, which must not leave a low of -1e-17.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high
