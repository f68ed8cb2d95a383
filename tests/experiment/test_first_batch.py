"""A fault that breaks the whole first batch ends the run, and is shown once however many samples it breaks."""

from __future__ import annotations

import logging

import pytest

from latentmas.cli import main
from latentmas.errors import RunStoppedError
from latentmas.experiment.first_batch import FirstBatch
from latentmas.experiment.team import Team
from latentmas.samples import Record
from latentmas.told import Told, place_of

FILTERS = """
class Late:
    calls = 0
    def score(self, sight):
        Late.calls += 1
        if Late.calls > 3:
            raise ValueError(f"no slot {sight.memory.slots}")
        return sight.memory.positions.double()

class Some:
    def score(self, sight):
        if int(sight.memory.next_position[0]) % 2:
            raise ValueError(f"odd {sight.memory.slots}")
        return sight.memory.positions.double()

class Never:
    def score(self, sight):
        raise KeyError("nothing")
"""


def record(name, error=None):
    return Record(
        id=name,
        question="?",
        target="5",
        prediction=None,
        verdict=None,
        found_by=None,
        text="",
        finish_reason=None,
        error=error,
        donor=None,
        agents=(),
    )


@pytest.fixture
def filters(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(FILTERS)
    return path


def command(filters, name, *more):
    words = "run --method latent_mas --model_name tiny --task tiny --max_samples 12 --generate_bs 4 --latent_steps 1"
    folder = filters.with_name("run")
    more = ("--max_new_tokens", "2", *more)
    return [*words.split(), "--filter", f"{filters}:{name}", "--output_dir", str(folder), *more]


def test_errors_that_differ_in_numbers_and_quotations_only_are_alike():
    first = FirstBatch(3)
    assert first.ready(record("a", "SampleError: needs 12 of '3'")) == []
    assert first.ready(record("b", "SampleError: needs 9 of 'x y'")) == []
    with pytest.raises(RunStoppedError, match="the first 3 samples failed alike"):
        first.ready(record("c", "SampleError: needs 9 of 'z'"))


@pytest.mark.parametrize("last", [record("b"), record("b", "SampleError: another thing")])
def test_errors_that_waited_are_given_back_in_their_order_once_one_sample_is_otherwise(last):
    first = FirstBatch(2)
    assert first.ready(held := record("a", "SampleError: one")) == []
    assert first.ready(last) == [held, last]
    assert first.ready(held) == [held]


def test_a_fault_is_first_once_for_each_place_and_class():
    def broken(kind):
        raise kind("x")

    told, errors = Told(), []
    for kind in (ValueError, ValueError, KeyError):
        with pytest.raises(kind) as raised:
            broken(kind)
        errors.append(raised.value)
    assert [told.first(error) for error in errors] == [True, False, True]
    assert place_of(errors[0]).startswith("test_first_batch.py line ")


def test_a_filter_that_fails_in_the_whole_first_batch_is_one_traceback_and_ends_the_run(filters, capsys):
    assert main(command(filters, "Late")) == 1
    err = capsys.readouterr().err
    assert err.count("Traceback") == 1
    assert len(err.splitlines()) < 60
    assert err.splitlines()[-1].startswith("error: the first 4 samples failed alike")
    assert "ValueError: no slot" in err.splitlines()[-1]


def test_the_same_command_goes_on_once_the_filter_is_mended(filters, capsys):
    main(command(filters, "Late"))
    filters.write_text(FILTERS.replace("> 3", "> 3000"))
    assert main(command(filters, "Late")) == 0
    assert '"max_samples": 12' in capsys.readouterr().out


def test_a_filter_that_fails_for_some_samples_is_one_traceback_and_their_errors_are_counted(filters, capsys):
    assert main(command(filters, "Some")) == 0
    err = capsys.readouterr().err
    assert err.count("Traceback") == 1
    assert " of 12 samples ended with an error, the first: SampleError: ValueError: odd" in err


def test_a_filter_that_never_works_is_refused_with_its_own_line(filters, capsys):
    assert main(command(filters, "Never")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "KeyError: 'nothing', own.py line 18" in last
    assert not list(filters.with_name("run").glob("[!.]*"))


def test_questions_of_a_team_that_all_fail_have_their_errors_in_their_records(filters, caplog):
    options = {"filter": f"{filters}:Late"}
    team = Team("tiny", latent_steps=1, max_new_tokens=2, generate_bs=4, options=options)
    with caplog.at_level(logging.WARNING):
        records = team.ask_all([f"Ida owns {number} pins. How many?" for number in range(9)])
    assert all("ValueError: no slot" in (record.error or "") for record in records)
    assert len([line for line in caplog.records if line.exc_info]) == 1
