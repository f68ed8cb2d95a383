"""GPQA's options are shuffled once and for ever, and none of its texts is shown in an error."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from latentmas.errors import DataError
from latentmas.protocols import Row
from latentmas.row_files import read_rows
from latentmas.rows import samples
from latentmas.samples import Sample
from latentmas.tasks import gpqa

SECRET = "ZWIEBEL"
ROW = {
    "Record ID": "recOwn1",
    "Question": f"Which {SECRET} is heavier?\n",
    "Correct Answer": f"{SECRET} right",
    "Incorrect Answer 1": f"{SECRET} one ",
    "Incorrect Answer 2": f"{SECRET} two",
    "Incorrect Answer 3": f"{SECRET} three",
    "Subdomain": "Invented",
    "Canary String": f"{SECRET} canary",
}


def convert(row: Row) -> Sample:
    return gpqa.build().sample(row, 7)


def test_the_order_of_options_is_the_same_for_ever() -> None:
    # A stored vector: these numbers may never change, or results of two versions are not comparable.
    stored = {
        "recOwn1": (3, 2, 0, 1),
        "recOwn2": (1, 2, 3, 0),
        "rec0": (3, 0, 1, 2),
        "rec-2": (3, 1, 0, 2),
        "0123456789abcdef": (3, 2, 0, 1),
    }
    assert {key: gpqa.places(key) for key in stored} == stored


def test_every_order_is_equally_likely() -> None:
    count = 24_000
    orders = Counter(gpqa.places(f"rec{number}") for number in range(count))
    assert len(orders) == 24
    chi_square = sum((seen - 1000) ** 2 / 1000 for seen in orders.values())
    assert chi_square < 49.7  # 23 degrees of freedom, one in a thousand
    for place in range(4):
        right = sum(seen for order, seen in orders.items() if order[place] == 0)
        assert abs(right - count / 4) < 4 * (count * 3 / 16) ** 0.5


def test_the_target_is_where_the_right_answer_stands() -> None:
    targets = set()
    for number in range(40):
        sample = convert({**ROW, "Record ID": f"rec{number}"})
        options = dict(zip(sample.labels, sample.options, strict=True))
        assert options[sample.target] == f"{SECRET} right"
        assert sorted(sample.options) == sorted(str(ROW[column]).strip() for column in gpqa.ANSWERS)
        assert sample.question == f"Which {SECRET} is heavier?\n\n" + "\n".join(f"{a}. {b}" for a, b in options.items())
        assert sample.id == f"rec{number}"
        targets.add(sample.target)
    assert targets == set("ABCD")


def test_the_order_depends_on_nothing_but_the_id() -> None:
    first = convert(ROW)
    again = gpqa.build().sample({**ROW, "Question": "Another?", "Subdomain": "x"}, 99)
    assert (again.options, again.target) == (first.options, first.target)


def test_a_row_without_an_id_is_known_by_its_question() -> None:
    rows = [{name: value for name, value in ROW.items() if name != "Record ID"}, {**ROW, "Record ID": ""}]
    rows.append({**ROW, "Record ID": None})
    found = [convert(row) for row in rows]
    assert found[0] == found[1] == found[2]
    assert len(found[0].id) == 16
    assert convert({**rows[0], "Question": "Another?"}).id != found[0].id


def test_the_official_csv_file_is_read_like_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "gpqa_diamond.csv"
    rows = [ROW, {**ROW, "Record ID": "recOwn2", "Question": 'A "quoted", long\nquestion?'}]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    assert samples(gpqa.build(), read_rows(path)) == samples(gpqa.build(), rows)


BROKEN = [
    ({**ROW, "Question": [SECRET]}, "gpqa row 7, column 'Question': expected str, found list"),
    ({**ROW, "Question": " "}, "gpqa row 7, column 'Question' is blank"),
    ({**ROW, "Correct Answer": {SECRET: 1}}, "gpqa row 7, column 'Correct Answer': expected str, found dict"),
    ({**ROW, "Incorrect Answer 2": None}, "gpqa row 7, column 'Incorrect Answer 2': expected str, found NoneType"),
    ({**ROW, "Incorrect Answer 3": ""}, "gpqa row 7, column 'Incorrect Answer 3' is blank"),
    ({**ROW, "Record ID": f"{SECRET} x"}, "gpqa row 7, column 'Record ID': expected up to 64 letters"),
    ({**ROW, "Record ID": [SECRET]}, "gpqa row 7, column 'Record ID': expected str, found list"),
    ({"question": f"{SECRET} a) b)", "answer": "A"}, "gpqa row 7 has no column 'Question'; only the official columns"),
    ({SECRET: SECRET}, "gpqa row 7 has no column 'Question'; only the official columns are read (Record ID, Question,"),
    ({"Question": SECRET, "Correct Answer": SECRET, SECRET: 1}, "gpqa row 7 has no column 'Incorrect Answer 1'"),
    ({**ROW, "Question": f"{SECRET}\ud800"}, "gpqa row 7, column 'Question' holds half of a surrogate pair"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN)
def test_an_error_names_row_and_column_and_shows_no_text(row: Row, message: str) -> None:
    with pytest.raises(DataError) as caught:
        convert(row)
    error: BaseException | None = caught.value
    assert str(error).startswith(message)
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"{SECRET},{SECRET}\n1,2\n"),
        ("a.csv", f"a,b\n{SECRET}\n"),
        ("a.csv", f'a,b\n{SECRET},"{SECRET}'),
        ("a.csv", f'a,b\n{SECRET},"{SECRET}"{SECRET}\n'),
        ("a.json", f'[{{"a": {SECRET}}}]'),
        ("a.json", json.dumps([SECRET])),
        ("a.jsonl", f'{{"a": "{SECRET}}}\n'),
        ("a.parquet", SECRET),
    ],
)
def test_a_broken_file_is_refused_without_showing_it(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / name)
    assert SECRET not in str(caught.value)
