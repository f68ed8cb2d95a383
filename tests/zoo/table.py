"""From verdicts to the page of supported models, in Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from zoo.verdict import CHECKS, State, Verdict

_SIGNS = {State.RIGHT: "yes", State.REFUSED: "refused", State.SKIPPED: "not checked"}
_HEAD = """\
# Supported models

Every model type of transformers {version} that writes text, as a tiny random model, run by this package and by
transformers alone: `make models-table` makes this page ({total} models, {right} run, {refused} are refused before the
first question).

- **baseline**: one agent; its tokens are those of transformers' `generate`.
- **latent**: two agents with latent thoughts; every thought and token is that of the whole sequence computed again at
  every step, without a cache.
- **join**: `--topology parallel`; memories of agents that did not hear each other, against agents that read where their
  words end up.
- **rerotate**: `--positions rerotate`; thoughts alone are handed over and moved to the start.

Each is checked with rows of unlike length, alone and as one batch, in float64 (float32 where a type has no other).
Where several models of a type differ, the one in brackets is named. Weights are random, so this page says nothing of
how well a model answers, and nothing of models whose code comes with their weights.
"""


def page(verdicts: Sequence[Verdict]) -> str:
    """Return the page: models that run, then those that are refused, with the reason."""
    counts = Counter(verdict.state for verdict in verdicts)
    runs = [verdict for verdict in verdicts if verdict.state is not State.REFUSED]
    lines = [
        _HEAD.format(
            version=version("transformers"), total=len(verdicts), right=len(runs), refused=counts[State.REFUSED]
        ),
        "## Models that run\n",
        "| model type | " + " | ".join(CHECKS) + " | remarks |",
        "|---|" + "---|" * len(CHECKS) + "---|",
    ]
    for verdict in sorted(runs, key=lambda verdict: verdict.specimen.name):
        cells = [_SIGNS.get(found.state, found.state.value) for found in map(verdict.found.get, CHECKS) if found]
        cells += [""] * (len(CHECKS) - len(cells))
        lines.append(f"| {verdict.specimen.name} | " + " | ".join(cells) + f" | {_remarks(verdict)} |")
    lines += [
        "\n## Models that are refused\n",
        "| model type | reason | what transformers alone shows |",
        "|---|---|---|",
    ]
    for verdict in sorted(verdicts, key=lambda verdict: verdict.specimen.name):
        if verdict.state is State.REFUSED:
            lines.append(
                f"| {verdict.specimen.name} | {_sentence(verdict.found['baseline'].why)} | {_sentence(verdict.facts)} |"
            )
    return "\n".join(lines) + "\n"


def _remarks(verdict: Verdict) -> str:
    said = dict.fromkeys(found.why for found in verdict.found.values() if found.why)
    return "; ".join(map(_sentence, said))


def _sentence(text: str) -> str:
    """Return a message for a cell of a table: one line, no pipes, no folder of the machine that made it."""
    plain = re.sub(r"the model '[^']*'", "the model", " ".join(text.split()))
    return re.sub(r"'?/tmp/[^\s']*'?", "its folder", plain).replace("|", "/")[:400]
