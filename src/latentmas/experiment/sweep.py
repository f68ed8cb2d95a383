"""A grid of hand-overs on one task: accuracy against what is kept, for filters, protected thoughts and positions.

Every cell is a run folder of its own, so a sweep can be killed and goes on where it stopped. The model is loaded once.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, Protocol

from latentmas.errors import ConfigError, RunFolderError
from latentmas.experiment import compose, effects, runner
from latentmas.experiment.atomic import replace_text
from latentmas.experiment.config import RunConfig
from latentmas.experiment.manifest import RunIdentity, stored_date
from latentmas.experiment.stats import wilson
from latentmas.experiment.store import RunFolder
from latentmas.protocols import Backend, Progress
from latentmas.samples import Record, Verdict

logger = logging.getLogger(__name__)

FULL: Final = "full"


class Witness(Protocol):
    """Is told how a sweep goes."""

    agents: Sequence[str]

    def stored_before(self, verdict: Verdict | None) -> None:
        """Count a sample that an earlier session finished."""
        ...

    def report(self, progress: Progress) -> None: ...
    def answered(self) -> None: ...
    def graded(self, verdict: Verdict | None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One hand-over to try.

    Attributes:
        filter: Name of a filter; ``knn-top``, ``knn-bottom``, ``knn-random`` are the published one; ``full`` is none.
        thoughts: Latent thoughts are protected.
    """

    filter: str
    thoughts: bool
    positions: str
    keep: float

    @property
    def options(self) -> Mapping[str, object]:
        """Return how a run is told."""
        if self.filter == FULL:
            return {}
        if self.filter.startswith("knn-"):
            return {
                "knn_filter": True,
                "knn_strategy": self.filter.removeprefix("knn-"),
                "knn_percentage": self.keep,
                "positions": self.positions,
                "protect_thoughts": self.thoughts,
            }
        return {
            "filter": self.filter,
            "keep": self.keep,
            "positions": self.positions,
            "protect_thoughts": self.thoughts,
        }

    @property
    def folder(self) -> str:
        if self.filter == FULL:
            return FULL
        name = self.filter.replace("/", "_").replace(":", "_")
        return f"{name}-{'thoughts' if self.thoughts else 'bare'}-{self.positions}-{self.keep:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What came of a cell.

    Attributes:
        kept: Share of the slots before a hand-over that were there after it, over all hand-overs of all samples.
        low, high: 95 % Wilson interval of the accuracy.
    """

    filter: str
    thoughts: bool
    positions: str
    keep: float
    kept: float
    n: int
    correct: int
    errors: int
    accuracy: float
    low: float
    high: float


def cells(filters: Sequence[str], keeps: Sequence[float], positions: Sequence[str]) -> list[Cell]:
    """Return the grid: the full hand-over, then each filter with each share below 1 and way of placing slots.

    Where thoughts can be protected, a filter is tried without that as well, with true positions. The published filter
    is as published.
    """
    grid = [Cell(filter=FULL, thoughts=False, positions="true", keep=1.0)]
    shares = [keep for keep in keeps if keep < 1]
    for name in filters:
        if name.startswith("knn-"):
            variants = [(False, policy) for policy in positions]
        else:
            variants = [(True, policy) for policy in positions]
            variants += [(False, "true")] * ("true" in positions and name != "sink_thoughts")
        grid += [
            Cell(filter=name, thoughts=thoughts, positions=policy, keep=keep)
            for thoughts, policy in variants
            for keep in shares
        ]
    return grid


def sweep(
    grid: Sequence[Cell],
    *,
    options: Mapping[str, object],
    folder: Path,
    show: Callable[[int, int], Witness],
) -> Iterator[Point]:
    """Run every cell and yield what came of it.

    Args:
        options: Of every run: model, task, samples, thoughts.
        show: Given the number of samples in all and in each cell, returns whom to tell how it goes.

    Raises:
        LatentMASError: A cell cannot be run; all of them are checked before weights are loaded.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file, and runs need a folder; choose another --output_dir")
    plans = []
    # All cells show their models the same day, also those that a later session adds.
    begun = next(filter(None, (stored_date(folder / cell.folder) for cell in grid)), None)
    for cell in grid:
        config = RunConfig.from_options({**options, **cell.options, "output_dir": folder / cell.folder})
        if config.use_vllm:
            raise ConfigError("hand-overs that filter memory run on the transformers backend; drop --use_vllm")
        plans.append(compose.check(config, begun=begun))
    if not plans[0].situation.has_template:
        logger.warning("%s", effects.NO_TEMPLATE)
    witness = show(sum(len(plan.samples) for plan in plans), len(plans[0].samples))
    backend: Backend | None = None
    try:
        for cell, plan in zip(grid, plans, strict=True):
            identity = RunIdentity(
                config=plan.config,
                prompt_digest=plan.prompt_digest,
                data_digest=plan.data_digest,
                sample_ids=tuple(sample.id for sample in plan.samples),
                date=plan.date,
                samples=plan.samples,
                meaning=plan.meaning,
                filter_digest=plan.notes.get("filter_digest"),
            )
            with RunFolder.open(plan.config.folder, identity) as store:
                for record in store.records():
                    witness.stored_before(record.verdict)
                waiting = [sample for sample in plan.samples if sample.id not in store.done_ids]
                if waiting:
                    backend = backend or plan.open(witness.report).backend
                    witness.agents = tuple(plan.method.roles)
                    store.begin({**backend.environment(), **plan.notes})
                    runner.run(
                        waiting,
                        method=plan.method,
                        backend=backend,
                        store=store,
                        seed=plan.config.seed,
                        scorer=plan.grading.scorer,
                        withhold=plan.withhold,
                        on_record=lambda record: witness.graded(record.verdict),
                        on_answer=witness.answered,
                    )
                records = list(store.records())
            yield _point(cell, records)
    finally:
        if backend is not None:
            backend.close()


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Write one line per cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    for point in points:
        writer.writerow(
            {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(point).items()}
        )
    replace_text(path, text.getvalue())


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """Draw accuracy against the share kept: a panel for each way of placing slots, a line for each filter."""
    from matplotlib.figure import Figure

    full = next(point for point in points if point.filter == FULL)
    others = [point for point in points if point.filter != FULL]
    panels = list(dict.fromkeys(point.positions for point in others))
    names = list(dict.fromkeys(point.filter for point in others))
    figure = Figure(figsize=(5 * max(1, len(panels)) + 2.2, 4.8), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0]
    for axis, policy in zip(axes, panels, strict=False):
        axis.axhspan(full.low, full.high, color="0.88")
        axis.axhline(full.accuracy, color="0.4", linewidth=1, linestyle=":", label="full cache")
        for number, name in enumerate(names):
            for thoughts in (True, False):
                own = [p for p in others if (p.positions, p.filter, p.thoughts) == (policy, name, thoughts)]
                if own:
                    line = sorted((p.keep, p.accuracy) for p in [full, *own])
                    axis.plot(
                        [x for x, _ in line],
                        [y for _, y in line],
                        color=f"C{number}",
                        linestyle="-" if thoughts else "--",
                        marker="o",
                        markersize=3,
                        linewidth=1.4,
                        label=f"{name}, thoughts protected" if thoughts else name,
                    )
        axis.set_title(f"positions {policy}")
        axis.set_xlabel("kept at each hand-over")
        axis.invert_xaxis()
        axis.set_ylim(-0.02, 1.03)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("accuracy")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def _point(cell: Cell, records: Sequence[Record]) -> Point:
    handed = [handover for record in records for agent in record.agents for handover in agent.handovers]
    before = sum(handover.slots_before for handover in handed)
    correct = sum(record.verdict is Verdict.CORRECT for record in records)
    low, high = wilson(correct, len(records))
    return Point(
        **asdict(cell),
        kept=sum(handover.slots_after for handover in handed) / before if before else 1.0,
        n=len(records),
        correct=correct,
        errors=sum(record.error is not None for record in records),
        accuracy=correct / len(records),
        low=low,
        high=high,
    )
