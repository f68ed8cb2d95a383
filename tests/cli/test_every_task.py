"""Every benchmark, end to end through the published command line, on rows of our own in the published columns."""

import json
import runpy
from pathlib import Path

import pytest

from latentmas.cli import main

ROOT = Path(__file__).parents[2]
SECRET = "Which of these invented gases is heaviest at dusk?"
PRELUDE = """
def is_floats(x):
    return isinstance(x, float)

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match
"""
ARC = {
    "id": "row-1",
    "question": "What does a magnet pull?",
    "choices": {"text": ["iron", "wood", "glass"], "label": ["1", "2", "3"]},
    "answerKey": "1",
}
ROWS = {
    "gsm8k": {"question": "How many are 2 and 3?", "answer": "2 + 3 = 5\n#### 5"},
    "aime2024": {"id": 1, "problem": "Find $2 + 3$.", "solution": "5", "answer": "005", "url": "", "year": "2024"},
    "aime2025": {"problem": "Find $20 + 3$.", "answer": "23"},
    "gpqa": {
        "Record ID": "rec-1",
        "Question": SECRET,
        "Correct Answer": "duskium SECRET",
        "Incorrect Answer 1": "dawnium SECRET",
        "Incorrect Answer 2": "noonium SECRET",
        "Incorrect Answer 3": "nightium SECRET",
        "Subdomain": "Chemistry",
    },
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "mbppplus": {
        "task_id": 9001,
        "code": "def twice(x):\n    return 2 * x\n",
        "prompt": "Write a function that doubles a number.",
        "source_file": "own",
        "test_imports": [],
        "test_list": ["assert twice(2) == 4", "assert twice(0) == 0", "assert twice(-1) == -2"],
        "test": f"import numpy as np\n{PRELUDE}\ninputs = [[2], [0]]\nresults = [4, 0]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(twice(*inp), exp, 0)\n",
    },
    "humanevalplus": {
        "task_id": "Own/0",
        "prompt": 'def twice(x: int) -> int:\n    """Return x two times."""\n',
        "canonical_solution": "    return 2 * x\n",
        "entry_point": "twice",
        "test": f"import numpy as np\n{PRELUDE}\ndef check(candidate):\n    inputs = [[2], [0]]\n    results = [4, 0]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n",
    },
    "medqa": {
        "idx": "0",
        "question": "Which organ pumps blood?",
        "options": ["A. Heart", "B. Liver", "C. Skin", "D. Lung"],
        "answer": "Heart",
        "query": "Which organ pumps blood? A. Heart B. Liver C. Skin D. Lung Choose the correct option.",
        "pid": "0",
    },
    "winogrande": {
        "sentence": "The cup fell off the tray because _ was tilted.",
        "option1": "the cup",
        "option2": "the tray",
        "answer": "2",
    },
}


def rows_of(task, folder):
    path = folder / f"{task}.jsonl"
    path.write_text(json.dumps(ROWS[task]) + "\n")
    return path


@pytest.mark.parametrize("task", ROWS)
def test_the_published_command_line_runs_every_task(task, tmp_path, model_folder, monkeypatch, capsys):
    folder = tmp_path / "run"
    words = ["--method", "latent_mas", "--model_name", str(model_folder)]
    words += ["--task", task, "--dataset", str(rows_of(task, tmp_path)), "--latent_steps", "2"]
    words += ["--max_new_tokens", "8", "--device", "cpu", "--output_dir", str(folder)]
    monkeypatch.setattr("sys.argv", ["run.py", *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert not end.value.code, err
    assert json.loads(out.splitlines()[-1])["method"] == "latent_mas"
    [record] = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    assert record["error"] is None
    assert record["verdict"] in {"correct", "wrong", "no_answer", "crashed"}
    if task == "gpqa":
        shown = out + err + "".join(path.read_text() for path in folder.iterdir())
        assert "SECRET" not in shown
        assert SECRET not in shown


@pytest.mark.parametrize("method", ["baseline", "text_mas"])
def test_a_task_of_code_is_graded_by_running_the_code(method, tmp_path):
    """The scripted model cannot program, so its stored answers are replaced before they are graded again."""
    folder = tmp_path / "run"
    words = ["run", "--method", method, "--model_name", "scripted", "--task", "mbppplus", "--max_new_tokens", "8"]
    words += ["--dataset", str(rows_of("mbppplus", tmp_path)), "--output_dir", str(folder), "--code_exec", "off"]
    assert main(words) == 0
    path = folder / "records.jsonl"
    record = json.loads(path.read_text())
    assert record["verdict"] is None
    assert json.loads((folder / "summary.json").read_text())["accuracy"] is None
    record["text"] = "```python\ndef twice(x):\n    return x + x\n```"
    record["finish_reason"] = "stop"
    path.write_text(json.dumps(record) + "\n")
    assert main(["grade", str(folder)]) == 0
    assert json.loads((folder / "grades.jsonl").read_text())["verdict"] == "correct"


def test_dry_run_of_a_withheld_task_shows_no_text(tmp_path, capsys):
    words = ["run", "--method", "latent_mas", "--model_name", "scripted", "--task", "gpqa", "--dry_run"]
    assert main([*words, "--dataset", str(rows_of("gpqa", tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "SECRET" not in out
    assert "Which of" not in out


def test_withheld_records_can_be_graded_again_while_their_data_is_there(tmp_path, capsys):
    folder, rows = tmp_path / "run", rows_of("gpqa", tmp_path)
    words = ["run", "--method", "baseline", "--model_name", "scripted", "--task", "gpqa", "--max_new_tokens", "8"]
    assert main([*words, "--dataset", str(rows), "--output_dir", str(folder)]) == 0
    path = folder / "records.jsonl"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "text": r"\boxed{duskium SECRET}", "finish_reason": "stop"}) + "\n")
    assert main(["grade", str(folder)]) == 0
    assert json.loads((folder / "grades.jsonl").read_text())["verdict"] == "correct"
    elsewhere = rows.rename(tmp_path / "elsewhere.jsonl")
    capsys.readouterr()
    assert main(["grade", str(folder)]) == 2
    assert "hold no options" in capsys.readouterr().err
    assert main(["grade", str(folder), "--dataset", str(elsewhere)]) == 0
    elsewhere.write_text(elsewhere.read_text().replace("nightium", "mornium"))
    assert main(["grade", str(folder), "--dataset", str(elsewhere)]) == 2
    assert "has changed since the run" in capsys.readouterr().err
