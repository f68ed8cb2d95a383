"""Rows are read from files, checked and turned into samples; what is broken is named."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from latentmas.errors import ConfigError, DataError, UnknownNameError
from latentmas.protocols import Row, TaskCard
from latentmas.row_files import read_rows
from latentmas.rows import (
    TableTask,
    choice_sample,
    data_digest,
    label_of,
    marked_answer,
    require,
    row_id,
    samples,
    text_list,
    text_or_int,
)
from latentmas.samples import AnswerKind, Sample
from latentmas.scorers.number import parse_target

ROWS = [{"question": "one?", "answer": "#### 1"}, {"question": "zwei\u2028é?", "answer": "#### 2"}]

CARD = TaskCard(source="a/b", rows={"test": 2}, columns=("question", "answer"), licence="none")


def task(convert: Callable[[Row, int], Sample] | None = None) -> TableTask:
    def plain(row: Row, index: int) -> Sample:
        return Sample(id=row_id(row, index, "toy"), question=require(row, "question", str, index, "toy"), target="1")

    return TableTask(
        name="toy",
        card=CARD,
        answer_kind=AnswerKind.NUMBER,
        defaults={},
        read=lambda split: ROWS,
        convert=convert or plain,
    )


def write_as(kind: str, folder: Path) -> Path:
    path = folder / f"rows.{kind}"
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n"
    match kind:
        case "json":
            path.write_text(json.dumps(ROWS), encoding="utf-8")
        case "data.json":
            path.write_text("\ufeff" + json.dumps({"data": ROWS, "version": 1}), encoding="utf-8")
        case "jsonl":
            path.write_text(lines.replace("\n", "\r\n"), encoding="utf-8")
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode(), mtime=0))
        case "csv":
            cells = "".join(f'"{row["question"]}",{row["answer"]}\r\n\r\n' for row in ROWS)
            path.write_text("\ufeffquestion,answer\r\n" + cells, encoding="utf-8", newline="")
        case _:
            parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["json", "data.json", "jsonl", "jsonl.gz", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    assert read_rows(write_as(kind, tmp_path)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "not UTF-8: byte 0xff at offset 16"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": }\n', "line 3, column 7: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2 is no object but list"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b"[" * 100_000, "line 1: cannot be read"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "line 1: cannot be read"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-9], "cannot be read"),
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b'{"data": []}', "has no rows"),
        ("a.json", b'{"rows": []}', "holds no list of rows"),
        ("a.json", b'{"rows": [{"a": 1}]}', "holds no list of rows"),
        ("a.json", b'{"data": 5}', "holds no list of rows"),
        ("a.json", b"5", "holds no list of rows"),
        ("a.json", b'[{"a": 1},\n 7]', "row 1 is no object but int"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "line 2, column 7: not JSON"),
        ("a.json", b'{"a": 1}\n{"a" 2}', "line 2, column 6: not JSON"),
        ("a.json", b'{"a": 1}\r{"a": 2},\r\n\r{"a" 2}', "line 4, column 6: not JSON"),
        ("a.json", b'[{"a": 1},', "line 1, column 11: not JSON"),
        ("a.json", b'[{"a": 1} {"a": 2}]', r"line 1, column 11: not JSON: expected ',' or ']'"),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]', "line 2, column 1: not JSON: more follows the list"),
        ("a.jsonl", b'{"a": 1},,{"a": 2}', "line 1, column 10: not JSON"),
        ("a.jsonl", b',{"a": 1}', "line 1, column 1: not JSON"),
        ("a.jsonl", b'{"a": 1}\r{"a": 2', "line 2, column 8: not JSON"),
        ("a.jsonl", b'{"a": 1}\rand so on', "line 2, column 1: not JSON"),
        ("a.jsonl", b'{"a": 1}\r"text"', "line 2 is no object but str"),
        ("a.parquet", b"no parquet", "no readable Parquet file"),
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"a,b\n", "has no rows"),
        ("a.csv", b"a,b\n1,2\n\n1,2,3\n", "line 4: found 3 values; the header has 2"),
        ("a.csv", b'a,b\n"1\n1",2\n1\n', "line 4: found 1 values; the header has 2"),
        ("a.csv", b"a,b,a\n1,2,3\n", "line 1: columns 1 and 3 of the header have the same name"),
        ("a.csv", b'a,b\n1,"2\n', "line 2: no valid CSV: unexpected end of data"),
        ("a.csv", b'a,b\n1,"2"3\n', "line 2: no valid CSV"),
        ("a.csv", b"a,b\n1,\xff\n", "not UTF-8: byte 0xff at offset 6"),
        ("a.tsv", b"a\tb", r"expected a name that ends in \.json, \.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}\r{"a": 2}\r',
        '{"a": 1}{"a": 2}',
        '{"a": 1} {"a": 2}',
        '{"a": 1},\n{"a": 2},\n',
        '{"a": 1},\r\n{"a": 2}',
        '{\n  "a": 1\n}\n{\n  "a": 2\n}\n',
        '[{"a": 1},\n{"a": 2},\n]\n',
        '\ufeff [{"a": 1}, {"a": 2}]',
        '\ufeff{"a": 1}\n\n{"a": 2}',
        '\ufeff{"a": 1}\n\ufeff{"a": 2}\n',
    ],
)
def test_rows_one_after_the_other_are_read_whatever_stands_between_them(
    content: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_bytes(content.encode())
    assert read_rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_a_file_that_begins_with_the_mark_of_its_encoding_is_read_in_it(
    kind: str, encoding: str, tmp_path: Path
) -> None:
    path = write_as(kind, tmp_path)
    path.write_bytes(path.read_bytes().decode("utf-8-sig").encode(encoding))
    assert read_rows(path) == ROWS


def test_a_file_that_is_not_in_the_encoding_it_begins_with_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"a": 1}\n'.encode("utf-16") + b"x")
    with pytest.raises(DataError, match="begins as UTF-16 and is none: truncated data"):
        read_rows(tmp_path / "a.jsonl")


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_one_row_alone_is_a_row(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").write_text('{"a": 1, "b": ["x"], "c": {"d": 2}}\n')
    assert read_rows(tmp_path / f"a{ending}") == [{"a": 1, "b": ["x"], "c": {"d": 2}}]


def test_a_text_keeps_the_line_ends_and_brackets_that_separate_rows_elsewhere(tmp_path: Path) -> None:
    rows = [{"a": "},\r{]\u2028"}, {"a": ","}]
    (tmp_path / "a.jsonl").write_text("\r".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_rows(tmp_path / "a.jsonl") == rows


def test_csv_values_are_texts_of_any_length_with_line_breaks(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "x" * (limit + 1)
    (tmp_path / "a.csv").write_text(f'a,b,\n1.0,"two\nlines, ""quoted""",{long}\n', encoding="utf-8")
    assert read_rows(tmp_path / "a.csv") == [{"a": "1.0", "b": 'two\nlines, "quoted"', "": long}]
    assert csv.field_size_limit() == limit


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*none\.jsonl"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match="is no file"):
        read_rows(tmp_path / "folder.json")


def test_an_empty_parquet_file_has_no_rows(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist([], schema=pa.schema([("a", pa.string())])), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read_rows(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"b": 1, "a": 2}, str, "toy row 3 has no column 'question'; it has: a, b"),
        ({}, str, "it has: none"),
        ({"question": 5}, str, "toy row 3, column 'question': expected str, found int 5"),
        ({"question": None}, str, "expected str, found NoneType None"),
        ({"question": True}, int, "expected int, found bool True"),
        ({"question": "  \n"}, str, "toy row 3, column 'question' is blank"),
        ({"question": "a\ud800"}, str, "half of a surrogate pair"),
    ],
)
def test_a_column_that_is_not_as_required_is_named(row: Row, kind: type, message: str) -> None:
    with pytest.raises(DataError, match=message):
        require(row, "question", kind, 3, "toy")


def test_an_error_shows_nothing_of_a_row_that_may_not_be_shown() -> None:
    for row in ({"secret": 1}, {"question": ["secret"]}, {"question": {"secret": 1}}):
        with pytest.raises(DataError, match="toy row 3") as caught:
            require(row, "question", str, 3, "toy", show=False)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"), [("  a b ", "a b"), ("025", "025"), (25, "25"), (0, "0"), (-3, "-3"), (248.0, "248")]
)
def test_texts_and_whole_numbers_are_read_alike(value: object, text: str) -> None:
    assert text_or_int({"a": value}, "a", 3, "toy") == text


@pytest.mark.parametrize("value", [None, True, 2.5, float("nan"), float("inf"), [1], {}, "", " \n", "\ud800"])
def test_what_is_neither_text_nor_whole_number_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="toy row 3, column 'a'"):
        text_or_int({"a": value}, "a", 3, "toy")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["a", "b"], ("a", "b")),
        (("a", 2, 3.0), ("a", "2", "3")),
        ("['a', \"it's\"]", ("a", "it's")),
        (' ["a", 2]', ("a", "2")),
        ([], ()),
    ],
)
def test_a_list_of_texts_may_be_written_as_text(value: object, texts: tuple[str, ...]) -> None:
    assert text_list({"a": value}, "a", 3, "toy") == texts


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a, b", "column 'a': expected a list of texts, found str 'a, b'"),
        ("{'a': 1}", "column 'a': expected a list of texts, found dict"),
        ("[" * 5000, "column 'a': expected a list of texts"),
        ("__import__('os')", "column 'a': expected a list of texts"),
        (None, "column 'a': expected a list of texts, found NoneType None"),
        (["a", None], "column 'a', entry 2: expected a text or an int, found NoneType None"),
        (["a", " "], "column 'a', entry 2 is blank"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(value: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        text_list({"a": value}, "a", 3, "toy")
    with pytest.raises(DataError, match="toy row 3 has no column 'b'"):
        text_list({"a": value}, "b", 3, "toy")


def choice(**changes: Any) -> Sample:
    given = {"id": "x", "question": " Why? ", "labels": ("A", "B"), "options": ("one ", "two"), "target": "B"}
    return choice_sample(**{**given, "options_at": "the options", "target_at": "the answer", **changes})


def test_options_stand_below_the_question_behind_their_labels() -> None:
    sample = choice()
    assert sample.question == "Why?\n\nA. one\nB. two"
    assert (sample.labels, sample.options, sample.target) == (("A", "B"), ("one", "two"), "B")


@pytest.mark.parametrize("options", [("A. one", "B. two"), ("(A) one", "(B) two"), ("A) one", "B:  two")])
def test_a_label_that_every_option_begins_with_is_dropped(options: tuple[str, ...]) -> None:
    assert choice(options=options) == choice()


@pytest.mark.parametrize("options", [("A. one", "E. coli"), ("B. one", "A. two"), ("A.one", "B.two")])
def test_what_only_looks_like_a_label_is_kept(options: tuple[str, ...]) -> None:
    assert choice(options=options).options == options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("A",)}, "the options: 2 options have 1 labels"),
        ({"labels": ("A",), "options": ("one",)}, "the options: expected at least 2 options, found 1"),
        ({"labels": ("A", "a")}, "the options: the labels A, a are not all different"),
        ({"labels": ("A", " ")}, "the options: the labels A,   are not all different and not blank"),
        ({"options": ("one", " ")}, "the options: option B is blank"),
        ({"target": "b"}, "the answer: 'b' is none of the labels A, B"),
        ({"target": "two"}, "the answer: 'two' is none of the labels A, B"),
    ],
)
def test_labels_options_and_target_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        choice(**changes)


def test_a_gold_that_is_a_text_must_be_that_of_one_option() -> None:
    assert label_of(" two ", ("A", "B"), ("A. one", "B. two"), "it") == "B"
    for options, count in ((("two", "two"), 2), (("one", "Two"), 0)):
        with pytest.raises(DataError, match=f"it: 'two' is the text of {count} options; expected 1"):
            label_of("two", ("A", "B"), options, "it")


def test_a_gold_stands_after_the_last_hashes() -> None:
    def gold(answer: str) -> str:
        return marked_answer({"answer": answer}, "answer", 3, "toy", check=parse_target)

    assert gold("#### 1\nno:\n#### 1,450,000 ") == "1450000"
    with pytest.raises(DataError, match="toy row 3, column 'answer' has no '####' before its answer"):
        gold("5")
    with pytest.raises(DataError, match="toy row 3, column 'answer': target 'many' is no number"):
        gold("#### many")


def test_an_id_is_the_rows_own_or_made_of_index_and_content() -> None:
    assert row_id({"id": "a7"}, 3, "toy") == "a7"
    assert row_id({"id": 7}, 3, "toy") == row_id({"id": 7.0}, 3, "toy") == row_id({"id": " 7 "}, 3, "toy") == "7"
    assert row_id({"id": None, "a": 1}, 3, "toy").startswith("3-")
    made = row_id({"a": 1, "b": "é"}, 3, "toy")
    assert made == row_id({"b": "é", "a": 1}, 3, "toy")
    assert made != row_id({"a": 2, "b": "é"}, 3, "toy")
    assert len(made) == len("3-") + 8
    for wrong in (1.5, True, [1], " "):
        with pytest.raises(DataError, match="toy row 3, column 'id'"):
            row_id({"id": wrong}, 3, "toy")


def test_samples_keep_order_and_stop_at_the_limit() -> None:
    assert [sample.question for sample in samples(task(), ROWS)] == ["one?", "zwei\u2028é?"]
    assert samples(task(), ROWS, 1) == samples(task(), ROWS)[:1]
    assert samples(task(), ROWS, 5) == samples(task(), ROWS)
    # A row beyond the limit is not looked at.
    assert len(samples(task(), [*ROWS, {"broken": 1}], 2)) == 2


def test_samples_refuse_duplicate_ids_no_rows_and_a_senseless_limit() -> None:
    rows = [{"id": "a", "question": "x"}, {"id": "b", "question": "y"}, {"id": "a", "question": "z"}]
    with pytest.raises(DataError, match="toy rows 0 and 2 have the same id 'a'"):
        samples(task(), rows)
    with pytest.raises(DataError, match="toy has no rows"):
        samples(task(), [])
    with pytest.raises(ConfigError, match="max_samples is 0"):
        samples(task(), ROWS, 0)


def test_the_digest_changes_with_anything_a_sample_says() -> None:
    base = Sample(id="a", question="q", target="1", views={"planner": "p"})
    others = [
        Sample(id="b", question="q", target="1", views={"planner": "p"}),
        Sample(id="a", question="r", target="1", views={"planner": "p"}),
        Sample(id="a", question="q", target="2", views={"planner": "p"}),
        Sample(id="a", question="q", target="1", views={"planner": "o"}),
        Sample(id="a", question="q", target="1"),
    ]
    assert len({data_digest([sample]) for sample in (base, *others)}) == 6
    assert data_digest([base, others[0]]) != data_digest([others[0], base])
    assert data_digest([base]) == data_digest([Sample(id="a", question="q", target="1", views={"planner": "p"})])


def test_a_split_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownNameError, match="no split of toy is called 'tset'; did you mean 'test'"):
        task().rows("tset")
