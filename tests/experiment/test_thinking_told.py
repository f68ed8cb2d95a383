"""How thoughts changed, from the account of a step to the record, the summary and the table."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from latentmas.experiment import report, runner
from latentmas.experiment.config import RunConfig
from latentmas.experiment.stats import summarize
from latentmas.program import Program, Read, Think, Write
from latentmas.protocols import Completion, StepAccount, ThoughtAccount
from latentmas.samples import AgentRecord, FinishReason, Record, ThoughtRecord

CONFIG = RunConfig.from_options({"method": "latent_mas", "model_name": "tiny"})
STILL = ThoughtRecord(cosines=(0.7, 0.99, 1.0, 1.0), hidden_norms=(5.0,) * 5, effective_rank=1.8, collapsed_after=2)
MOVING = ThoughtRecord(cosines=(0.1, 0.2, 0.3, 0.2), hidden_norms=(7.0,) * 5, effective_rank=4.6, collapsed_after=None)


def thinking(record: Record, *agents: tuple[ThoughtRecord, ...]) -> Record:
    own = tuple(record.agents[0].model_copy(update={"thinking": each}) for each in agents)
    return record.model_copy(update={"agents": own})


def table_of(records: list[Record]) -> str:
    page = io.StringIO()
    summary = summarize(records, config=CONFIG, samples=len(records), wall_seconds=1.0)
    Console(file=page, width=80).print(report.table(summary))
    return page.getvalue()


def row(text: str, name: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith("│") and line.split("│")[1].strip() == name]
    return line.split("│")[2].strip()


def test_the_summary_counts_samples_and_takes_the_median_step_of_agents(make_record):
    late = STILL.model_copy(update={"collapsed_after": 4})
    records = [
        thinking(make_record("a"), (STILL,), (MOVING,)),
        thinking(make_record("b"), (late,), (STILL, late)),
        thinking(make_record("c"), (MOVING,), (MOVING,)),
        make_record("d"),  # nobody measured
    ]
    found = summarize(records, config=CONFIG, samples=4, wall_seconds=1.0).thinking
    assert (found.samples, found.collapsed) == (3, 2)
    assert found.collapsed_after == 2  # of 2, 4, 2 and 4
    assert found.thoughts == 5
    assert found.effective_rank == pytest.approx((4 * 1.8 + 3 * 4.6) / 7)
    assert found.last_cosine == pytest.approx((4 * 1.0 + 3 * 0.2) / 7)
    assert found.hidden_norm == pytest.approx((4 * 5 + 3 * 7) / 7)


def test_the_table_says_after_which_step_thoughts_collapsed_and_what_to_do(make_record):
    text = table_of(
        [thinking(make_record(str(number)), (STILL,)) for number in range(19)]
        + [thinking(make_record("moving"), (MOVING,))]
    )
    assert row(text, "thoughts collapsed") == "after step 2 in 19 of 20 samples"
    assert row(text, "effective rank") == "1.9 of 5"
    assert row(text, "cosine to the one before") == "0.960"
    assert row(text, "norm of hidden states") == "5.1"
    assert "--alignment soft" in text
    assert "docs/thoughts.md" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_table_of_thoughts_that_move_gives_no_advice(make_record):
    text = table_of([thinking(make_record("a"), (MOVING,))])
    assert row(text, "thoughts collapsed") == "in 0 of 1 samples"
    assert "--alignment" not in text


def test_a_run_without_measured_thoughts_says_nothing_about_them(make_record):
    assert "collapsed" not in table_of([make_record("a")])
    assert summarize([make_record("a")], config=CONFIG, samples=1, wall_seconds=1.0).thinking is None


def test_a_single_thought_has_no_cosine_to_show(make_record):
    single = ThoughtRecord(cosines=(), hidden_norms=(5.0,), effective_rank=1.0, collapsed_after=None)
    text = table_of([thinking(make_record("a"), (single,))])
    assert "cosine" not in text
    assert row(text, "effective rank") == "1.0 of 1"


def test_a_record_written_before_thoughts_were_measured_can_be_read(make_record):
    stored = make_record("a").stored()
    assert "thinking" not in stored["agents"][0]
    assert Record.model_validate(stored).agents[0].thinking == ()
    with_thoughts = thinking(make_record("a"), (STILL, MOVING))
    assert Record.model_validate(with_thoughts.stored()) == with_thoughts


def test_every_think_of_an_agent_stands_in_its_record_with_as_many_digits_as_say_something():
    account = ThoughtAccount(
        cosines=(0.12345, 0.99999),
        hidden_norms=(200.2744, 0.00123456, 5.0),
        effective_rank=2.34567,
        collapsed_after=None,
    )
    program = Program(
        (
            Read(agent="a", tokens=(1,)),
            Think(agent="a", steps=3),
            Think(agent="a", steps=3),
            Write(agent="a", max_new_tokens=1),
        )
    )
    steps = (
        StepAccount(verb="Read", agent="a", prompt_tokens=1),
        StepAccount(verb="Think", agent="a", thoughts=3, thinking=account),
        StepAccount(verb="Think", agent="a", thoughts=3, thinking=account),
        StepAccount(verb="Write", agent="a", written=(5,)),
    )
    done = Completion(key="", text="", finish_reason=FinishReason.LENGTH, steps=steps)
    agent: AgentRecord
    [agent] = runner._turns(program, done, {}, save_ids=False)
    assert len(agent.thinking) == 2
    assert agent.thinking[0] == ThoughtRecord(
        cosines=(0.123, 1.0), hidden_norms=(200.3, 0.001235, 5.0), effective_rank=2.35, collapsed_after=None
    )
