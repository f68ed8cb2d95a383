"""A run that grows, or that is gone on with by another spelling of its command, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentmas.cli import main

SCRIPTED = "run --method text_mas --model_name scripted --task tiny --temperature 0.7 --max_new_tokens 12"
TINY = "run --method latent_mas --model_name tiny --task tiny --latent_steps 1 --max_new_tokens 4"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: str, folder: Path, samples: int | None = None) -> int:
    more = [] if samples is None else ["--max_samples", str(samples)]
    return main([*shlex.split(words), "--output_dir", str(folder), *more])


def outcome(folder: Path) -> tuple[list[object], dict[str, object]]:
    """Return records and summary of a run, without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for record in records:
        for agent in record["agents"]:
            del agent["seconds"]
    summary = json.loads((folder / "summary.json").read_text())
    return records, {name: value for name, value in summary.items() if "seconds" not in name}


@pytest.mark.parametrize("words", [TINY, SCRIPTED, f"{TINY} --control noise --topology parallel"])
def test_a_finished_run_of_20_grown_to_50_equals_a_run_of_50(tmp_path: Path, words: str) -> None:
    for samples in (20, 50):
        assert run(words, tmp_path / "grown", samples) == 0
    assert run(words, tmp_path / "whole", 50) == 0
    assert outcome(tmp_path / "grown") == outcome(tmp_path / "whole")


def test_a_run_killed_while_it_grows_equals_one_that_was_not(tmp_path: Path) -> None:
    many = 160
    assert run(SCRIPTED, tmp_path / "whole", many) == 0
    killed = tmp_path / "killed"
    assert run(SCRIPTED, killed, 20) == 0
    command = [sys.executable, "-m", "latentmas", *shlex.split(SCRIPTED), "--max_samples", str(many)]
    for enough in (20, 50):
        process = subprocess.Popen(
            [*command, "--output_dir", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while json.loads((killed / "manifest.json").read_text())["samples"] < many or lines(killed) < enough:
            assert time.monotonic() < deadline
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert lines(killed) < many
    assert run(SCRIPTED, killed, many) == 0
    assert outcome(killed) == outcome(tmp_path / "whole")


def lines(folder: Path) -> int:
    return (folder / "records.jsonl").read_bytes().count(b"\n")


@pytest.mark.parametrize(
    ("first", "then", "sentence"),
    [
        ("--max_samples 4", "--max_samples 3", "has 4 samples, and --max_samples 3 asks for fewer"),
        ("--max_samples 4 --control other_question", "--max_samples 5 --control other_question", "it cannot grow to 5"),
        ("--max_samples 3", "--max_samples 4 --save_ids", "save_ids was False and is now True"),
        ("--max_samples 3", "--max_samples 4 --task tiny_split", "task was 'tiny' and is now 'tiny_split'"),
    ],
)
def test_what_would_not_be_the_same_run_is_one_line_and_loses_nothing(
    tmp_path: Path, first: str, then: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = SCRIPTED.replace("text_mas", "latent_mas")
    assert run(f"{words} {first}", tmp_path / "run") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert run(f"{words} {then}", tmp_path / "run") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert sentence in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("folder", [[], ["--output_dir", "run"]])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("", "--alignment norm --handover full --topology chain --temperature 0.6 --revision main --seed 42"),
        ("--filter recency", "--filter recency --keep 0.5 --protect_sinks 4 --protect_thoughts --filter_options '{ }'"),
        ("--latent_space_realign", "--alignment ridge"),
        ("--dataset rows.jsonl --task gsm8k", "--dataset {here}/rows.jsonl --task gsm8k"),
        ("--team team.yaml", "--team {here}/../{name}/team.yaml"),
        ("--prompt prompts.yaml", "--prompt {here}/prompts.yaml"),
    ],
)
def test_a_run_goes_on_under_another_spelling_also_where_its_folder_is_found_by_its_options(
    here: Path, first: str, then: str, folder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"question": f"{number}?", "answer": f"#### {number}"}) for number in range(3)]
    (here / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (here / "team.yaml").write_text("agents:\n  - {name: a, role: planner}\n  - {name: b, role: judger}\n")
    prompt = "answer_format: end\nagents:\n" + "".join(
        f"  {role}: {{latent: '{{question}}'}}\n" for role in ("planner", "critic", "refiner", "judger")
    )
    (here / "prompts.yaml").write_text(prompt)
    then = then.replace("{here}", str(here)).replace("{name}", here.name)
    for words, state in ((first, "new run of 2 samples"), (then, "goes on, 2 of 2 done")):
        assert main([*shlex.split(f"{TINY} --max_samples 2 {words}"), *folder]) == 0
        assert state in capsys.readouterr().err


def test_a_filter_whose_file_changed_is_refused_before_weights_are_loaded_and_for_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    code = "class Mine:\n    def score(self, sight):\n        return sight.memory.positions.double()\n"
    own.write_text(code)
    words = f"{TINY} --filter {own}:Mine"
    assert run(words, tmp_path / "run", 2) == 0
    own.write_text(code.replace("return ", "return -"))
    for samples in (2, 3):
        capsys.readouterr()
        assert run(words, tmp_path / "run", samples) == 2
        err = capsys.readouterr().err
        assert f"was begun with another content of the file of --filter {own}:Mine (filter_digest was" in err
        assert len(err.splitlines()) == 1
    own.write_text(code)
    assert run(words, tmp_path / "run", 3) == 0
