"""Each benchmark: a row becomes the sample it should, a broken row names task, row and column."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentmas.errors import DataError, UnknownNameError
from latentmas.experiment.compose import find_task
from latentmas.protocols import Row
from latentmas.rows import samples
from latentmas.samples import AnswerKind, Sample

AIME = {"id": 60, "problem": " Find $\\frac{n}{2}$ for $n = 50$. ", "answer": "025"}
ARC: dict[str, Any] = {
    "id": "Own_1",
    "question": "What does a magnet pull?",
    "choices": {"text": ["iron", "wood", "glass"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}
MBPP: dict[str, Any] = {
    "task_id": 2,
    "prompt": "Write a function that doubles a number.",
    "test_list": ["assert twice(2) == 4", "assert twice(0) == 0", "assert twice(-1) == -2", "assert twice(3) == 6"],
    "test": "inputs = [[2]]\nresults = [4]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(twice(*inp), exp, 0)\n",
}
HUMANEVAL: dict[str, Any] = {
    "task_id": "HumanEval/7",
    "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\ndef twice(x: int) -> int:\n    """Double it."""\n    ',
    "entry_point": "twice",
    "test": "def check(candidate):\n    assertion(candidate(2), 4, 0)\n",
}
MEDQA_HUB = {
    "id": "test-00004",
    "sent1": "Which organ pumps blood?",
    "sent2": "",
    **{"ending0": "Liver", "ending1": "Skin", "ending2": "Heart", "ending3": "Lung"},
    "label": 2,
}
MEDQA_FILE: dict[str, Any] = {
    "idx": 4,
    "pid": "4",
    "question": "Which organ pumps blood?" + 2 * "\n\nA. Liver\nB. Skin\nC. Heart\nD. Lung",
    "options": ["A. Liver", "B. Skin", "C. Heart", "D. Lung"],
    "answer": "Heart",
    "query": "Which organ pumps blood?\nA. Liver\nB. Skin\nC. Heart\nD. Lung\nChoose the correct option.",
}
WINOGRANDE = {
    "sentence": "The cup fell off the tray because _ was tilted.",
    "option1": "the cup",
    "option2": "the tray",
    "answer": "2",
}


def convert(name: str, row: Row, index: int = 4) -> Sample:
    return find_task(name).sample(row, index)


@pytest.mark.parametrize(
    ("name", "kind", "split", "rows", "tokens"),
    [
        ("gsm8k", "number", "test", 1319, 2048),
        ("aime2024", "number", "train", 30, 20_000),
        ("aime2025", "number", "train", 30, 20_000),
        ("gpqa", "choice", "train", 198, 8192),
        ("arc_easy", "choice", "test", 2376, 2048),
        ("arc_challenge", "choice", "test", 1172, 2048),
        ("mbppplus", "code", "test", 378, 4096),
        ("humanevalplus", "code", "test", 164, 4096),
        ("medqa", "choice", "test", 1273, 4096),
        ("winogrande", "choice", "validation", 1267, 2048),
    ],
)
def test_a_task_says_what_it_is(name: str, kind: str, split: str, rows: int, tokens: int) -> None:
    task = find_task(name)
    assert (task.name, task.answer_kind, task.splits[0]) == (name, AnswerKind(kind), split)
    assert task.card.rows[split] == rows
    assert task.defaults == {"max_new_tokens": tokens}
    assert task.scorer is None
    assert re.fullmatch("[0-9a-f]{40}", task.card.revision or "")
    assert task.card.licence
    assert task.card.gated == task.card.withheld == (name == "gpqa")


@pytest.mark.parametrize("name", ["aime2024", "aime2025"])
def test_a_problem_of_aime_is_a_number(name: str) -> None:
    sample = convert(name, AIME)
    assert sample == Sample(id="60", question="Find $\\frac{n}{2}$ for $n = 50$.", target="25")
    for answer in (25, 25.0, "25", "25.0", " 25 "):
        assert convert(name, {**AIME, "answer": answer}) == sample
    for own in ("60", 60.0):
        assert convert(name, {**AIME, "id": own}) == sample
    without = convert(name, {"problem": AIME["problem"], "answer": 0})
    assert (without.target, without.id[:2]) == ("0", "4-")


def test_a_problem_of_aime_may_have_lines_and_tabs() -> None:
    for harmless in ("a\nb", "a\r\nb", "[asy]\n\tdraw(A--B);\n\tlabel(A);\n[/asy]", "a \\text{b} \\triangle"):
        assert convert("aime2024", {**AIME, "problem": harmless}).question == harmless


def test_every_row_of_arc_keeps_its_own_labels() -> None:
    assert convert("arc_easy", ARC) == convert("arc_challenge", ARC)
    sample = convert("arc_easy", ARC)
    assert sample.question == "What does a magnet pull?\n\n1. iron\n2. wood\n3. glass"
    assert (sample.id, sample.target, sample.labels) == ("Own_1", "1", ("1", "2", "3"))
    with_ints = {**ARC, "choices": {"text": ["iron", "wood", 3], "label": [1, 2, 3]}, "answerKey": 1}
    assert convert("arc_easy", with_ints).labels == ("1", "2", "3")
    for count in (2, 5):
        letters = list("ABCDE"[:count])
        row = {**ARC, "choices": {"text": ["same"] * count, "label": letters}, "answerKey": letters[-1]}
        assert convert("arc_easy", row).labels == tuple(letters)


def test_mbpp_shows_three_examples_and_takes_the_name_from_the_test() -> None:
    sample = convert("mbppplus", MBPP)
    assert (sample.id, sample.entry_point, sample.target) == ("Mbpp/2", "twice", MBPP["test"])
    assert sample.question.startswith("Write a function that doubles a number.")
    assert [line in sample.question for line in MBPP["test_list"]] == [True, True, True, False]
    assert "```python\nassert twice(2) == 4\n" in sample.question
    for own in ("2", "Mbpp/2", 2.0):
        assert convert("mbppplus", {**MBPP, "task_id": own}) == sample
    with_reference = MBPP["test"].replace("exp, 0)", "ref_func(*inp), 0)")
    assert convert("mbppplus", {**MBPP, "test": with_reference}).entry_point == "twice"
    assert convert("mbppplus", {**MBPP, "test_list": repr(MBPP["test_list"])}) == sample


def test_humaneval_shows_the_beginning_and_names_the_function() -> None:
    sample = convert("humanevalplus", HUMANEVAL)
    assert (sample.id, sample.entry_point, sample.target) == ("HumanEval/7", "twice", HUMANEVAL["test"])
    assert sample.question.endswith(f"```python\n{HUMANEVAL['prompt'].rstrip()}\n```")
    assert "`twice`" in sample.question


def test_both_forms_of_medqa_become_the_same_question() -> None:
    hub, shipped = convert("medqa", MEDQA_HUB), convert("medqa", MEDQA_FILE)
    assert hub.question == shipped.question == "Which organ pumps blood?\n\nA. Liver\nB. Skin\nC. Heart\nD. Lung"
    assert (hub.target, hub.labels, hub.options) == (shipped.target, shipped.labels, shipped.options)
    assert (hub.target, hub.id) == ("C", "test-00004")
    assert shipped.id.startswith("4-")
    as_text = {**MEDQA_FILE, "options": repr(MEDQA_FILE["options"]), "idx": "4", "pid": None}
    assert convert("medqa", as_text) == shipped
    assert convert("medqa", {**MEDQA_FILE, "question": "Which organ pumps blood?"}) == shipped
    bare = {**MEDQA_FILE, "question": "Which organ pumps blood?", "options": ["Liver", "Skin", "Heart", "Lung"]}
    assert convert("medqa", bare) == shipped
    assert convert("medqa", {**MEDQA_HUB, "label": "2"}) == hub


def test_the_quotation_mark_that_medqa_left_behind_an_option_is_no_part_of_it() -> None:
    question = MEDQA_FILE["question"].replace("D. Lung", 'D. Lung\n"')
    row = {**MEDQA_FILE, "question": question, "options": [*MEDQA_FILE["options"][:3], 'D. Lung\n"']}
    assert convert("medqa", row) == convert("medqa", MEDQA_FILE)
    assert convert("medqa", {**row, "answer": 'Lung\n"'}).target == "D"


def test_rows_of_medqa_with_the_same_number_have_different_ids() -> None:
    other = {**MEDQA_FILE, "question": "Which organ cleans blood?"}
    assert len({sample.id for sample in samples(find_task("medqa"), [MEDQA_FILE, other])}) == 2


MEDQA_LETTERS = {"A": "Liver", "B": "Skin", "C": "Heart", "D": "Lung"}


@pytest.mark.parametrize(
    "row",
    [
        {"options": MEDQA_LETTERS, "answer": "Heart", "answer_idx": "C", "meta_info": "step1", "metamap_phrases": []},
        {"options": MEDQA_LETTERS, "answer_idx": "C"},
        {"options": MEDQA_LETTERS, "answer": "C"},
        {"options": MEDQA_LETTERS, "answer_idx": 2},
        {"options": {**MEDQA_LETTERS, "E": None}, "answer": "Heart"},
        {"options": repr(MEDQA_LETTERS), "answer_idx": "C"},
        {"options": json.dumps(MEDQA_LETTERS), "answer_idx": "C"},
        {"options": [{"key": key, "value": value} for key, value in MEDQA_LETTERS.items()], "answer": "Heart"},
        {"options": [{"label": key, "text": value} for key, value in MEDQA_LETTERS.items()], "answer_idx": "C"},
        {"options": {"label": list(MEDQA_LETTERS), "text": list(MEDQA_LETTERS.values())}, "answer_idx": "C"},
        {"options": list(MEDQA_LETTERS.values()), "answer_idx": "C"},
        {"opa": "Liver", "opb": "Skin", "opc": "Heart", "opd": "Lung", "cop": 2},
        {"choices": list(MEDQA_LETTERS.values()), "answer": ["Heart"], "type": "multiple_choice"},
        {"choices": MEDQA_LETTERS, "answer": "C"},
    ],
)
def test_options_of_medqa_may_have_labels_of_their_own(row: Row) -> None:
    asked = {"id": "test-00004", "question": "Which organ pumps blood?", **row}
    assert convert("medqa", asked) == convert("medqa", MEDQA_HUB)


@pytest.mark.parametrize("write", [dict, repr])
def test_rows_of_medqa_may_be_nested_in_a_column(write: Callable[[object], object]) -> None:
    nested = {"Question": "Which organ pumps blood?", "Options": MEDQA_LETTERS, "Correct Option": "C"}
    row = {"id": "test-00004", "data": write({**nested, "Correct Answer": "Heart"}), "subject_name": None}
    assert convert("medqa", row) == convert("medqa", MEDQA_HUB)


@pytest.mark.parametrize(
    "choices",
    [
        repr(ARC["choices"]),
        json.dumps(ARC["choices"]),
        "{'text': array(['iron', 'wood', \"glass\"],\n      dtype=object), "
        "'label': array(['1', '2', '3'], dtype=object)}",
    ],
)
def test_the_options_of_arc_may_be_written_as_text(choices: str) -> None:
    assert convert("arc_easy", {**ARC, "choices": choices}) == convert("arc_easy", ARC)
    nested = repr({"stem": ARC["question"], "choices": ARC["choices"]})
    asked = {"id": "Own_1", "question": nested, "answerKey": "1"}
    assert convert("arc_easy", asked) == convert("arc_easy", ARC)


def test_no_options_of_arc_are_refused() -> None:
    with pytest.raises(DataError, match="column 'choices': expected dict, found list"):
        convert("arc_easy", {**ARC, "choices": []})


@pytest.mark.parametrize(
    "options", [ARC["choices"], [{"text": t, "label": n} for t, n in zip(*ARC["choices"].values(), strict=True)]]
)
def test_rows_of_arc_as_its_makers_gave_them_out_become_the_same_question(options: object) -> None:
    nested = {"id": "Own_1", "question": {"stem": ARC["question"], "choices": options}, "answerKey": "1"}
    assert convert("arc_easy", nested) == convert("arc_easy", ARC)
    assert convert("arc_easy", {**ARC, "choices": options}) == convert("arc_easy", ARC)


def test_winogrande_asks_for_the_blank() -> None:
    sample = convert("winogrande", WINOGRANDE)
    assert sample.question.endswith(f"\n\n{WINOGRANDE['sentence']}\n\n1. the cup\n2. the tray")
    assert (sample.target, sample.labels) == ("2", ("1", "2"))
    assert convert("winogrande", {**WINOGRANDE, "answer": 2}).target == "2"


def test_winogrande_is_not_evaluated_on_rows_without_labels() -> None:
    with pytest.raises(UnknownNameError, match="no split of winogrande is called 'test'; choose from: train, validat"):
        find_task("winogrande").rows("test")


def without(row: dict[str, Any], column: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != column}


BROKEN: list[tuple[str, Row, str]] = [
    ("aime2024", without(AIME, "problem"), "has no column 'problem'; it has: answer, id"),
    ("aime2024", without(AIME, "answer"), "has no column 'answer'; it has: id, problem"),
    ("aime2024", {**AIME, "problem": 5}, "column 'problem': expected str, found int 5"),
    ("aime2024", {**AIME, "problem": " "}, "column 'problem' is blank"),
    ("aime2024", {**AIME, "problem": "$\frac12$"}, r"column 'problem' holds the control character '\x0c' at offset 1"),
    ("aime2024", {**AIME, "problem": "in $\triangle ABC$"}, r"column 'problem' holds the control character '\t' at"),
    ("aime2024", {**AIME, "problem": "$2\times 3$"}, r"column 'problem' holds the control character '\t' at offset 2"),
    ("aime2024", {**AIME, "problem": "$\text{one}$"}, r"column 'problem' holds the control character '\t'"),
    ("aime2024", {**AIME, "problem": "$\binom{4}{2}$"}, r"column 'problem' holds the control character '\x08'"),
    ("aime2024", {**AIME, "problem": "$\right)$"}, r"column 'problem' holds the control character '\r'"),
    *(
        (
            "aime2025",
            {**AIME, "answer": answer},
            f"column 'answer': expected a whole number from 0 to 999, found {shown}",
        )
        for answer, shown in [(1000, "'1000'"), (-1, "'-1'"), ("2.5", "'2.5'"), ("x", "'x'"), ("1/2", "'1/2'")]
    ),
    ("aime2025", {**AIME, "answer": 2.5}, "column 'answer': expected a text or an int, found float 2.5"),
    ("aime2025", {**AIME, "answer": True}, "column 'answer': expected a text or an int, found bool True"),
    ("aime2025", {**AIME, "answer": None}, "column 'answer': expected a text or an int, found NoneType None"),
    ("aime2025", {**AIME, "id": [1]}, "column 'id': expected a text or an int, found list [1]"),
    ("arc_easy", without(ARC, "choices"), "has no column 'choices'; it has: answerKey, id, question"),
    ("arc_easy", {**ARC, "question": {"stem": "x"}}, "column 'question': expected str, found dict"),
    ("arc_easy", {**ARC, "choices": ["iron"]}, "column 'choices': expected dict, found list ['iron']"),
    ("arc_easy", {**ARC, "choices": {"text": ["a"]}}, "has no column 'choices.label'; it has: choices.text"),
    ("arc_easy", {**ARC, "choices": {"text": ["a", "b"], "label": ["A"]}}, "column 'choices': 2 options have 1 labels"),
    ("arc_easy", {**ARC, "choices": {"text": ["a"], "label": ["A"]}}, "column 'choices': expected at least 2 options"),
    ("arc_easy", {**ARC, "choices": {"text": ["a", ""], "label": ["A", "B"]}}, "'choices.text', entry 2 is blank"),
    (
        "arc_easy",
        {**ARC, "choices": {"text": ["a", "b"], "label": ["A", "A"]}},
        "column 'choices': the labels A, A are",
    ),
    ("arc_challenge", {**ARC, "answerKey": "A"}, "column 'answerKey': 'A' is none of the labels 1, 2, 3"),
    ("arc_challenge", {**ARC, "answerKey": ""}, "column 'answerKey' is blank"),
    ("mbppplus", without(MBPP, "test_list"), "has no column 'test_list'; it has: prompt, task_id, test"),
    ("mbppplus", without(MBPP, "test"), "has no column 'test'; it has: prompt, task_id, test_list"),
    ("mbppplus", {**MBPP, "test_list": []}, "column 'test_list' is empty"),
    ("mbppplus", {**MBPP, "test_list": [["assert"]]}, "column 'test_list', entry 1: expected a text or an int"),
    ("mbppplus", {**MBPP, "test": "assert x == 4"}, "column 'test' has no assertion(function(...), ...)"),
    ("mbppplus", {**MBPP, "test": "for i in x:\n  assertion(a.b(1), 2)"}, "column 'test' has no assertion(function"),
    ("mbppplus", {**MBPP, "test": "no python"}, "column 'test' has no assertion(function(...), ...)"),
    ("mbppplus", {**MBPP, "test": "assertion(f(1), 2)\nassertion(g(1), 2)"}, "column 'test' calls more than one fun"),
    ("mbppplus", {**MBPP, "task_id": 2.5}, "column 'task_id': expected a text or an int, found float 2.5"),
    ("humanevalplus", without(HUMANEVAL, "entry_point"), "has no column 'entry_point'"),
    ("humanevalplus", {**HUMANEVAL, "entry_point": "twic"}, "column 'entry_point': 'twic' is no function that begins"),
    ("humanevalplus", {**HUMANEVAL, "entry_point": "a b"}, "column 'entry_point': 'a b' is no function that begins"),
    ("humanevalplus", {**HUMANEVAL, "prompt": "twice"}, "column 'entry_point': 'twice' is no function that begins"),
    ("humanevalplus", {**HUMANEVAL, "test": None}, "column 'test': expected str, found NoneType None"),
    (
        "medqa",
        {"query": "x"},
        "has neither the columns of the hub (id, sent1, ending0, ending1, ending2, ending3, label)",
    ),
    ("medqa", without(MEDQA_HUB, "ending3"), "has no column 'ending3'"),
    ("medqa", {**MEDQA_HUB, "label": 4}, "column 'label': expected 0, 1, 2 or 3, found '4'"),
    ("medqa", {**MEDQA_HUB, "ending1": None}, "column 'ending1': expected str, found NoneType None"),
    (
        "medqa",
        {**MEDQA_FILE, "options": MEDQA_LETTERS, "answer_idx": "B"},
        "column 'answer_idx' is B, but its 'answer' is the text of option C",
    ),
    (
        "medqa",
        {**without(MEDQA_FILE, "answer"), "answer_idx": 4},
        "column 'answer_idx': '4' is none of the labels A, B, C, D, and no number from 0 to 3",
    ),
    (
        "medqa",
        {**MEDQA_FILE, "options": [{"name": "Heart"}]},
        "column 'options': expected a list of texts, {label: text}",
    ),
    (
        "medqa",
        {"question": "?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 4},
        "column 'cop': expected 0, 1,",
    ),
    ("arc_easy", {**ARC, "question": {"stem": "?", "choices": ["iron"]}}, "column 'question.choices': expected dict"),
    ("arc_easy", {**ARC, "question": {"choices": ARC["choices"]}}, "has no column 'question.stem'"),
    ("medqa", without(MEDQA_FILE, "options"), "has no column 'options'"),
    (
        "medqa",
        {**MEDQA_FILE, "options": "A. Liver"},
        "column 'options': expected a list of texts, found str 'A. Liver'",
    ),
    ("medqa", {**MEDQA_FILE, "answer": "heart"}, "column 'answer': 'heart' is the text of 0 options; expected 1"),
    ("medqa", {**MEDQA_FILE, "options": ["Heart", "Heart"]}, "column 'answer': 'Heart' is the text of 2 options"),
    ("medqa", {**MEDQA_FILE, "options": ["Heart", *"abcde"]}, "column 'options': 6 options have 5 labels"),
    ("medqa", {**MEDQA_FILE, "options": ["Heart"]}, "column 'options': expected at least 2 options, found 1"),
    ("medqa", {**MEDQA_FILE, "question": "a\nb", "options": ["a", "b"]}, "column 'question' holds nothing but the opt"),
    ("winogrande", {**WINOGRANDE, "sentence": "No blank."}, "column 'sentence': expected one blank '_', found 0"),
    ("winogrande", {**WINOGRANDE, "sentence": "_ and _."}, "column 'sentence': expected one blank '_', found 2"),
    ("winogrande", {**WINOGRANDE, "answer": ""}, "column 'answer' is empty, as in the test split; use the validation"),
    ("winogrande", {**WINOGRANDE, "answer": "3"}, "column 'answer': '3' is none of the labels 1, 2"),
    ("winogrande", {**WINOGRANDE, "option2": " "}, "column 'option2' is blank"),
    ("winogrande", without(WINOGRANDE, "answer"), "has no column 'answer'; it has: option1, option2, sentence"),
]


@pytest.mark.parametrize(("name", "row", "message"), BROKEN)
def test_a_broken_row_names_task_row_and_column(name: str, row: Row, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        convert(name, row)
    assert str(caught.value).startswith(f"{name} row 4")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["A", "[]", "_"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label"]), inner, max_size=2),
    max_leaves=4,
)
GOOD: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": "q", "answer": "#### 1"}],
    "aime2024": [AIME],
    "aime2025": [AIME],
    "gpqa": [{"Question": "q", **{f"{kind}": kind for kind in import_module("latentmas.tasks.gpqa").ANSWERS}}],
    "arc_easy": [ARC],
    "arc_challenge": [ARC],
    "mbppplus": [MBPP],
    "humanevalplus": [HUMANEVAL],
    "medqa": [MEDQA_HUB, MEDQA_FILE],
    "winogrande": [WINOGRANDE],
}


@given(st.data())
def test_any_row_becomes_a_sample_that_keeps_its_contract_or_a_data_error(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(GOOD)))
    row = dict(data.draw(st.sampled_from(GOOD[name])))
    for column in data.draw(st.lists(st.sampled_from([*row, "id"]), max_size=3)):
        row[column] = data.draw(VALUES)
    try:
        sample = convert(name, row)
    except DataError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith(f"{name} row 4")
        return
    assert all(text.strip() for text in (sample.id, sample.question, sample.target, *sample.options))
    assert len(sample.labels) == len(sample.options)
    assert (sample.target in sample.labels) == bool(sample.labels)
    json.dumps(sample.question).encode()


@pytest.mark.network
@pytest.mark.parametrize("name", sorted({*GOOD} - {"gsm8k", "gpqa"}))
def test_the_hub_has_the_rows_each_task_expects(name: str) -> None:
    task = find_task(name)
    for split in task.splits:
        assert len(samples(task, task.rows(split))) == task.card.rows[split]
