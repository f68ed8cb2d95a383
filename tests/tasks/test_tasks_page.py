"""docs/tasks.md says of each task what its card says."""

from __future__ import annotations

from pathlib import Path

import yaml

from latentmas import tasks
from latentmas.experiment.compose import find_task

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_the_table_has_one_line_for_each_task_and_says_what_its_card_says() -> None:
    expected = set()
    for file in Path(tasks.__file__).parent.glob("[!_]*.py"):
        task = find_task(file.stem)
        split = task.splits[0]
        tokens = task.defaults["max_new_tokens"]
        gate = " terms " if task.card.gated else " "
        expected.add(
            f"| `{task.name}` | `{task.card.source}` | {split} | {task.card.rows[split]} | {task.answer_kind.value} "
            f"| {tokens} | {task.card.licence} |{gate}|"
        )
    assert {line for line in PAGE.splitlines() if line.startswith("| `") and "`--task`" not in line} == expected


def test_the_example_on_the_page_is_the_file() -> None:
    example = yaml.safe_load((ROOT / "examples" / "custom_task.yaml").read_text(encoding="utf-8"))
    _, _, after = PAGE.partition("[examples/custom_task.yaml](../examples/custom_task.yaml):\n\n")
    shown = yaml.safe_load("\n".join(line[4:] for line in after.partition("\n\n")[0].splitlines()))
    assert shown == {key: value for key, value in example.items() if key not in ("description", "licence")}
