"""``latentmas grade``: stored answers in, scores out, without a model."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from latentmas.cli import main

NUMBER = {"id": "n", "task": "gsm8k", "output": r"so \boxed{18}", "target": "18"}
CHOICE = {
    "id": 7,
    "task": "arc_challenge",
    "output": "The answer is (B).",
    "target": "B",
    "labels": ["A", "B"],
    "options": ["tin", "iron"],
}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_answer_gets_one_line_with_its_own_id_in_its_order(tmp_path, capsys):
    cut = {**NUMBER, "id": "cut", "output": "first 1, then 18", "finish_reason": "length"}
    file = write(tmp_path / "answers.jsonl", CHOICE, NUMBER, cut)
    assert main(["grade", str(file), "--output", str(tmp_path / "out" / "scores.jsonl")]) == 0
    lines = read(tmp_path / "out" / "scores.jsonl")
    assert [line["id"] for line in lines] == [7, "n", "cut"]
    assert [line["verdict"] for line in lines] == ["correct", "correct", "no_answer"]
    assert [list(line) for line in lines] == [["id", "verdict", "prediction", "found_by", "detail"]] * 3
    assert lines[1]["found_by"] == "box"
    assert "gsm8k" in capsys.readouterr().out


def test_without_an_output_the_lines_go_to_stdout_and_the_table_to_stderr(tmp_path, capsys):
    assert main(["grade", str(write(tmp_path / "answers.jsonl", NUMBER))]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["verdict"] == "correct"
    assert "gsm8k" in err


def test_a_key_that_means_nothing_here_is_named_and_ignored(tmp_path, capsys):
    assert main(["grade", str(write(tmp_path / "answers.jsonl", {**NUMBER, "note": 1}))]) == 0
    assert "ignored keys" in (err := capsys.readouterr().err)
    assert "note" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({**NUMBER, "target": "cows"}, "answer 2, target: target 'cows' is no number"),
        ({name: value for name, value in NUMBER.items() if name != "target"}, "answer 2: has no 'target'"),
        ({**NUMBER, "output": None}, "answer 2: 'output' is None"),
        ({**NUMBER, "finish_reason": "eos"}, "answer 2: 'finish_reason' is 'eos'"),
        ({**NUMBER, "task": "gsm9k"}, "no task is called 'gsm9k'"),
        ({**CHOICE, "target": "E"}, "answer 2, target: "),
        ({**CHOICE, "options": ["tin"]}, "answer 2, target: "),
    ],
)
def test_a_line_that_cannot_be_graded_is_named_before_anything_is_graded(tmp_path, capsys, line, said):
    file = write(tmp_path / "answers.jsonl", NUMBER, line)
    (tmp_path / "scores.jsonl").write_text("earlier scores")
    assert main(["grade", str(file), "--output", str(tmp_path / "scores.jsonl")]) == 2
    err = capsys.readouterr().err
    assert said in " ".join(err.split())
    assert (tmp_path / "scores.jsonl").read_text() == "earlier scores"


def test_scores_never_take_the_place_of_answers(tmp_path, capsys):
    file = write(tmp_path / "answers.jsonl", NUMBER)
    before = file.read_bytes()
    assert main(["grade", str(file), "--output", str(tmp_path / "." / "answers.jsonl")]) == 2
    assert "what the answers come from" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said_in_one_line(tmp_path, capsys):
    assert main(["grade", str(write(tmp_path / "answers.jsonl", NUMBER)), "--output", "/dev/full"]) == 1
    assert "cannot write /dev/full" in capsys.readouterr().err


def test_null_stands_for_what_is_not_there(tmp_path):
    line = {**NUMBER, "finish_reason": None, "labels": None, "options": None, "entry_point": None}
    assert main(["grade", str(write(tmp_path / "answers.jsonl", line))]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("grade nowhere.jsonl", "no run folder and no file nowhere.jsonl"),
        ("grade .", "no manifest.json"),
        ("grade nowhere.jsonl --grading loose", "no way of grading is called 'loose'"),
        ("grade nowhere.jsonl --code_exec off", "leave it out"),
    ],
)
def test_what_cannot_be_graded_is_said_in_one_line(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(words)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_run_is_graded_again_from_its_records_alone(tmp_path, capsys):
    rows = write(
        tmp_path / "rows.jsonl", {"question": "1 + 1?", "answer": "#### 2"}, {"question": "?", "answer": "#### 3"}
    )
    words = f"run --method text_mas --model_name scripted --max_new_tokens 8 --dataset {rows}"
    assert main([*shlex.split(words), "--output_dir", str(tmp_path / "run")]) == 0
    rows.unlink()
    records = tmp_path / "run" / "records.jsonl"
    before = records.read_text()
    # An answer that was graded wrongly by an earlier version.
    records.write_text(before.replace('"verdict": "no_answer"', '"verdict": "correct"', 1))
    capsys.readouterr()
    assert main(["grade", str(tmp_path / "run")]) == 0
    assert "1 x correct -> no_answer" in capsys.readouterr().err
    graded = {line["id"]: line["verdict"] for line in read(tmp_path / "run" / "grades.jsonl")}
    assert graded == {line["id"]: line["verdict"] for line in map(json.loads, before.splitlines())}


def test_the_command_line_lists_every_task(capsys):
    assert main(["tasks", "--verbose"]) == 0
    out = capsys.readouterr().out
    for name in ("gsm8k", "aime2024", "aime2025", "gpqa", "arc_easy", "arc_challenge", "mbppplus", "humanevalplus"):
        assert name in out
    assert "--max_new_tokens 8192" in out


def test_doctor_says_how_code_would_be_confined():
    done = subprocess.run([sys.executable, "-m", "latentmas", "doctor"], capture_output=True, text=True, check=True)
    assert "sandbox bwrap" in done.stdout
    assert "model-written code" in done.stdout


def test_an_option_without_effect_is_told_once_for_each_reason(tmp_path, capsys):
    file = write(tmp_path / "answers.jsonl", CHOICE)
    options = "--dataset none.jsonl --workers 2 --code_exec rlimit --grading hub --math_verify"
    assert main(["grade", str(file), *options.split()]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert sorted(said) == [
        "--dataset has no effect: the answers hold all that grading needs",
        "--grading, --workers and --code_exec have no effect: none of these answers is code",
        "--math_verify has no effect: none of these answers is a number",
    ]
    assert main(["grade", str(write(tmp_path / "answers.jsonl", NUMBER)), "--math_verify"]) == 0
    assert "no effect" not in capsys.readouterr().err
