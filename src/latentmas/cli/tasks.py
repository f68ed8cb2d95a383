"""``latentmas tasks``: what there is to answer."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from latentmas.protocols import Task


def command(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Sources, revisions, columns and recommended options as well.")
    ] = False,
) -> int:
    """List the tasks: size, answer kind, licence, and whether the hub asks for terms to be accepted.

    Every task also reads a local file in the same columns: --dataset FILE. A task of your own is a .yaml file, given
    as --task FILE.yaml.
    """
    from latentmas.cli._terminal import warnings_shown
    from latentmas.cli.run import say
    from latentmas.experiment import compose

    console, aside = Console(), Console(stderr=True)
    with warnings_shown(aside):
        tasks, broken = compose.installed_tasks()
    for sentence in broken:
        say(aside, f"left out: {sentence}")
    console.print(_table(tasks))
    if verbose:
        for task in tasks:
            console.print(_details(task), markup=False, highlight=False, soft_wrap=True)
    return 0


def _table(tasks: list[Task]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("split", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("answer", no_wrap=True)
    table.add_column("licence")
    table.add_column("gate", no_wrap=True)
    for task in tasks:
        split = task.splits[0]
        gate = "accept terms" if task.card.gated else "-"
        rows = task.card.rows[split]
        table.add_row(task.name, split, f"{rows:,}", task.answer_kind.value, task.card.licence, gate)
    return table


def _details(task: Task) -> str:
    card = task.card
    others = ", ".join(f"{name} ({rows:,})" for name, rows in card.rows.items())
    lines = [
        ("source", card.source + (f", config {card.config}" if card.config else "")),
        ("revision", card.revision or "newest"),
        ("splits", others),
        ("columns", ", ".join(card.columns)),
        ("options", ", ".join(f"--{name} {value}" for name, value in task.defaults.items()) or "-"),
    ]
    if card.withheld:
        lines.append(("texts", "left out of records and logs unless --save_withheld is given"))
    return "\n".join([task.name, *(f"  {name:<9} {value}" for name, value in lines)])
