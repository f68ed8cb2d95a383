"""Reports: a summary as a table for people, and as the one JSON object the published code ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from latentmas.experiment.stats import Summary, ThinkingSummary, wilson
from latentmas.samples import LENIENT, Score, Verdict

NOT_CORRECT: Final = {
    Verdict.WRONG: "wrong",
    Verdict.NO_ANSWER: "none",
    Verdict.TIMEOUT: "time",
    Verdict.CRASHED: "crash",
}
"""Short heads for an ordinary terminal."""
COLLAPSED: Final = (
    "Collapsed thoughts repeat one vector: try --alignment soft or fewer --latent_steps (docs/thoughts.md)."
)


def published(summary: Summary) -> dict[str, str | int | float | None]:
    """Return the last line a run prints, with exactly the keys of the published code, in its order.

    ``max_samples`` is the number of questions, as there; seconds are the sum over records.
    """
    return {
        "method": summary.method,
        "model": summary.model,
        "split": summary.split,
        "seed": summary.seed,
        "max_samples": summary.samples,
        "accuracy": summary.accuracy,
        "correct": summary.correct,
        "total_time_sec": round(summary.seconds, 4),
        "time_per_sample_sec": None if summary.seconds_per_sample is None else round(summary.seconds_per_sample, 4),
    }


def table(summary: Summary) -> Table:
    """Return the numbers for a terminal: one line each, with the share per sample where that says more."""
    finished = f"{summary.n}" if summary.complete else f"{summary.n} of {summary.samples}"
    arm = "" if summary.control == "none" else f", control {summary.control}"
    title = f"{summary.method} on {summary.task} with {summary.model}{arm}"
    # A title is broken at the width of its table, however wide the terminal is.
    result = Table(title=title, title_justify="left", min_width=len(title))
    result.add_column("")
    result.add_column("run", justify="right")
    result.add_column("per sample", justify="right")
    result.add_row("samples", finished)
    result.add_row("accuracy", f"{_percent(summary.accuracy)} ({summary.correct} of {summary.n})")
    result.add_row("  95 % interval (Wilson)", f"{_percent(summary.accuracy_low)} - {_percent(summary.accuracy_high)}")
    if summary.correct_strict != summary.correct:
        strict = summary.correct_strict / summary.n
        result.add_row("  strict: box or marker only", f"{_percent(strict)} ({summary.correct_strict} of {summary.n})")
    for verdict, count in summary.verdicts.items():
        if count and verdict is not Verdict.CORRECT:
            result.add_row(f"  {verdict.value.replace('_', ' ')}", str(count))
    result.add_row("  errors (not correct)", str(summary.errors))
    if summary.ungraded:
        result.add_row("  not graded yet", str(summary.ungraded))
    result.add_row("answers cut by length", str(summary.cut_by_length))
    for name, total in (
        ("written tokens", summary.written_tokens),
        ("thoughts", summary.thoughts),
        ("prompt tokens", summary.prompt_tokens),
        ("  reused, not computed", summary.reused_slots),
        ("  read on trial as well", summary.trial_tokens),
    ):
        if name.startswith(" ") and not total:
            continue
        result.add_row(name, f"{total:,}", f"{total / summary.n:,.1f}" if summary.n else "-")
    result.add_row(
        "peak memory, one sample", f"{summary.peak_memory_slots:,} slots, {_bytes(summary.peak_memory_bytes)}"
    )
    if summary.bytes_before_handovers:
        kept = summary.bytes_after_handovers / summary.bytes_before_handovers
        result.add_row("memory kept at hand-overs", _percent(kept))
    if summary.thinking is not None:
        _add_thinking(result, summary.thinking)
    per_sample = "-" if summary.seconds_per_sample is None else f"{summary.seconds_per_sample:.2f}"
    result.add_row("seconds", f"{summary.seconds:,.1f}", per_sample)
    return result


def _add_thinking(result: Table, thinking: ThinkingSummary) -> None:
    """Add how thoughts changed, and what to do where they did not."""
    after = f"after step {thinking.collapsed_after} in " if thinking.collapsed else "in "
    result.add_row("thoughts collapsed", f"{after}{thinking.collapsed} of {thinking.samples} samples")
    if thinking.last_cosine is not None:
        result.add_row("  cosine to the one before", f"{thinking.last_cosine:.3f}")
    result.add_row("  effective rank", f"{thinking.effective_rank:.1f} of {thinking.thoughts:.4g}")
    result.add_row("  norm of hidden states", f"{thinking.hidden_norm:.4g}")
    if thinking.collapsed:
        result.caption, result.caption_justify = COLLAPSED, "left"


@dataclass(slots=True)
class Tally:
    """Verdicts of graded answers, by task."""

    scores: dict[str, list[Score]] = field(default_factory=dict)

    def add(self, task: str, score: Score) -> None:
        self.scores.setdefault(task, []).append(replace(score, prediction=None, detail=None))

    def table(self) -> Table:
        """Return accuracies with 95 % Wilson intervals, strict ones, and how many have each other verdict."""
        result = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        result.add_column("task", no_wrap=True)
        for name in ("n", "accuracy % (95 %)", "strict", *NOT_CORRECT.values()):
            result.add_column(name, justify="right", no_wrap=True)
        for task, scores in self.scores.items():
            correct = [score for score in scores if score.verdict is Verdict.CORRECT]
            strict = sum(score.found_by not in LENIENT for score in correct)
            low, high = wilson(len(correct), len(scores))
            result.add_row(
                task,
                f"{len(scores):,}",
                f"{_percent(len(correct) / len(scores))} ({_percent(low)}-{_percent(high)})".replace(" %", ""),
                _percent(strict / len(scores)).replace(" %", ""),
                *(str(sum(score.verdict is verdict for score in scores)) for verdict in NOT_CORRECT),
            )
        return result


def comparison(runs: Sequence[tuple[str, Summary]]) -> Table:
    """Return several runs side by side, one line each, with costs per sample; as wide as an ordinary terminal.

    Args:
        runs: What to call each run, and its numbers. Runs of one task stand together under its name.
    """
    result = Table(box=SIMPLE_HEAD, pad_edge=False)
    result.add_column("per sample", min_width=20)
    for name in ("accuracy % (95 %)", "written", "thoughts", "prompt", "ms"):
        result.add_column(name, justify="right", no_wrap=True)
    task = None
    for name, summary in runs:
        if summary.task != task:
            task = summary.task
            result.add_row(task, style="bold")
        count = summary.n or 1
        interval = f"({_percent(summary.accuracy_low)}-{_percent(summary.accuracy_high)})" if summary.n else ""
        result.add_row(
            f"  {name}",
            f"{_percent(summary.accuracy)} {interval}".replace(" %", "").strip(),
            f"{summary.written_tokens / count:,.1f}",
            f"{summary.thoughts / count:,.1f}",
            f"{summary.prompt_tokens / count:,.0f}",
            f"{1000 * summary.seconds / count:,.1f}",
        )
    return result


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _bytes(amount: int) -> str:
    size, unit = float(amount), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
