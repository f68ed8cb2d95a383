"""``latentmas demo``: the main job on the embedded model, with the controls that give its numbers a meaning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from latentmas.cli._terminal import sigterm_interrupts, warnings_shown
from latentmas.cli.run import FAILED, INTERRUPTED, say, work
from latentmas.experiment import report
from latentmas.experiment.config import RunConfig
from latentmas.experiment.stats import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of the demo: a name for people, and the options in which it differs from the others."""

    name: str
    task: str
    method: str = "latent_mas"
    handover: str = "full"
    control: str = "none"


CELLS: Final = (
    Cell(name="one agent", task="tiny", method="baseline"),
    Cell(name="team, text", task="tiny", method="text_mas"),
    Cell(name="team, latent", task="tiny"),
    Cell(name="one agent", task="tiny_split", method="baseline"),
    Cell(name="team, text", task="tiny_split", method="text_mas"),
    Cell(name="team, latent", task="tiny_split"),
    Cell(name="  no transfer", task="tiny_split", control="no_transfer"),
    Cell(name="  other question", task="tiny_split", control="other_question"),
    Cell(name="  thoughts only", task="tiny_split", handover="thoughts"),
    Cell(name="    noise", task="tiny_split", handover="thoughts", control="noise"),
    Cell(
        name="    other question",
        task="tiny_split",
        handover="thoughts",
        control="other_question",
    ),
)


def command(
    max_samples: Annotated[int, typer.Option("--max_samples", min=2, help="Problems in each cell.")] = 300,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Folder for the runs. Default: a new one under runs/.")
    ] = None,
) -> int:
    """Run baseline, text_mas and latent_mas on the embedded model, offline, with controls.

    In the task tiny every agent reads the whole problem. In tiny_split each agent holds a part of the facts and the
    last one sees only the question: right answers prove that the facts crossed.

    Greedy, 5 thoughts per agent, held-out problems. The model was trained for this; real models were not.
    """
    console = Console(stderr=True)
    folder = output_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        with sigterm_interrupts(), warnings_shown(console):
            summaries = list(_summaries(folder, max_samples, console))
    except KeyboardInterrupt:
        say(console, f"interrupted; `latentmas demo --output_dir {folder}` goes on")
        return INTERRUPTED
    Console().print(report.comparison([(cell.name, summary) for cell, summary in zip(CELLS, summaries, strict=True)]))
    return FAILED if any(summary.errors for summary in summaries) else 0


def _summaries(folder: Path, max_samples: int, console: Console) -> Iterator[Summary]:
    from latentmas.experiment import compose, models

    for number, cell in enumerate(CELLS, start=1):
        config = RunConfig.from_options(
            {
                "method": cell.method,
                "task": cell.task,
                "handover": cell.handover,
                "control": cell.control,
                "model_name": models.EMBEDDED,
                "max_samples": max_samples,
                "latent_steps": 5,
                "temperature": 0.0,
                "generate_bs": 50,
                "output_dir": folder / f"{number:02}-{cell.task}-{cell.method}-{cell.handover}-{cell.control}",
            }
        )
        yield work(compose.check(config), console)
