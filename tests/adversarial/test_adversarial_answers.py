"""Answers written against the specification by somebody who had not seen the graders, through ``latentmas grade``."""

import json
from pathlib import Path

import pytest
import yaml

from latentmas.cli import main

FIELDS = ("id", "task", "output", "target", "finish_reason", "labels", "options")


@pytest.mark.parametrize("kind", ["numbers", "choices"])
def test_every_adversarial_answer_gets_its_verdict(kind, tmp_path):
    cases = yaml.safe_load((Path(__file__).parent / f"{kind}.yaml").read_text(encoding="utf-8"))
    answers, scores = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    lines = [{name: case[name] for name in FIELDS if name in case} for case in cases]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["grade", str(answers), "--output", str(scores)]) == 0
    graded = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [line["id"] for line in graded] == [case["id"] for case in cases]
    surprises = [
        f"{case['id']}: {line['verdict']} ({line['found_by']}: {line['prediction']!r}), expected {case['verdicts']}"
        for case, line in zip(cases, graded, strict=True)
        if line["verdict"] not in case["verdicts"] or ("found_by" in case and line["found_by"] != case["found_by"])
    ]
    assert not surprises, "\n".join(surprises)
