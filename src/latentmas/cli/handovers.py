"""``latentmas handovers``: what can be dropped between agents? A table of accuracy against the share kept."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from latentmas.cli._pace import Pace
from latentmas.cli._terminal import announced, progress, sigterm_interrupts, silence_transformers, warnings_shown
from latentmas.cli.run import FAILED, INTERRUPTED, say
from latentmas.errors import ConfigError

if TYPE_CHECKING:  # --help needs none of it
    from latentmas.experiment import sweep

POSITIONS: Final = "true,rerotate,published"
KEEPS: Final = "1,0.9,0.8,0.7,0.6,0.5,0.4,0.3"


def command(
    *,
    model_name: Annotated[str, typer.Option("--model_name", help="As for `latentmas run`.")] = "tiny",
    task: Annotated[str, typer.Option("--task", help="As for `latentmas run`.")] = "tiny_split",
    max_samples: Annotated[int, typer.Option("--max_samples", min=1, help="Questions in each cell.")] = 200,
    latent_steps: Annotated[int, typer.Option("--latent_steps", min=0, help="Thoughts per agent.")] = 5,
    filters: Annotated[
        str,
        typer.Option("--filters", help="Names separated by commas; knn-top, knn-bottom and knn-random as published."),
    ] = "receiver,sender,key_difference,key_norm,recency,sink_thoughts,random,knn-top,knn-bottom,knn-random",
    keeps: Annotated[str, typer.Option("--keeps", help="Shares of the memory kept at each hand-over.")] = KEEPS,
    positions: Annotated[str, typer.Option("--positions", help="Ways of placing what is left.")] = POSITIONS,
    generate_bs: Annotated[int, typer.Option("--generate_bs", min=1, help="Samples that share a batch.")] = 100,
    device: Annotated[str, typer.Option("--device", help="As for `latentmas run`.")] = "auto",
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder of all runs, table and picture.")] = Path(
        "runs/handovers"
    ),
) -> int:
    """Run every filter with every share kept and every way of placing slots; greedy, with Wilson intervals.

    Leaves handovers.csv, handovers.png and a run folder for each cell. The same command goes on where it stopped.

    [bold]The table in the docs (about half an hour on one core):[/bold]

      latentmas handovers

    [bold]One question of it:[/bold]

      latentmas handovers --filters receiver,random --keeps 1,0.5 --positions true
    """
    from latentmas.experiment import sweep

    console = Console(stderr=True)
    grid = sweep.cells(
        _names(filters, "receiver,random"),
        [_share(word) for word in _names(keeps, "1,0.5")],
        _names(positions, "true,rerotate"),
    )
    options = {
        "method": "latent_mas",
        "model_name": model_name,
        "task": task,
        "max_samples": max_samples,
        "latent_steps": latent_steps,
        "temperature": 0.0,
        "generate_bs": generate_bs,
        "device": device,
    }
    points: list[sweep.Point] = []
    try:
        with sigterm_interrupts(), warnings_shown(console), ExitStack() as stack:
            checking = ExitStack()
            stack.enter_context(checking).enter_context(announced(console, f"checking {len(grid)} runs"))

            def show(total: int, cell: int) -> Pace:
                checking.close()
                silence_transformers()  # which the checks have imported
                return stack.enter_context(progress(console, Pace(total=total, run=cell)))

            points += sweep.sweep(grid, options=options, folder=output_dir, show=show)
    except KeyboardInterrupt:
        say(console, "interrupted; the same command goes on")
        return INTERRUPTED
    sweep.write_csv(points, output_dir / "handovers.csv")
    title = f"{task} with {model_name}, {latent_steps} thoughts per agent, n = {points[0].n} per point"
    sweep.draw(points, output_dir / "handovers.png", title)
    Console().print(_table(points))
    say(console, f"{output_dir / 'handovers.csv'} and {output_dir / 'handovers.png'}")
    return FAILED if any(point.errors == point.n for point in points) else 0


def _table(points: list[sweep.Point]) -> Table:
    """Return accuracies in per cent, a line for each filter and way of placing slots, a column for each share."""
    from latentmas.experiment import sweep

    keeps = sorted({point.keep for point in points}, reverse=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("filter", no_wrap=True)
    table.add_column("thoughts", no_wrap=True)
    table.add_column("positions", no_wrap=True)
    for keep in keeps:
        table.add_column(f"{keep:g}", justify="right", no_wrap=True)
    lines: dict[tuple[str, bool, str], dict[float, float]] = {}
    for point in points:
        lines.setdefault((point.filter, point.thoughts, point.positions), {})[point.keep] = point.accuracy
    everything = lines[sweep.FULL, False, "true"]
    for (name, thoughts, policy), own in lines.items():
        found = {**everything, **own}  # keeping all is the same for every filter, to the last bit
        shares = (f"{100 * found[keep]:.1f}" if keep in found else "" for keep in keeps)
        table.add_row(name, "kept" if thoughts else "", policy, *shares)
    return table


def _names(words: str, such_as: str) -> list[str]:
    if not (found := [word.strip() for word in words.split(",") if word.strip()]):
        raise ConfigError(f"{words!r} holds no word; expected words separated by commas, such as {such_as}")
    return found


def _share(word: str) -> float:
    try:
        share = float(word)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ConfigError(f"--keeps has {word!r}; expected shares in (0, 1], separated by commas")
    return share
