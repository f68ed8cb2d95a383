"""All rows of the real data sets load, as many as there are, each with an id of its own and a target that fits."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from latentmas.experiment.compose import find_task
from latentmas.protocols import Row
from latentmas.row_files import read_rows
from latentmas.rows import samples
from latentmas.samples import AnswerKind, Sample
from latentmas.scorers.number import parse_target

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = {
    "gsm8k": ("gsm8k/test.jsonl", 1319),
    "arc_challenge": ("arc_challenge/test.jsonl", 1172),
    "mbppplus": ("mbppplus/MbppPlus-OriginFmt.jsonl.gz", 378),
    "humanevalplus": ("humanevalplus/HumanEvalPlus-OriginFmt.jsonl.gz", 164),
    "medqa": ("medqa/medqa.json", 300),
    "winogrande": ("winogrande/validation.jsonl", 1267),
}


@cache
def rows_of(name: str) -> list[Row]:
    path = FOLDER / FILES[name][0]
    if not path.is_file():
        pytest.skip(f"needs the real rows of {name} at {path}")
    return read_rows(path)


@cache
def samples_of(name: str) -> tuple[Sample, ...]:
    return samples(find_task(name), rows_of(name))


@pytest.mark.parametrize("name", FILES)
def test_every_row_loads_and_has_an_id_of_its_own(name: str) -> None:
    found = samples_of(name)
    assert len(found) == len({sample.id for sample in found}) == FILES[name][1]
    card = find_task(name).card
    if name != "medqa":  # a file with 300 of its questions goes around
        assert len(found) == next(iter(card.rows.values()))
        assert all(column in row for row in rows_of(name) for column in card.columns)


@pytest.mark.parametrize("name", FILES)
def test_every_target_is_what_its_kind_expects(name: str) -> None:
    kind = find_task(name).answer_kind
    for sample in samples_of(name):
        assert sample.question.strip() == sample.question
        assert (sample.entry_point is not None) == (kind is AnswerKind.CODE)
        match kind:
            case AnswerKind.NUMBER:
                parse_target(sample.target)
            case AnswerKind.CHOICE:
                assert sample.target in sample.labels
                assert sample.question.endswith(f"{sample.labels[-1]}. {sample.options[-1]}")
            case AnswerKind.CODE:
                assert "assertion(" in sample.target or sample.id == "HumanEval/32"  # it has an oracle of its own


def test_labels_of_arc_are_those_of_the_data() -> None:
    assert Counter("".join(sample.labels) for sample in samples_of("arc_challenge")) == {
        "ABCD": 1144,
        "1234": 22,
        "ABC": 3,
        "ABCDE": 3,
    }
    for sample, row in zip(samples_of("arc_challenge"), rows_of("arc_challenge"), strict=True):
        assert (sample.id, sample.target) == (row["id"], row["answerKey"])


def test_a_question_of_medqa_has_its_options_once_and_says_what_its_query_says() -> None:
    for sample, row in zip(samples_of("medqa"), rows_of("medqa"), strict=True):
        assert len(sample.options) == 4
        assert "\n" not in "".join(sample.options)
        assert sample.options[sample.labels.index(sample.target)] == str(row["answer"]).removesuffix('\n"').strip()
        assert sample.id.startswith(f"{row['pid']}-")
        query = str(row["query"]).removesuffix("\nChoose the correct option.").removesuffix('\n"')
        assert "".join(sample.question.split()) == "".join(query.split())


def test_every_question_of_winogrande_has_its_own_sentence() -> None:
    for sample, row in zip(samples_of("winogrande"), rows_of("winogrande"), strict=True):
        assert str(row["sentence"]) in sample.question
        assert sample.options == (row["option1"], row["option2"])


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize(
    ("name", "columns"), [("mbppplus", ["code"]), ("humanevalplus", ["prompt", "canonical_solution"])]
)
def test_every_entry_point_is_defined_by_the_canonical_solution(name: str, columns: list[str]) -> None:
    for sample, row in zip(samples_of(name), rows_of(name), strict=True):
        tree = ast.parse("".join(str(row[column]) for column in columns))
        assert sample.entry_point in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert f"`{sample.entry_point}`" in sample.question


def test_every_example_of_mbpp_that_is_shown_calls_the_function() -> None:
    for sample in samples_of("mbppplus"):
        shown = sample.question.partition("```python\n")[2].removesuffix("\n```").split("assert ")[1:]
        assert len(shown) == 3
        assert all(re.search(rf"\b{sample.entry_point} ?\(", example) for example in shown)
