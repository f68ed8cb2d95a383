"""Rows are read from files, checked and turned into samples; what is broken is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from latentmas.errors import ConfigError, DataError, UnknownNameError
from latentmas.protocols import Row
from latentmas.row_files import read_rows
from latentmas.rows import TableTask, data_digest, marked_answer, require, row_id, samples
from latentmas.samples import AnswerKind, Sample
from latentmas.scorers.number import parse_target, score
from latentmas.tasks import _hub, gsm8k

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
        scorer=score,
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
        case _:
            parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["json", "data.json", "jsonl", "jsonl.gz", "parquet"])
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
        ("a.json", b"5", "holds no list of rows"),
        ("a.json", b'[{"a": 1},\n 7]', "row 1 is no object but int"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "line 2, column 7: not JSON"),
        ("a.json", b'{"a": 1}\n{"a": 2}', r"not JSON.*belongs into a \.jsonl file"),
        ("a.parquet", b"no parquet", "no readable Parquet file"),
        ("a.csv", b"a,b", r"expected a name that ends in \.json, \.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


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
    assert row_id({"id": 7}, 3, "toy") == "7"
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


class _Offline:
    @staticmethod
    def load_dataset(*_: object, **__: object) -> list[Row]:
        raise ConnectionError("Couldn't reach it\nsecond line")


def test_a_hub_that_cannot_be_reached_asks_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", _Offline.load_dataset)
    with pytest.raises(ConfigError, match=r"openai/gsm8k .*ConnectionError: Couldn't reach it\); pass --dataset FILE"):
        _hub.hub_rows(gsm8k.CARD, "test")


def test_the_row_count_of_the_hub_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: ROWS)
    assert _hub.hub_rows(CARD, "test") == ROWS
    with pytest.raises(DataError, match="a/b, split 'test', has 2 rows; expected 3"):
        _hub.hub_rows(replace(CARD, rows={"test": 3}), "test")
