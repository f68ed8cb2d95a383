"""``latentmas plot``: pictures of what runs have stored."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from latentmas.cli.run import say
from latentmas.errors import ConfigError, StoreError, UnknownNameError

if TYPE_CHECKING:
    from latentmas.experiment.artifacts import StoredEmbeddings, Turn
    from latentmas.experiment.pictures import Cloud, Plane


def command(
    what: Annotated[str, typer.Argument(metavar="embeddings", help="What is drawn.")],
    run: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="A run with --save_embeddings.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="The picture, a .png; its coordinates go beside it as .csv. Both are replaced. "
            "Default: embeddings.png in the run folder.",
        ),
    ] = None,
    max_samples: Annotated[
        int, typer.Option("--max_samples", min=1, help="Samples that are drawn, from the first one.")
    ] = 100,
    hidden: Annotated[
        bool,
        typer.Option("--hidden", help="Draw last hidden states as well; they mostly lie far outside of the others."),
    ] = False,
) -> int:
    """Draw where prompts and thoughts lie among the input embeddings of the model.

    The two axes are the principal components, around the mean of the vocabulary, of everything that is drawn: rows of
    the vocabulary (evenly spaced, at most 4096), mean embeddings of prompts, and thoughts.

    The table has for each agent the mean length of its thoughts, their mean cosine with the nearest of those rows, and
    how much of their squared distance from the vocabulary's mean the two axes show. Its first line is the vocabulary,
    each of whose rows is compared with the nearest other one.

    [bold]Store and draw:[/bold]

      latentmas run --method latent_mas --model_name tiny --task tiny --output_dir runs/first --save_embeddings

      latentmas plot embeddings runs/first
    """
    if what != "embeddings":
        raise UnknownNameError("picture", what, ("embeddings",))
    picture = output or run / "embeddings.png"
    if picture.suffix.lower() != ".png":
        raise ConfigError(f"--output is {str(picture)!r}; give the name of a .png")
    from latentmas.experiment import pictures
    from latentmas.experiment.artifacts import read_embeddings
    from latentmas.experiment.atomic import replacing

    stored = read_embeddings(run, max_samples=max_samples)
    found = len(stored.turns)
    stored = replace(stored, turns=tuple(turn for turn in stored.turns if turn.is_finite))
    plane = _plane(stored)
    clouds = [_cloud(agent, turns, plane, hidden=hidden) for agent, turns in _by_agent(stored)]
    detail = f"{stored.model_id}: {stored.samples:,} of {stored.available:,} samples, " + (
        f"{len(stored.ids):,} rows of the vocabulary, {sum(len(turn.thoughts) for turn in stored.turns):,} thoughts"
    )
    title = f"Thoughts among input embeddings: {run.resolve().name}"
    drawn = pictures.scatter(title, detail, plane, plane.coordinates(stored.vocabulary), clouds)
    table = picture.with_suffix(".csv")
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make {picture.parent}: {error.strerror}; choose another --output") from error
    for path, content in ((picture, drawn), (table, _csv(stored, plane, hidden=hidden))):
        with replacing(path) as file:
            file.write(content)
    Console().print(_table(_lines(stored, plane)))
    console = Console(stderr=True)
    say(console, f"the picture is {picture}, its coordinates are in {table}")
    if broken := found - len(stored.turns):
        say(console, f"{broken} of {found} turns hold NaN or infinite numbers and were left out")
    if stored.samples < stored.available:
        say(console, f"{stored.samples} of {stored.available} samples were drawn; --max_samples draws more")
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """What the table says of a set of vectors; None where there is none.

    Attributes:
        norm: Mean length.
        nearest: Mean cosine with the nearest row of the vocabulary.
        shown: Share of the squared distance from the vocabulary's mean that lies in the plane, in [0, 1].
    """

    name: str
    turns: int | None
    vectors: int
    norm: float | None
    nearest: float | None
    shown: float | None


def _by_agent(stored: StoredEmbeddings) -> list[tuple[str, list[Turn]]]:
    turns: dict[str, list[Turn]] = {}
    for turn in stored.turns:
        turns.setdefault(turn.agent, []).append(turn)
    return list(turns.items())


def _plane(stored: StoredEmbeddings) -> Plane:
    import numpy as np

    from latentmas.experiment.pictures import principal_plane

    prompts = [turn.prompt[None] for turn in stored.turns]
    thoughts = [turn.thoughts for turn in stored.turns]
    everything = np.concatenate([stored.vocabulary, *prompts, *thoughts])
    return principal_plane(everything, stored.vocabulary.mean(axis=0, dtype=np.float64))


def _cloud(agent: str, turns: Sequence[Turn], plane: Plane, *, hidden: bool) -> Cloud:
    import numpy as np

    from latentmas.experiment.pictures import Cloud

    return Cloud(
        agent=agent,
        prompts=plane.coordinates(np.stack([turn.prompt for turn in turns])),
        thoughts=plane.coordinates(np.concatenate([turn.thoughts for turn in turns])),
        steps=np.concatenate([np.arange(len(turn.thoughts)) for turn in turns]),
        hidden=plane.coordinates(np.stack([turn.hidden for turn in turns])) if hidden else np.zeros((0, 2)),
    )


def _lines(stored: StoredEmbeddings, plane: Plane) -> Iterator[_Line]:
    import numpy as np

    from latentmas.experiment.pictures import nearest_cosines

    rows = stored.vocabulary
    yield _Line(
        name="(vocabulary)",
        turns=None,
        vectors=len(rows),
        norm=float(np.linalg.norm(rows, axis=1).mean()),
        nearest=float(nearest_cosines(rows, rows, others=True).mean()) if len(rows) > 1 else None,
        shown=plane.shown(rows),
    )
    for agent, turns in _by_agent(stored):
        thoughts = np.concatenate([turn.thoughts for turn in turns])
        some = len(thoughts) > 0
        yield _Line(
            name=agent,
            turns=len(turns),
            vectors=len(thoughts),
            norm=float(np.linalg.norm(thoughts, axis=1).mean()) if some else None,
            nearest=float(nearest_cosines(thoughts, rows).mean()) if some else None,
            shown=plane.shown(thoughts) if some else None,
        )


def _table(lines: Iterator[_Line]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("agent")
    for name in ("turns", "thoughts", "mean norm", "nearest row, cosine", "variance shown"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(
            escape(line.name),
            "-" if line.turns is None else f"{line.turns:,}",
            f"{line.vectors:,}",
            *("-" if number is None else f"{number:.3f}" for number in (line.norm, line.nearest)),
            "-" if line.shown is None else f"{100 * line.shown:.1f} %",
        )
    return table


def _csv(stored: StoredEmbeddings, plane: Plane, *, hidden: bool) -> bytes:
    """Return one line for each point; token is that of a row of the vocabulary, step that of a thought."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("kind", "sample", "turn", "agent", "step", "token", "first", "second"))
    points = zip(stored.ids.tolist(), plane.coordinates(stored.vocabulary).tolist(), strict=True)
    writer.writerows(("vocabulary", "", "", "", "", token, *point) for token, point in points)
    for turn in stored.turns:
        who = (turn.sample, turn.number, turn.agent)
        writer.writerow(("prompt", *who, "", "", *plane.coordinates(turn.prompt[None])[0].tolist()))
        for step, point in enumerate(plane.coordinates(turn.thoughts).tolist()):
            writer.writerow(("thought", *who, step, "", *point))
        if hidden:
            writer.writerow(("hidden", *who, "", "", *plane.coordinates(turn.hidden[None])[0].tolist()))
    return text.getvalue().encode("utf-8", "surrogatepass")
