"""Several runs as one table of text, and one answer of each: what `docs/real-models.md` shows.

python benchmarks/runs_table.py runs/smollm2-baseline runs/smollm2-latent_mas runs/smollm2-vllm-baseline
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

COLUMNS = {"correct": 10, "95 %": 9, "no answer": 11, "cut": 5, "written": 9, "thoughts": 10, "prompt": 8, "s": 8}


def line(folder: Path) -> str:
    """Return what a run's summary says, per sample where a mean makes sense."""
    summary = json.loads((folder / "summary.json").read_text())
    n = summary["n"]
    cells = (
        f"{summary['correct']} of {n}",
        f"{100 * summary['accuracy_low']:.0f}-{100 * summary['accuracy_high']:.0f}",
        summary["verdicts"]["no_answer"],
        summary["cut_by_length"],
        f"{summary['written_tokens'] / n:.1f}",
        f"{summary['thoughts'] / n:.1f}",
        f"{summary['prompt_tokens'] / n:.0f}",
        f"{summary['seconds_per_sample']:.2f}",
    )
    errors = f"  {summary['errors']} errors" if summary["errors"] else ""
    return f"{folder.name:<26}" + row(cells) + errors


def row(cells: Iterable[object]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def answer(folder: Path, number: int) -> str:
    """Return one answer of a run, shortened."""
    record = json.loads((folder / "records.jsonl").read_text().splitlines()[number])
    said = textwrap.shorten(record["text"], 300, placeholder=" ...")
    head = f"{folder.name}: {record['verdict']}, expected {record['target']}, read {record['prediction']}"
    return "\n".join([head, *textwrap.wrap(said, 110, initial_indent="  ", subsequent_indent="  ")])


def main(folders: list[Path], number: int = 1) -> None:
    print(" " * 26 + row(COLUMNS))
    for folder in folders:
        print(line(folder))
    question = json.loads((folders[0] / "records.jsonl").read_text().splitlines()[number])["question"]
    print("\n" + textwrap.fill(question, 110))
    for folder in folders:
        print(answer(folder, number))


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
