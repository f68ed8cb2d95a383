"""Pictures: how near the next prompt is to each slot of a memory, and where thoughts lie among input embeddings.

Each picture is a `Figure` of its own: no pyplot, no global state. matplotlib is imported when something is drawn.

Shape letters: L layers, S slots, C columns of a heatmap, E hidden size, N vectors.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from latentmas.program import SlotKind
from latentmas.protocols import Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI: Final = 120
MOST_COLUMNS: Final = 2400
"""Widest heatmap, at one pixel for a column; longer memories are drawn with several positions to a column."""
COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#6A51A3")
"""Of agents, in the order of their turns; beyond them colours come again. Most can be told apart by any eye."""
KINDS: Final[Mapping[SlotKind, tuple[str, str]]] = {
    SlotKind.PROMPT: ("prompt", "#C9CED6"),
    SlotKind.TEXT: ("text", "#7FA8D1"),
    SlotKind.THOUGHT: ("thought", "#1B1B1B"),
}
"""Name and colour, the rarest last: where several kinds share a column, the last one of them is shown."""
GAP: Final = "#BDB9B2"
GREY: Final = "#BDBDBD"
EXACT_BELOW: Final = 600
"""Rows of a matrix whose eigenvectors are all computed."""
BASIS: Final = 24
MOST_PRODUCTS: Final = 300
LEFT: Final = 0.85
"""Inches left of what is drawn."""
LETTER: Final = 0.075
BOLD_LETTER: Final = 0.11
"""Inches a letter takes, on average, at 9 points and in a title."""

Floats = NDArray[np.floating[Any]]


def heatmap(sample: str, similarity: Similarity, *, layer: int | None = None) -> bytes:
    """Return a PNG: positions from left to right, layers from bottom to top, agents and kinds of slots above.

    All layers are drawn on the scale from -1 to 1, so that two pictures can be compared. One layer alone is stretched
    to the whole scale from 0 to 1, and the title says what its range was.

    Args:
        similarity: Of at least one slot.
        layer: The only one to draw; None is all.
    """
    from matplotlib.ticker import MaxNLocator

    columns = _columns(similarity, layer)
    layers = columns.values.shape[0]
    width = float(np.clip(columns.count / DPI * 1.03, 8.0, MOST_COLUMNS / DPI * 1.03))  # inches of the map itself
    height = float(np.clip(layers * 0.16, 0.55 if layer is not None else 1.6, 8.0))
    legend = _legend(columns, width)
    figure, axes = _frame(width, height, legend_rows=legend.rows)
    values, colours, low, high = columns.values, "RdBu_r", -1.0, 1.0
    if layer is not None:
        reach = columns.highest - columns.lowest
        values = (values - columns.lowest) / (reach or 1.0)
        colours, low = "viridis", 0.0
    image = axes["map"].imshow(
        values,
        cmap=colours,
        vmin=low,
        vmax=high,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(*columns.extent, -0.5, layers - 0.5),
    )
    axes["map"].set_facecolor(GAP)
    axes["map"].set_xlim(*columns.extent)
    axes["map"].set_xlabel(columns.label)
    axes["map"].xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    if layer is None:
        axes["map"].set_ylabel("layer")
        axes["map"].yaxis.set_major_locator(MaxNLocator(min(layers, int(height / 0.3) + 1), integer=True))
    else:
        axes["map"].set_yticks([0], [f"layer {layer}"])
    bar = figure.colorbar(image, cax=axes["bar"], ticks=[-1, 0, 1] if layer is None else [0, 1])
    bar.set_label("cosine" if layer is None else "cosine,\nscaled")
    _draw_agents(axes["agents"], columns, width)
    _draw_kinds(axes["kinds"], columns)
    _draw_legend(figure, legend)
    sender, receiver = (_plain(agent, 24) for agent in (similarity.sender, similarity.receiver))
    room = int((width + 0.9) / BOLD_LETTER) - len(sender) - len(receiver) - 6
    _say(figure, f"{_plain(sample, max(12, room))}:  {sender} → {receiver}", _detail(similarity, columns, layer))
    return _png(figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """A memory cut into columns of equal width.

    Attributes:
        values: ``[L, C]`` mean cosine of the slots of a column; NaN where it has none.
        agents: ``[C]`` number of the agent, in the order of first slots; -1 where there is no slot.
        kinds: ``[C]`` place in `KINDS`; -1 where there is no slot.
        names: Of agents.
        extent: Left and right end on the axis.
        label: Of the axis.
        lowest, highest: Cosine of any slot.
    """

    values: Floats
    agents: NDArray[np.int64]
    kinds: NDArray[np.int64]
    names: tuple[str, ...]
    extent: tuple[float, float]
    label: str
    lowest: float
    highest: float

    @property
    def count(self) -> int:
        return len(self.agents)


def _columns(similarity: Similarity, layer: int | None) -> _Columns:
    cosines = similarity.cosines.numpy() if layer is None else similarity.cosines[layer : layer + 1].numpy()
    names = tuple(dict.fromkeys(similarity.agents))
    places = np.asarray(similarity.positions, dtype=np.int64)  # [S]
    order = np.argsort(places, kind="stable")
    label = "position"
    if bool((np.diff(places[order]) == 0).any()):
        label = "slot, in the order of the memory (positions collide)"
        order = places = np.arange(len(places))
    first = int(places[order[0]])
    span = int(places[order[-1]]) - first + 1
    step = -(-span // MOST_COLUMNS)
    count = -(-span // step)
    column = (places[order] - first) // step  # [S], never falls
    filled, starts = np.unique(column, return_index=True)
    sums = np.add.reduceat(cosines[:, order].astype(np.float64), starts, axis=1)
    values = np.full((cosines.shape[0], count), np.nan)
    values[:, filled] = sums / np.diff([*starts, len(column)])
    agents, kinds = np.full(count, -1), np.full(count, -1)
    agents[column] = np.asarray([names.index(agent) for agent in similarity.agents])[order]
    ranks = [int(kind) for kind in KINDS]
    np.maximum.at(kinds, column, np.asarray([ranks.index(kind) for kind in similarity.kinds])[order])
    if step > 1:
        label += f" (a column is the mean of {step})"
    return _Columns(
        values=values,
        agents=agents,
        kinds=kinds,
        names=names,
        extent=(first - 0.5, first + count * step - 0.5),
        label=label,
        lowest=float(cosines.min()),
        highest=float(cosines.max()),
    )


def _frame(width: float, height: float, *, legend_rows: int) -> tuple[Figure, dict[str, Axes]]:
    """Return an empty picture and its parts, placed in inches, so that long and short memories look alike."""
    from matplotlib.figure import Figure

    right, bottom, top = 1.15, 0.62 + 0.21 * legend_rows, 0.75
    strip, kinds, space = 0.26, 0.11, 0.05
    full = (LEFT + width + right, bottom + height + space + kinds + space + strip + top)
    figure = Figure(figsize=full, dpi=DPI, facecolor="white")

    def place(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / full[0], y / full[1], w / full[0], h / full[1]))

    above = bottom + height + space
    axes = {
        "map": place(LEFT, bottom, width, height),
        "bar": place(LEFT + width + 0.15, bottom, 0.16, height),
        "kinds": place(LEFT, above, width, kinds),
        "agents": place(LEFT, above + kinds + space, width, strip),
    }
    for name in ("kinds", "agents"):
        axes[name].set_axis_off()
    return figure, axes


def _runs(columns: _Columns) -> list[tuple[int, int, int]]:
    """Return agent, first column and end of each run of columns of one agent; gaps have none."""
    edges = (np.flatnonzero(np.diff(columns.agents)) + 1).tolist()
    runs = zip([0, *edges], [*edges, columns.count], strict=True)
    return [(agent, start, end) for start, end in runs if (agent := int(columns.agents[start])) >= 0]


def _spans(columns: _Columns) -> dict[int, tuple[int, int]]:
    """Return first column and end of the longest span of each agent; gaps do not end it, slots of others do."""
    spans: dict[int, tuple[int, int]] = {}
    for agent, start, end in _runs(columns):
        first, last = spans.get(agent, (start, start))
        is_one = bool(np.isin(columns.agents[first:start], (agent, -1)).all())
        spans[agent] = max((first, last), (first if is_one else start, end), key=lambda span: span[1] - span[0])
    return spans


def _has_room(columns: _Columns, agent: int, span: tuple[int, int], width: float) -> bool:
    """Whether the agent's name can be written into its span."""
    return len(_plain(columns.names[agent], 24)) * LETTER + 0.1 <= (span[1] - span[0]) / columns.count * width


def _draw_agents(axes: Axes, columns: _Columns, width: float) -> None:
    """Draw whose slots are where, in a strong colour, and across gaps in a weak one."""
    for agent, start, end in _runs(columns):
        axes.barh(0, end - start, left=start, height=1, color=_colour(agent), alpha=0.3, linewidth=0)
    axes.set_xlim(0, columns.count)
    axes.set_ylim(-0.5, 0.5)
    for agent, span in _spans(columns).items():
        axes.barh(0, span[1] - span[0], left=span[0], height=1, color=_colour(agent), alpha=0.15, linewidth=0)
        if _has_room(columns, agent, span, width):
            name = _plain(columns.names[agent], 24)
            axes.text(sum(span) / 2, 0, name, ha="center", va="center_baseline", fontsize=9, parse_math=False)


def _draw_kinds(axes: Axes, columns: _Columns) -> None:
    from matplotlib.colors import ListedColormap

    axes.imshow(
        np.where(columns.kinds < 0, np.nan, columns.kinds)[None],
        cmap=ListedColormap([colour for _, colour in KINDS.values()]),
        vmin=0,
        vmax=len(KINDS) - 1,
        aspect="auto",
        interpolation="nearest",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Legend:
    """Name, colour and opacity of each entry, and how many of them stand side by side."""

    entries: tuple[tuple[str, str, float], ...]
    width: int

    @property
    def rows(self) -> int:
        return -(-len(self.entries) // self.width)


def _legend(columns: _Columns, width: float) -> _Legend:
    """Return the kinds of slots there are, and the agents whose name has no room above."""
    kinds = [entry for place, entry in enumerate(KINDS.values()) if bool((columns.kinds == place).any())]
    entries = [(name, colour, 1.0) for name, colour in kinds]
    if bool((columns.kinds < 0).any()):
        entries.append(("no slot", GAP, 1.0))
    nameless = [agent for agent, span in _spans(columns).items() if not _has_room(columns, agent, span, width)]
    entries += [(_plain(columns.names[agent], 24), _colour(agent), 0.4) for agent in nameless]
    widest = max(len(name) for name, _, _ in entries) * LETTER + 0.55
    return _Legend(entries=tuple(entries), width=max(1, min(len(entries), int(width / widest))))


def _draw_legend(figure: Figure, legend: _Legend) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, alpha=alpha, linewidth=0, label=name) for name, colour, alpha in legend.entries]
    drawn = figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(LEFT / figure.get_figwidth(), 0.1 / figure.get_figheight()),
        borderaxespad=0,
        borderpad=0,
        ncols=legend.width,
        frameon=False,
        fontsize=9,
        handlelength=1.2,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def _detail(similarity: Similarity, columns: _Columns, layer: int | None) -> str:
    counts = [(sum(kind == own for own in similarity.kinds), name) for kind, (name, _) in KINDS.items()]
    slots = ", ".join(f"{count:,} {name}" for count, name in counts if count)
    reach = f"cosines from {columns.lowest:.2f} to {columns.highest:.2f}".replace("-", "−")
    if layer is not None:
        reach += ", drawn as 0 to 1"
    total = f"{len(similarity.kinds):,} slot{'s' * (len(similarity.kinds) != 1)}"
    return f"how near each key is to the next prompt  ·  {total}: {slots}  ·  {reach}"


def _say(figure: Figure, title: str, detail: str) -> None:
    left, top = LEFT / figure.get_figwidth(), figure.get_figheight()
    figure.text(left, 1 - 0.14 / top, title, va="top", fontsize=12, fontweight="bold", parse_math=False)
    figure.text(left, 1 - 0.42 / top, detail, va="top", fontsize=9, color="#444444", parse_math=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The two directions in which vectors differ most.

    Attributes:
        centre: ``[E]``.
        directions: ``[2, E]`` of length 1, or 0 where there is no second direction.
        shares: Part of all squared distances from the centre along each of them, in [0, 1].
    """

    centre: Floats
    directions: Floats
    shares: tuple[float, float]

    def coordinates(self, vectors: Floats) -> Floats:
        """Return ``[N, 2]`` for ``[N, E]``."""
        found: Floats = (vectors - self.centre) @ self.directions.T
        return found

    def shown(self, vectors: Floats) -> float:
        """Return how much of the squared distance of ``[N, E]`` from the centre lies in the plane, in [0, 1]."""
        total = float(((vectors - self.centre) ** 2).sum())
        return float((self.coordinates(vectors) ** 2).sum()) / total if total else 0.0


def principal_plane(vectors: Floats, centre: Floats) -> Plane:
    """Return the principal components of ``[N, E]`` around a given centre, ``[E]``, which need not be their mean."""
    exact = vectors.astype(np.float64) - centre
    wide = exact.shape[0] < exact.shape[1]
    # Of the two products with the same eigenvalues the smaller one.
    product = exact @ exact.T if wide else exact.T @ exact
    eigenvalues, best = _largest_two(product)
    directions = (exact.T @ best if wide else best).T  # [<= 2, E]
    directions = np.concatenate([directions, np.zeros((2 - len(directions), exact.shape[1]))])
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    directions = np.divide(directions, lengths, out=np.zeros_like(directions), where=lengths > 1e-12)
    # An eigenvector has no sign of its own; with this one the same vectors always give the same picture.
    largest = np.abs(directions).argmax(axis=1)
    directions *= np.where(directions[np.arange(2), largest] < 0, -1.0, 1.0)[:, None]
    total = float(np.trace(product)) or 1.0
    first, second = (*eigenvalues.clip(min=0), 0.0)[:2]
    shares = (float(first) / total, float(second) / total)
    return Plane(centre=centre.astype(np.float64), directions=directions, shares=shares)


def _largest_two(matrix: Floats) -> tuple[Floats, Floats]:
    """Return the two largest eigenvalues of a symmetric ``[n, n]`` and their vectors, ``[n, 2]``; one where n is 1.

    A large matrix is multiplied onto a few vectors until two of them stay as they are: all of its eigenvectors would
    take minutes, and nobody looks at the others.
    """
    n = len(matrix)
    if n > EXACT_BELOW:
        basis = np.random.default_rng(0).normal(size=(n, BASIS))
        for _ in range(MOST_PRODUCTS):
            basis, _ = np.linalg.qr(matrix @ basis)
            image = matrix @ basis  # [n, BASIS]
            inner, turn = np.linalg.eigh(basis.T @ image)
            values, turn = inner[::-1][:2], turn[:, ::-1][:, :2]
            vectors = basis @ turn
            if bool((np.linalg.norm(image @ turn - vectors * values, axis=0) <= 1e-9 * values[0]).all()):
                return values, vectors
    values, vectors = np.linalg.eigh(matrix)
    return values[::-1][:2], vectors[:, ::-1][:, :2]


def nearest_cosines(vectors: Floats, vocabulary: Floats, *, others: bool = False) -> Floats:
    """Return the cosine of each of ``[N, E]`` with the row of the vocabulary that is nearest to it, ``[N]``.

    Args:
        others: The vectors are the vocabulary itself, and no row is compared with itself.
    """
    rows = _unit(vocabulary)
    nearest = np.empty(len(vectors))
    for start in range(0, len(vectors), 4096):
        cosines = _unit(vectors[start : start + 4096]) @ rows.T  # [<= 4096, n]
        if others:
            own = np.arange(len(cosines))
            cosines[own, start + own] = -1
        nearest[start : start + 4096] = cosines.max(axis=1)
    return nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """What one agent contributes to a scatter plot, in its coordinates.

    Attributes:
        prompts, hidden: ``[turns, 2]``; `hidden` is empty where it is not drawn.
        thoughts: ``[N, 2]``.
        steps: ``[N]`` number of each thought in its turn, from 0.
    """

    agent: str
    prompts: Floats
    thoughts: Floats
    steps: NDArray[np.int64]
    hidden: Floats


def scatter(title: str, detail: str, plane: Plane, vocabulary: Floats, clouds: Sequence[Cloud]) -> bytes:
    """Return a PNG: the vocabulary in grey, prompts as diamonds, thoughts as dots that fade with their number.

    Args:
        vocabulary: ``[n, 2]`` coordinates.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10.5, 7.2), dpi=DPI, facecolor="white")
    axes = figure.add_axes((LEFT / figure.get_figwidth(), 0.085, 0.69, 0.815))
    axes.grid(color="#EEEEEE", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.scatter(vocabulary[:, 0], vocabulary[:, 1], s=5, color=GREY, linewidths=0)
    # Many dots are smaller ones, so that they do not hide each other.
    crowd = float(np.clip((300 / max(1, sum(len(cloud.steps) for cloud in clouds))) ** 0.5, 0.3, 1.0))
    last = max((int(cloud.steps.max()) for cloud in clouds if len(cloud.steps)), default=0)
    entries = [_dot("vocabulary", GREY, size=4)]
    for number, cloud in enumerate(clouds):
        colour = _colour(number)
        fading = np.empty((len(cloud.steps), 4))
        fading[:, :3] = to_rgb(colour)
        fading[:, 3] = 1 - 0.7 * cloud.steps / max(last, 1)
        (x, y), (u, v), (p, q) = cloud.thoughts.T, cloud.prompts.T, cloud.hidden.T
        axes.scatter(x, y, s=26 * crowd, c=fading, linewidths=0, zorder=4)
        axes.scatter(u, v, s=44 * crowd, color=colour, marker="D", edgecolors="black", linewidths=0.7, zorder=3)
        axes.scatter(p, q, s=30, color=colour, marker="x", linewidths=1.2, zorder=3)
        entries.append(_dot(_plain(cloud.agent, 22), colour, size=6))
    marks = {"marker": "D", "markeredgecolor": "black", "markersize": 6}
    entries.append(Line2D([], [], linestyle="", markerfacecolor="white", label="prompt (mean)", **marks))  # type: ignore[arg-type]
    if any(len(cloud.steps) for cloud in clouds):
        entries += [
            _dot("first thought", "#222222", size=5),
            _dot(f"thought {last + 1}", "#222222", size=5, alpha=0.3),
        ]
    if any(len(cloud.hidden) for cloud in clouds):
        entries.append(Line2D([], [], linestyle="", marker="x", color="black", label="last hidden state"))
    legend = figure.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(0.78, 0.905), frameon=False, fontsize=9.5, labelspacing=0.7
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    for name, share, axis in zip(("first", "second"), plane.shares, (axes.xaxis, axes.yaxis), strict=True):
        axis.set_label_text(f"{name} principal component ({100 * share:.1f} % of variance)")
    axes.set_aspect("equal", adjustable="datalim")
    _say(figure, _plain(title, 80), _plain(detail, 130))
    return _png(figure)


def _dot(label: str, colour: str, *, size: float, alpha: float = 1.0) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker="o", color=colour, markersize=size, alpha=alpha, mew=0, label=label)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _plain(text: str, longest: int) -> str:
    """Return text that any font can show, in one line of at most `longest` letters; both ends of a longer one."""
    shown = "".join(
        letter if letter.isprintable() and ord(letter) < 0x180 else letter.encode("unicode_escape").decode()
        for letter in (text if len(text) <= 2 * longest else text[:longest] + text[-longest:])
    )
    end = longest // 3
    return shown if len(shown) <= longest else f"{shown[: longest - end - 3]}...{shown[-end:]}"


def _unit(vectors: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Floats = vectors / np.maximum(lengths, 1e-12)
    return unit


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    # Without the version of matplotlib the same picture is the same file.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
