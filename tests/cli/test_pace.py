"""What a person reads while a run works is true: counts, batches, time left."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from latentmas.cli._pace import FIRST_SECONDS, MOST_SECONDS, Pace, Schedule, duration
from latentmas.cli._shown import Shown
from latentmas.cli._terminal import announced, progress
from latentmas.protocols import Phase, Progress
from latentmas.samples import Verdict

AGENTS = ("planner", "critic", "refiner", "judger")


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def reading(batch, agent="planner"):
    return Progress(phase=Phase.READING, agents=(agent,), rows=batch, going=batch, batch=batch)


def writing(batch, step, *, going=None, tokens=0, agent="judger"):
    going = batch if going is None else going
    return Progress(
        phase=Phase.WRITING, agents=(agent,), step=step, steps=2048, rows=batch, going=going, tokens=tokens, batch=batch
    )


def run_batch(pace, clock, rows, seconds):
    """Let a batch begin, work and end, as a backend and a runner tell it."""
    pace.report(reading(rows))
    clock.now += seconds
    for _ in range(rows):
        pace.answered()
    for _ in range(rows):
        pace.graded(Verdict.CORRECT)


def open_pace(clock, total, **options):
    """Return a pace whose model took ten minutes to load."""
    pace = Pace(total=total, agents=AGENTS, clock=clock, **options)
    pace.report(Progress(phase=Phase.LOADING))
    clock.now += 600
    pace.report(Progress(phase=Phase.CHECKING))
    clock.now += 60
    return pace


def test_loading_and_checking_are_told_and_nothing_is_promised(clock):
    pace = Pace(total=20, clock=clock)
    pace.report(Progress(phase=Phase.LOADING))
    assert (pace.state(), pace.doing()) == ("0 of 20 answered", "loading model")
    pace.report(Progress(phase=Phase.CHECKING))
    assert pace.doing() == "checking model"


def test_within_a_batch_agent_thought_and_batch_are_named(clock):
    pace = open_pace(clock, 140)
    pace.report(Progress(phase=Phase.THINKING, agents=("critic",), step=12, steps=20, rows=20, going=20, batch=20))
    assert pace.doing() == "batch 1 of 7: critic 2 of 4, thought 12 of 20"
    assert pace.state() == "0 of 140 answered"


def test_a_text_has_its_length_the_rows_that_go_on_and_a_rate(clock):
    pace = open_pace(clock, 140)
    pace.report(writing(20, 1, tokens=20))
    clock.now += 10
    pace.report(writing(20, 310, going=17, tokens=520))
    assert pace.doing() == ("batch 1 of 7: judger 4 of 4, writing 310 of 2048, 17 of 20 still going, 50 tokens/s")


def test_the_first_token_which_comes_with_the_prompt_is_in_no_rate(clock):
    pace = Pace(total=8, clock=clock)
    pace.report(writing(8, 0))
    clock.now += 0.05
    pace.report(writing(8, 1, tokens=8))
    assert pace.rate() == ""
    clock.now += 0.2
    pace.report(writing(8, 2, tokens=16))
    assert pace.rate() == "40 tokens/s"


def test_the_rate_begins_anew_with_the_next_text(clock):
    pace = open_pace(clock, 140)
    pace.report(writing(20, 1, tokens=20))
    clock.now += 10
    pace.report(writing(20, 310, tokens=520))
    pace.report(reading(20))
    clock.now += 1000
    pace.report(writing(20, 1, tokens=20))
    clock.now += 10
    pace.report(writing(20, 50, tokens=120))
    assert pace.doing().endswith("10 tokens/s")


def test_the_rate_of_a_longer_text_of_the_same_agent_begins_anew_too(clock):
    pace = open_pace(clock, 140)
    pace.report(writing(20, 310, tokens=20))
    clock.now += 10
    pace.report(writing(20, 1, tokens=20))
    clock.now += 10
    pace.report(writing(20, 11, tokens=220))
    assert pace.rate() == "20 tokens/s"


def test_branches_that_share_a_batch_are_counted(clock):
    pace = open_pace(clock, 20)
    three = ("planner", "critic", "refiner")
    pace.report(Progress(phase=Phase.THINKING, agents=three, step=5, steps=20, rows=60, going=60, batch=20))
    assert pace.doing() == "batch 1 of 1: 3 of 4 agents, thought 5 of 20"


def test_a_finished_batch_is_never_shown_as_a_part_of_itself(clock):
    pace = open_pace(clock, 8)
    run_batch(pace, clock, 8, 279)
    assert pace.state() == "8 of 8 answered, 100.0 % correct, 34.9 s each"


def test_answered_and_graded_are_told_apart(clock):
    pace = open_pace(clock, 24)
    pace.report(reading(8))
    for _ in range(8):
        pace.answered()
    pace.graded(Verdict.CORRECT)
    pace.graded(Verdict.WRONG)
    assert pace.state().startswith("8 of 24 answered, 2 graded, 50.0 % correct")


def test_a_batch_that_has_its_answers_is_not_said_to_write(clock):
    pace = open_pace(clock, 40)
    pace.report(writing(20, 31, going=0))
    for _ in range(20):
        pace.answered()
    assert pace.doing() == "batch 1 of 2: grading"
    for _ in range(20):
        pace.graded(Verdict.WRONG)
    assert pace.doing() == "batch 1 of 2: done"
    pace.report(reading(20))
    assert pace.doing() == "batch 2 of 2: planner 1 of 4, reading"


def test_after_the_last_answer_what_goes_on_is_grading(clock):
    pace = open_pace(clock, 2)
    pace.report(writing(2, 7))
    pace.answered()
    pace.answered()
    pace.graded(Verdict.WRONG)
    assert (pace.doing(), pace.seconds_left()) == ("grading", None)
    pace.graded(Verdict.WRONG)
    assert pace.doing() == ""


def test_answers_that_nobody_grades_are_not_called_wrong(clock):
    pace = open_pace(clock, 4)
    pace.report(reading(2))
    for _ in range(2):
        pace.answered()
        pace.graded(None)
    assert "correct" not in pace.state()


# Time left


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("total", [41, 50, 60, 79, 140])
def test_after_two_batches_the_time_left_is_within_a_factor_of_one_and_a_half(clock, total, share):
    """Whatever part of a batch's time its rows do not change, and though batches vary by a quarter."""
    pace = open_pace(clock, total)
    sizes = [20] * (total // 20) + ([total % 20] if total % 20 else [])
    varied = itertools.cycle([1.2, 0.9, 1.0, 1.1, 0.8])
    seconds = [300 * (share + (1 - share) * size / 20) * next(varied) for size in sizes]
    for number, (size, taken) in enumerate(zip(sizes, seconds, strict=True)):
        if number >= 2:
            pace.report(reading(size))
            found, truth = pace.seconds_left(), sum(seconds[number:])
            assert found is not None
            # A last batch of one row alone is anything between a row and a batch.
            limit = 1.5 if truth > 300 or size > 10 else 6
            assert truth / limit <= found <= truth * limit
        run_batch(pace, clock, size, taken)


def test_nothing_is_promised_before_a_batch_is_over(clock):
    pace = open_pace(clock, 60)
    pace.report(reading(20))
    clock.now += 500
    pace.report(writing(20, 300))
    assert pace.seconds_left() is None
    assert "left" not in pace.state()


def test_time_left_shrinks_while_a_batch_works_and_never_below_the_batches_after_it(clock):
    pace = open_pace(clock, 80)
    run_batch(pace, clock, 20, 100)
    pace.report(reading(20))
    assert pace.seconds_left() == pytest.approx(300)
    clock.now += 60
    assert pace.seconds_left() == pytest.approx(240)
    clock.now += 400
    assert pace.seconds_left() == pytest.approx(200)


def test_a_last_batch_that_takes_longer_than_thought_is_not_said_to_be_over(clock):
    pace = open_pace(clock, 40)
    run_batch(pace, clock, 20, 100)
    pace.report(reading(20))
    clock.now += 150
    assert "left" not in pace.state()


def test_what_earlier_sessions_did_counts_for_the_accuracy_and_not_for_the_time(clock):
    pace = open_pace(clock, 100, finished=60, correct=30)
    pace.report(reading(20))
    assert pace.doing().startswith("batch 1 of 2: ")
    run_batch(pace, clock, 20, 100)
    pace.report(reading(20))
    assert pace.doing().startswith("batch 2 of 2: ")
    assert pace.state() == f"80 of 100 answered, {100 * 50 / 80:.1f} % correct, 1.7 min left"


def test_a_method_with_a_program_for_each_agent_has_a_batch_for_all_of_its_rounds(clock):
    pace = open_pace(clock, 40)
    for agent in AGENTS:
        pace.report(reading(20, agent))
        clock.now += 25
        pace.report(writing(20, 9, agent=agent))
        assert pace.doing().startswith(f"batch 1 of 2: {agent} {AGENTS.index(agent) + 1} of 4, writing 9 of 2048")
    for _ in range(20):
        pace.answered()
    pace.report(reading(20))
    assert pace.doing().startswith("batch 2 of 2: planner 1 of 4")
    assert pace.seconds_left() == pytest.approx(100)


def test_a_sample_that_ends_early_is_no_batch(clock):
    pace = open_pace(clock, 60)
    pace.report(reading(20))
    pace.answered()  # its prompt became too long
    clock.now += 30
    pace.report(reading(20, "critic"))
    assert pace.doing().startswith("batch 1 of 3: critic")
    assert pace.seconds_left() is None


def test_a_batch_that_ran_in_halves_counts_as_two(clock):
    pace = open_pace(clock, 24)
    for _ in range(2):  # eight rows were too many
        pace.report(reading(4))
        clock.now += 50
    for _ in range(8):
        pace.answered()
    pace.report(reading(4))
    assert pace.doing().startswith("batch 3 of 6: ")
    assert pace.seconds_left() == pytest.approx(200)


def test_the_runs_of_a_sweep_share_no_batch(clock):
    pace = open_pace(clock, 30, run=10)
    pace.report(reading(10))
    assert pace.doing().startswith("batch 1 of 3: ")
    run_batch(pace, clock, 10, 40)
    pace.report(reading(10))
    assert pace.seconds_left() == pytest.approx(80)


def test_requests_that_end_one_by_one_have_no_batches_and_a_time_once_as_many_ended_as_go_at_once(clock):
    pace = open_pace(clock, 100)

    def answering(begun, going, tokens):
        return Progress(phase=Phase.ANSWERING, rows=begun, going=going, tokens=tokens)

    pace.report(answering(8, 8, 0))
    clock.now += 10
    for _ in range(7):
        pace.answered()
    pace.report(answering(15, 8, 400))
    assert pace.doing() == "8 requests going, 7 finished, 40 tokens/s"
    assert pace.seconds_left() is None
    clock.now += 10
    for _ in range(9):
        pace.answered()
    assert pace.seconds_left() == pytest.approx(20 / 16 * 84)


def test_a_time_is_not_rounded_so_far_that_it_misleads():
    for seconds in range(10, 40000, 7):
        number, unit = duration(seconds).split()
        shown = float(number) * {"s": 1, "min": 60, "h": 3600}[unit]
        assert abs(shown - seconds) <= seconds / 20


# Where lines go


def test_plain_lines_come_soon_and_then_ever_more_rarely():
    schedule = Schedule(began=0.0)
    due = [second / 2 for second in range(7200) if schedule.due(second / 2)]
    gaps = [after - before for before, after in itertools.pairwise(due)]
    assert due[0] == FIRST_SECONDS
    assert gaps[0] == 10
    assert gaps == sorted(gaps)
    assert gaps[-1] == MOST_SECONDS
    assert len(due) < 70


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", ["judger", "a mathematician of the old school"])
def test_both_lines_fit_any_terminal(clock, width, name):
    pace = open_pace(clock, 1000)
    pace.agents = (*AGENTS[:3], name)
    run_batch(pace, clock, 100, 400)
    pace.report(writing(100, 1, tokens=100, agent=name))
    clock.now += 10
    pace.report(writing(100, 1310, going=17, tokens=31000, agent=name))
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(Shown(pace))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert all(len(line.rstrip()) <= width for line in lines)
    assert "100 of 1000 answered" in lines[0]
    assert "batch 2 of 10" in lines[1]
    if width >= 80:
        assert "100.0 % correct, 60 min left" in lines[0]
    if width >= 80 and name == "judger":
        assert "judger 4 of 4, writing 1310 of 2048, 17 of 100 still going" in lines[1]
    if width >= 80:
        assert "3090 tokens/s" in lines[0] + lines[1]


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    pace = open_pace(clock, 2)
    with progress(Console(file=out, width=80, force_terminal=True, no_color=True), pace):
        run_batch(pace, clock, 2, 10)
    assert out.getvalue() == "2 of 2 answered, 100.0 % correct, 5.0 s each\n"


def test_a_run_that_breaks_has_no_last_line(clock):
    out = io.StringIO()
    pace = open_pace(clock, 4)

    def interrupted():
        with progress(Console(file=out, width=80), pace):
            run_batch(pace, clock, 2, 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.getvalue() == ""


def test_what_takes_long_is_announced_and_what_takes_a_moment_is_not(monkeypatch):
    out = io.StringIO()
    with announced(Console(file=out), "reading options"):
        pass
    assert out.getvalue() == ""
    monkeypatch.setattr("latentmas.cli._terminal.SECONDS_BEFORE_WORD", 0.0)
    with announced(Console(file=out), "reading options"):
        deadline = time.monotonic() + 30
        while not out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert out.getvalue() == "reading options\n"


DRIVEN = """
import time
from rich.console import Console
from latentmas.cli._pace import Pace
from latentmas.cli._terminal import progress
from latentmas.protocols import Phase, Progress

pace = Pace(total=140, agents=("planner", "critic", "refiner", "judger"))
with progress(Console(stderr=True), pace):
    pace.report(Progress(phase=Phase.LOADING))
    time.sleep(0.4)
    for step in (1, 310):
        pace.report(Progress(phase=Phase.WRITING, agents=("judger",), step=step, steps=2048, rows=20, going=17,
                             tokens=20 * step, batch=20))
        time.sleep(0.4)
    for _ in range(20):
        pace.answered()
"""


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("plain", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_in_a_real_terminal_no_line_is_wider_than_it(width, plain):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVEN], stderr=follower, env={**environment, "TERM": "xterm-256color", **plain}
    )
    os.close(follower)
    said = b""
    with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
        while part := os.read(leader, 1 << 16):
            said += part
    os.close(leader)
    assert process.wait(30) == 0
    lines = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", said.decode())]
    if plain.get("TERM") == "dumb":
        assert b"\x1b" not in said
        assert lines[:-1] == [lines[0]]
        assert lines[0].startswith("20 of 140 answered")
        return
    assert max(map(len, lines)) <= width
    assert "  loading model" in lines
    assert any(
        line.startswith("  batch 1 of 7: judger 4 of 4, writing 310 of 2048, 17 of 20 still going") for line in lines
    )
    assert any(re.search(r"20 of 140 answered", line) for line in lines)
    if plain:
        assert not re.search(rb"\x1b\[[\d;]*3\d[;m]", said), "a color"
