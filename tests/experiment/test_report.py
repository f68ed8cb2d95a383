"""What is shown of a summary."""

from __future__ import annotations

import io
import json
import re

from rich.console import Console
from rich.table import Table

from latentmas.experiment import report
from latentmas.experiment.config import RunConfig
from latentmas.experiment.stats import Summary, summarize
from latentmas.samples import Record, Verdict


def summary_of(records: list[Record], *, samples: int, **options: object) -> Summary:
    config = RunConfig.from_options({"method": "latent_mas", "model_name": "Qwen/Qwen3-4B", **options})
    return summarize(records, config=config, samples=samples, wall_seconds=1.0)


def shown(content: Table) -> str:
    page = io.StringIO()
    Console(file=page, width=80).print(content)
    return page.getvalue()


def test_the_published_object_has_exactly_the_published_keys_in_their_order(make_record):
    result = report.published(summary_of([make_record("a"), make_record("b", verdict=Verdict.WRONG)], samples=2))
    assert json.dumps(result) == (
        '{"method": "latent_mas", "model": "Qwen/Qwen3-4B", "split": "test", "seed": 42, "max_samples": 2, '
        '"accuracy": 0.5, "correct": 1, "total_time_sec": 1.0, "time_per_sample_sec": 0.5}'
    )


def test_the_table_shows_accuracy_with_its_interval_and_every_cost(make_record):
    text = shown(report.table(summary_of([make_record("a"), make_record("b", verdict=None, error="X: y")], samples=2)))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "50.0 % (1 of 2)" in rows["accuracy"]
    assert "9.5 % - 90.5 %" in rows["95 % interval (Wilson)"]
    assert "│ 1 " in rows["errors (not correct)"].replace("  ", "")
    assert "14 " in rows["written tokens"]
    assert "7.0" in rows["written tokens"]
    assert {"thoughts", "prompt tokens", "answers cut by length", "seconds"} <= rows.keys()
    assert "21 slots, 2.1 KiB" in rows["peak memory, one sample"]


def test_the_table_says_when_a_run_is_not_complete_and_which_control_it_is(make_record):
    text = shown(report.table(summary_of([make_record("a")], samples=3, control="other_question")))
    assert "1 of 3" in text
    assert "control other_question" in text


def test_a_table_of_no_records_can_be_shown():
    assert "0 of 3" in shown(report.table(summary_of([], samples=3)))


def test_a_comparison_fits_a_terminal_and_groups_runs_by_task(make_record):
    good, bad = [make_record("a")], [make_record("a", verdict=Verdict.WRONG)]
    text = shown(
        report.comparison(
            [
                ("team, latent", summary_of(good, samples=1, task="tiny")),
                ("memory of another question", summary_of(bad, samples=1, task="tiny_split")),
                ("thoughts only", summary_of([], samples=1, task="tiny_split")),
            ]
        )
    )
    assert max(len(line) for line in text.splitlines()) <= 80
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line.startswith("tiny")] == ["tiny", "tiny_split"]
    assert "100.0 (20.7-100.0)" in text
    assert re.search(r"^ +thoughts only +- +0\.0 ", text, re.MULTILINE)
