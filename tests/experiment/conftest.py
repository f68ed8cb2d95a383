"""Records to store, sum up and report."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from latentmas.samples import AgentRecord, FinishReason, Record, Verdict

MakeRecord = Callable[..., Record]


@pytest.fixture
def make_record() -> MakeRecord:
    """Return a maker of records: a correct one, but for what is said."""

    def make(name: str, **changes: object) -> Record:
        agent = AgentRecord(
            name="judger",
            role="judger",
            prompt="How many?",
            prompt_tokens=9,
            thoughts=5,
            written_tokens=7,
            text="\\boxed{4}",
            memory_slots=21,
            memory_bytes=2100,
            seconds=0.5,
        )
        correct = Record(
            id=name,
            question="How many?",
            target="4",
            prediction="4",
            verdict=Verdict.CORRECT,
            found_by="box",
            text="\\boxed{4}",
            finish_reason=FinishReason.STOP,
            error=None,
            donor=None,
            agents=(agent,),
        )
        return correct.model_copy(update=changes)

    return make
