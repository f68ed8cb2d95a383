"""Every option of real questions is found in the sentences that models end with, and only the right one is right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from latentmas.samples import FinishReason, Verdict
from latentmas.scorers.choice import grade, resolve_target

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# L is the label, l in lower case, T the text.
BOXES = [
    r"\boxed{L}",
    r"\boxed{l}",
    r"\boxed{L.}",
    r"\boxed{(L)}",
    r"\boxed{L)}",
    r"\boxed{[L]}",
    r"\boxed{\text{L}}",
    r"$\boxed{\textbf{(L)}}$",
    r"\boxed{\text{Option L}}",
    r"\boxed{The answer is L}",
    r"\boxed{\text{L. T}}",
    r"\boxed{\text{(L) T}}",
    r"\boxed{\text{L) T}}",
    r"\boxed{L: T}",
    r"\boxed{L - T}",
    r"\boxed{L, T}",
    r"\boxed{L\ \text{T}}",
    r"\boxed{L (T)}",
    r"\boxed{Answer: L. T}",
    r"\boxed{T}",
    r"\boxed{\textbf{T.}}",
    r"\boxed{T (L)}",
]
MARKERS = [
    "The answer is L.",
    "The answer is (L).",
    "The answer is T.",
    "The answer is: T",
    "The answer is L: T",
    "The answer is L since it follows.",
    "The answer is therefore option L, as we saw.",
    r"The answer is \(\text{L}\).",
    "The correct answer is **L**",
    "The correct answer is **L. T**.\n\nBecause of it all.",
    "The correct answer is:\n\n**L. T**",
    "The correct answer is **T**, since it is so.",
    "The correct option is (L).",
    "The correct choice is T (L).",
    "The best answer is L – T.",
    "The final answer is $L$",
    "final answer – L",
    "Answer: L. T",
    "Answer: L) T",
    "Answer: **L) T**",
    "Answer:\nL\n",
    "**Answer:** L",
    "**Answer: L**",
    "### Answer\n\nL",
    "**Final Answer**: (L) T",
    '{"answer": "L"}',
    "<answer>L</answer>",
    "I choose L.",
    "L is the correct answer.",
    "So, option L is the best answer because of that.",
    "Therefore, (L) is correct.",
]
BOLD = ["So it must be\n\n**L**", "We get **L. T**", "I think **(L)** fits best here.", "we settle for **(L) T**."]
LINES = ["Thinking done.\nL", "Thinking done.\n(L)", "L", "L.", "L. T", "L) T", "Thinking done.\nL. T", "- L\n"]
FRAMES = [
    (frame, by)
    for by, frames in {"box": BOXES, "marker": MARKERS, "bold": BOLD, "line": LINES}.items()
    for frame in frames
]


def arc(row):
    return tuple(row["choices"]["label"]), tuple(row["choices"]["text"]), row["answerKey"]


def medqa(row):
    return ("A", "B", "C", "D"), tuple(row["options"]), row["answer"]


def winogrande(row):
    return ("1", "2"), (row["option1"], row["option2"]), row["answer"]


def rows(path, read):
    if not (DATA / path).exists():
        pytest.skip(f"{DATA / path} is not here")
    text = (DATA / path).read_text(encoding="utf-8")
    found = json.loads(text) if path.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    # Two rows of ARC have an option twice, and some of MedQA end in a line break and a quotation mark.
    return [
        (labels, options, target)
        for labels, options, target in map(read, found)
        if len({option.casefold() for option in options}) == len(options) and not any("\n" in text for text in options)
    ]


@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("path", "read"),
    [("arc_challenge/test.jsonl", arc), ("medqa/medqa.json", medqa), ("winogrande/validation.jsonl", winogrande)],
)
def test_every_option_of_real_questions_is_found(path, read, every):
    surprises = []
    for number, (labels, options, target) in enumerate(rows(path, read)[::every]):
        gold = resolve_target(target, labels, options)
        texts = [option.removeprefix(f"{label}. ") for label, option in zip(labels, options, strict=True)]
        other = labels[(labels.index(gold) + 1 + number % (len(labels) - 1)) % len(labels)]
        for label in (gold, other):
            words = {"L": label, "l": label.lower(), "T": texts[labels.index(label)].strip()}
            for frame, by in FRAMES:
                # Only L, l and T that stand alone are placeholders.
                text = "".join(words.get(part, part) for part in re.split(r"(\W+)", frame))
                graded = grade(text, target, FinishReason.STOP, labels, options)
                expected = Verdict.CORRECT if label == gold else Verdict.WRONG
                if (graded.verdict, graded.found_by, graded.prediction) != (expected, by, label):
                    surprises.append((text, target, options, graded))
    assert not surprises, f"{len(surprises)}, such as {surprises[0]}"
