"""Hand-overs are tried once before the first sample: what cannot work is refused, and nothing that can."""

import pytest

from latentmas.errors import CapabilityError, SampleError
from latentmas.program import Handover, KeepSpec, Program, Read, Write
from latentmas.protocols import Job, JobError

FILTERS = """
import torch

class Many:
    def score(self, sight):
        scores = sight.memory.positions.double()
        return scores.masked_fill(scores < scores.topk(32, dim=-1).values[:, -1:], -torch.inf)

class Broken:
    def score(self, sight):
        return sight.memory.no_such_thing

class Starved:
    def score(self, sight):
        raise MemoryError("no room")
"""


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILTERS, encoding="utf-8")

    def made(name, tokens=range(4, 60)):
        return Program(
            (
                Read(agent="a", tokens=tuple(tokens)),
                Handover(agent="a", keep=KeepSpec(name=f"{file}:{name}")),
                Read(agent="b", tokens=(5, 6, 7)),
                Write(agent="b", max_new_tokens=2),
            )
        )

    return made


def test_a_filter_that_needs_more_slots_than_a_short_trial_has_is_let_in(tiny, program):
    done = tiny.backend("llama").run([program("Many")])[0]
    assert done.steps[1].slots == 32


def test_a_filter_that_does_not_work_is_refused_before_anything_runs(tiny, program):
    with pytest.raises(CapabilityError, match=r"hand-overs that keep .*Broken do not work on llama \(AttributeError"):
        tiny.backend("llama").submit(Job(key="0", program=program("Broken"), seed=0))


def test_a_trial_that_runs_out_of_memory_refuses_nothing(tiny, program):
    tiny.backend("llama").submit(Job(key="0", program=program("Starved"), seed=0))


def test_a_sample_that_cannot_run_ends_alone_and_is_no_trial(tiny, program):
    backend = tiny.backend("llama")
    backend.submit(Job(key="0", program=program("Many", [9999] * 60), seed=0))
    (outcome,) = backend.collect()
    assert isinstance(outcome, JobError)
    assert isinstance(outcome.error, SampleError)
    assert "token 9999" in str(outcome.error)
