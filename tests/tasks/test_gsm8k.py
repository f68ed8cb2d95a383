"""GSM8K's rows become samples, with every gold read right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentmas.errors import DataError
from latentmas.protocols import Row
from latentmas.row_files import read_rows
from latentmas.rows import samples
from latentmas.samples import AnswerKind, FinishReason, Verdict
from latentmas.scorers.number import grade
from latentmas.tasks import gsm8k

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
needs_real_rows = pytest.mark.skipif(not REAL.is_file(), reason=f"needs the real GSM8K rows at {REAL}")


@needs_real_rows
def test_all_1319_real_rows_load() -> None:
    found = samples(gsm8k.build(), read_rows(REAL))
    assert len(found) == gsm8k.CARD.rows["test"]
    assert found[0].target == "18"
    assert found[0].question.startswith("Janet’s ducks lay 16 eggs per day.")


@needs_real_rows
def test_all_14_golds_with_commas_are_graded_right() -> None:
    task, rows = gsm8k.build(), read_rows(REAL)
    golds = [str(row["answer"]).rsplit("#### ", 1)[1] for row in rows]
    with_comma = [index for index, gold in enumerate(golds) if "," in gold]
    assert len(with_comma) == 14
    for index in with_comma:
        target = task.sample(rows[index], index).target
        assert int(target) == int(golds[index].replace(",", ""))
        for written in (golds[index], target):
            assert grade(f"\\boxed{{{written}}}", target, FinishReason.STOP).verdict is Verdict.CORRECT
        cut_at_the_comma = golds[index].partition(",")[0]
        assert grade(f"\\boxed{{{cut_at_the_comma}}}", target, FinishReason.STOP).verdict is Verdict.WRONG


@needs_real_rows
def test_every_real_reference_solution_is_correct_and_its_neighbour_wrong() -> None:
    task = gsm8k.build()
    for index, row in enumerate(read_rows(REAL)):
        sample = task.sample(row, index)
        solution = str(row["answer"])
        assert grade(solution, sample.target, FinishReason.STOP).verdict is Verdict.CORRECT
        neighbour = str(int(sample.target) + 1)
        assert grade(solution, neighbour, FinishReason.STOP).verdict is Verdict.WRONG


def test_the_task_says_what_it_is() -> None:
    task = gsm8k.build()
    assert (task.name, task.answer_kind, task.splits) == ("gsm8k", AnswerKind.NUMBER, ("test", "train"))
    assert task.scorer is None
    assert task.defaults["max_new_tokens"] == 2048


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "gsm8k row 4 has no column 'answer'; it has: question"),
        ({"answer": "#### 1"}, "gsm8k row 4 has no column 'question'; it has: answer"),
        ({"question": "q", "answer": 5}, "gsm8k row 4, column 'answer': expected str, found int 5"),
        ({"question": "q", "answer": "5"}, "gsm8k row 4, column 'answer' has no '####'"),
        ({"question": "q", "answer": "#### five"}, "gsm8k row 4, column 'answer': target 'five' is no number"),
    ],
)
def test_a_broken_row_names_row_and_column(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gsm8k.build().sample(row, 4)


def test_ids_depend_on_place_and_content_and_stay_when_rows_are_cut(tmp_path: Path) -> None:
    rows = [{"question": f"q{number}", "answer": f"#### {number}"} for number in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = gsm8k.build()
    every = [sample.id for sample in samples(task, read_rows(path))]
    assert len(set(every)) == 3
    assert [sample.id for sample in samples(task, read_rows(path), 2)] == every[:2]


@pytest.mark.network
@pytest.mark.parametrize("split", ["test", "train"])
def test_the_hub_has_the_rows_we_expect(split: str) -> None:
    task = gsm8k.build()
    assert len(samples(task, task.rows(split))) == gsm8k.CARD.rows[split]
