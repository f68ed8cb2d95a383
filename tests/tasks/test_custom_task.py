"""A YAML file makes a task of any file of rows; whatever is wrong in it is named by line and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentmas.errors import ConfigError, DataError
from latentmas.protocols import Row, Task
from latentmas.rows import samples
from latentmas.samples import AnswerKind, Sample
from latentmas.tasks._custom import load_task

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = {"name": "sums", "answer_kind": "number", "question": "q", "target": "a"}
CHOICE = {**NUMBER, "answer_kind": "choice", "options": "o"}
CODE = {**NUMBER, "answer_kind": "code"}
TEST = "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(twice(*inp), exp, 0)\n"


def write(folder: Path, entry: dict[str, Any] | str) -> Path:
    path = folder / "task.yaml"
    path.write_text(entry if isinstance(entry, str) else yaml.safe_dump(entry, sort_keys=False), encoding="utf-8")
    return path


def load(folder: Path, entry: dict[str, Any] | str) -> Task:
    return load_task(write(folder, entry))


def test_the_example_is_a_task() -> None:
    task = load_task(EXAMPLES / "custom_task.yaml")
    assert (task.name, task.answer_kind, task.splits) == ("capitals", AnswerKind.CHOICE, ("test",))
    assert task.defaults == {"max_new_tokens": 1024}
    assert (task.card.rows["test"], task.card.licence) == (4, "Apache-2.0")
    found = samples(task, task.rows("test"))
    assert [(sample.id, sample.target) for sample in found][:2] == [("iceland", "2"), ("malta", "1")]
    assert found[0].question == "What is the capital of Iceland?\n\n1. Akureyri\n2. Reykjavik\n3. Oslo"


def test_rows_are_looked_for_beside_the_task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.csv").write_text("q,a\none?,1\n", encoding="utf-8")
    path = write(tmp_path, {**NUMBER, "data": "rows.csv"})
    monkeypatch.chdir("/")
    task = load_task(path)
    assert samples(task, task.rows("test"))[0].target == "1"


def test_a_task_without_rows_of_its_own_asks_for_a_file(tmp_path: Path) -> None:
    task = load(tmp_path, NUMBER)
    assert task.sample({"q": "one?", "a": 1}, 0).target == "1"
    with pytest.raises(ConfigError, match=r"task\.yaml names no rows; add 'data: FILE' or pass --dataset FILE"):
        task.rows("test")
    with pytest.raises(DataError, match=r"no file .*none\.jsonl"):
        load(tmp_path, {**NUMBER, "data": "none.jsonl"})


@pytest.mark.parametrize(
    ("value", "target"),
    [(18, "18"), ("1,450,000", "1,450,000"), (0.5, "0.5"), (3.0, "3.0"), (" 3/4 ", "3/4"), (-2, "-2")],
)
def test_a_number_may_be_written_in_any_way(value: object, target: str, tmp_path: Path) -> None:
    sample = load(tmp_path, NUMBER).sample({"q": " one? ", "a": value, "id": 7}, 0)
    assert sample == Sample(id="7", question="one?", target=target)


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        (CHOICE, {"o": ["x", "y", "z"], "a": "B"}),
        (CHOICE, {"o": ["x", "y", "z"], "a": "y"}),
        (CHOICE, {"o": '["x", "y", "z"]', "a": "B"}),
        ({**CHOICE, "options": ["o1", "o2", "o3"]}, {"o1": "x", "o2": "y", "o3": "z", "a": "y"}),
        ({**CHOICE, "labels": ["A", "B", "C"]}, {"o": ["x", "y", "z"], "a": "B"}),
        ({**CHOICE, "labels": "l"}, {"o": ["x", "y", "z"], "l": ["A", "B", "C"], "a": "B"}),
    ],
)
def test_a_choice_has_its_options_in_one_column_or_several(entry: dict[str, Any], row: Row, tmp_path: Path) -> None:
    sample = load(tmp_path, entry).sample({**row, "q": "which?", "id": "i"}, 0)
    assert sample == Sample(
        id="i",
        question="which?\n\nA. x\nB. y\nC. z",
        target="B",
        labels=("A", "B", "C"),
        options=("x", "y", "z"),
    )


def test_code_has_the_name_of_its_function_in_a_column_or_in_its_test(tmp_path: Path) -> None:
    row = {"q": "Write twice.", "a": TEST, "f": "twice", "id": "i"}
    expected = Sample(id="i", question="Write twice.", target=TEST, entry_point="twice")
    assert load(tmp_path, CODE).sample(row, 0) == expected
    assert load(tmp_path, {**CODE, "entry_point": "f"}).sample(row, 0) == expected


@pytest.mark.parametrize(
    "test",
    [
        "assert twice(2) == 4\nassert 0 == twice(0)",
        "import math\nassert math.isclose(twice(0.5), 1.0)\nassert isclose(twice(1), 2)",
        "assert set(twice([1])) == set((2,)) and not twice([])",
        "for x in (1, 2):\n    assert abs(twice(x) - 2 * x) < 1e-6",
    ],
)
def test_a_test_of_ones_own_names_its_function(test: str, tmp_path: Path) -> None:
    assert load(tmp_path, CODE).sample({"q": "?", "a": test}, 0).entry_point == "twice"


def test_an_id_may_come_from_any_column(tmp_path: Path) -> None:
    assert load(tmp_path, {**NUMBER, "id": "key"}).sample({"q": "?", "a": 1, "key": 12}, 0).id == "12"
    assert load(tmp_path, NUMBER).sample({"q": "?", "a": 1}, 3).id.startswith("3-")


@pytest.mark.parametrize(
    ("entry", "row", "message"),
    [
        (NUMBER, {"q": "?"}, "column 'a'"),
        (NUMBER, {"a": 1}, "has no column 'q'; it has: a"),
        (NUMBER, {"q": "?", "a": "many"}, "column 'a': target 'many' is no number"),
        (NUMBER, {"q": "?", "a": float("nan")}, "column 'a': target 'nan' is no number"),
        (NUMBER, {"q": "?", "a": [1]}, "column 'a': expected a text or an int, found list [1]"),
        ({**NUMBER, "id": "key"}, {"q": "?", "a": 1}, "has no column 'key'; it has: a, q"),
        (CHOICE, {"q": "?", "a": "A"}, "has no column 'o'; it has: a, q"),
        (CHOICE, {"q": "?", "a": "A", "o": "x"}, "column 'o': expected a list of texts, found str 'x'"),
        (CHOICE, {"q": "?", "a": "A", "o": ["x"]}, "column 'o': expected at least 2 options, found 1"),
        (CHOICE, {"q": "?", "a": "C", "o": ["x", "y"]}, "column 'a': 'C' is the text of 0 options"),
        (CHOICE, {"q": "?", "a": "x", "o": ["x", "x"]}, "column 'a': 'x' is the text of 2 options"),
        (CHOICE, {"q": "?", "a": "A", "o": ["B", "A"]}, "column 'a': 'A' is a label and the text of another option"),
        ({**CHOICE, "labels": ["1", "2"]}, {"q": "?", "a": "1", "o": ["x", "y", "z"]}, "3 options have 2 labels"),
        ({**CHOICE, "labels": "l"}, {"q": "?", "a": "1", "o": ["x", "y"], "l": 1}, "column 'l': expected a list"),
        ({**CHOICE, "options": ["x", "y"]}, {"q": "?", "a": "A", "x": 1}, "has no column 'y'"),
        (CODE, {"q": "?", "a": "print(1)"}, "column 'a' has no assertion(function(...), ...)"),
        (CODE, {"q": "?", "a": "assert f(1) == g(1)"}, "column 'a' calls more than one function: f, g"),
        (CODE, {"q": "?", "a": TEST.replace("twice", "candidate")}, "name the column with the name of the function"),
        ({**CODE, "entry_point": "f"}, {"q": "?", "a": TEST, "f": "not a name"}, "column 'f': 'not a name' is no name"),
    ],
)
def test_a_row_that_does_not_fit_names_task_row_and_column(
    entry: dict[str, Any], row: Row, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load(tmp_path, entry).sample(row, 4)
    assert str(caught.value).startswith("sums row 4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "line 1, name: expected up to 64 letters, digits, '-' and '_', found None"),
        ({"name": "a/b"}, "line 1, name: expected up to 64 letters, digits, '-' and '_', found 'a/b'"),
        ({"name": 5}, "line 1, name: expected up to 64 letters, digits, '-' and '_', found 5"),
        ({"answer_kind": "text"}, "line 2, answer_kind: expected one of number, choice, code, found 'text'"),
        ({"question": ["q"]}, "line 3, question: expected the name of a column, in quotes if need be, found ['q']"),
        ({"target": 1}, "line 4, target: expected the name of a column, in quotes if need be, found 1"),
        ({"target": ""}, "line 4, target: expected the name of a column, in quotes if need be, found ''"),
        ({"max_new_tokens": 0}, "line 5, max_new_tokens: expected a whole number, at least 1, found 0"),
        ({"max_new_tokens": "many"}, "line 5, max_new_tokens: expected a whole number, at least 1, found 'many'"),
        ({"max_new_tokens": True}, "line 5, max_new_tokens: expected a whole number, at least 1, found True"),
        ({"data": 5}, "line 5, data: expected the path of a file of rows, found 5"),
        ({"option": "o"}, "line 5, option: is no key of a task file; did you mean 'options'?"),
        ({"colour": "red"}, "line 5, colour: is no key of a task file; there are: name, answer_kind, question"),
        ({"options": "o"}, "line 5, options: belongs to answer_kind choice, and this one is number"),
        ({"labels": "o"}, "line 5, labels: belongs to answer_kind choice, and this one is number"),
        ({"entry_point": "o"}, "line 5, entry_point: belongs to answer_kind code, and this one is number"),
        ({"answer_kind": "choice"}, "options: is missing; a choice needs the column or the columns of its options"),
        ({"answer_kind": "choice", "options": ["o"]}, "line 5, options: expected the name of a column with a list of"),
        ({"answer_kind": "choice", "options": "o", "labels": [1, 2]}, "line 6, labels: expected the name of a column"),
        ({"answer_kind": "choice", "options": {"a": "b"}}, "line 5, options: expected the name of a column with a li"),
    ],
)
def test_a_task_file_that_is_wrong_names_line_and_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"task.yaml, {message}")):
        load(tmp_path, {**NUMBER, **changes})


@pytest.mark.parametrize("key", ["name", "answer_kind", "question", "target"])
def test_a_key_that_is_missing_is_named(key: str, tmp_path: Path) -> None:
    entry = {name: value for name, value in NUMBER.items() if name != key}
    with pytest.raises(ConfigError, match=rf"task\.yaml, {key}: is missing"):
        load(tmp_path, entry)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected lines such as 'name: capitals'"),
        ("- name: a\n", "expected lines such as 'name: capitals'"),
        ("name: a\nquestion: q\nname: b\n", "line 3: 'name' stands here a second time, the first is in line 1"),
        ("name: a\n1: b\n", "line 2: a key must be text"),
        ("name: a\n<<: {question: q}\n", "line 2: a key must be text"),
        ("name: 'a\n", "no valid YAML"),
        ("name: a\n  b: c\n", "line 2: no valid YAML"),
        ("name: !!python/object:os.system a\n", "no valid YAML"),
        ("name: 2020-13-45\n", "a value is not what its form says; put it in quotes"),
        ("[" * 5000, "is nested too deeply"),
    ],
)
def test_a_text_that_is_no_task_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task file '.*none\.yaml' cannot be read: No such file"):
        load_task(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml' is not UTF-8 \(byte 6\)"):
        load_task(tmp_path / "latin.yaml")


def test_the_example_shows_every_key_that_a_choice_can_have() -> None:
    given = yaml.safe_load((EXAMPLES / "custom_task.yaml").read_text(encoding="utf-8"))
    assert given.keys() == {*CHOICE, "data", "labels", "id", "max_new_tokens", "licence", "description"}


NESTED: Row = {
    "question": {"stem": "one?", "choices": [{"text": "uno", "label": "1"}, {"text": "dos", "label": "2"}]},
    "gold": {"label": "2", "value": 7},
}


@pytest.mark.parametrize(
    "options",
    [{"options": "question.choices"}, {"options": "question.choices.text", "labels": "question.choices.label"}],
)
def test_a_path_names_a_column_within_another(options: dict[str, Any], tmp_path: Path) -> None:
    task = load(tmp_path, {**CHOICE, "question": "question.stem", "target": "gold.label", **options})
    sample = task.sample(NESTED, 0)
    assert (sample.question, sample.labels, sample.options, sample.target) == (
        "one?\n\n1. uno\n2. dos",
        ("1", "2"),
        ("uno", "dos"),
        "2",
    )
    number = load(tmp_path, {**NUMBER, "question": "question.stem", "target": "gold.value"})
    assert number.sample(NESTED, 0).target == "7"


def test_what_a_path_leads_through_may_be_text_as_in_a_csv_file(tmp_path: Path) -> None:
    task = load(tmp_path, {**NUMBER, "question": "question.stem", "target": "gold.value"})
    sample = task.sample({name: repr(value) for name, value in NESTED.items()}, 0)
    assert (sample.question, sample.target) == ("one?", "7")


def test_a_column_whose_name_has_a_dot_comes_before_a_path(tmp_path: Path) -> None:
    task = load(tmp_path, {**NUMBER, "question": "question.stem", "target": "gold.value"})
    assert task.sample({**NESTED, "question.stem": "two?"}, 0).question == "two?"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("question.start", "row 3, column 'question.start': 'question' has no 'start'; it has: choices, stem"),
        ("question.stem.more", "'question.stem' has no 'more'; it has: str"),
        ("ask.stem", "row 3 has no column 'ask.stem'"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(path: str, message: str, tmp_path: Path) -> None:
    task = load(tmp_path, {**NUMBER, "question": path, "target": "gold.value"})
    with pytest.raises(DataError, match=re.escape(message)):
        task.sample(NESTED, 3)


def test_options_may_be_an_object_of_labels_and_texts(tmp_path: Path) -> None:
    task = load(tmp_path, CHOICE)
    sample = task.sample({"q": "one?", "o": {"A": "uno", "B": "dos"}, "a": "dos"}, 0)
    assert (sample.labels, sample.options, sample.target) == (("A", "B"), ("uno", "dos"), "B")
