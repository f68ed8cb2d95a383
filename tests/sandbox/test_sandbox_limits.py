"""What a program may use, and what becomes of one that wants more."""

from __future__ import annotations

import sys

import pytest

from latentmas.sandbox import Ending, Level

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep this limit")

LOOP = "while True: pass"
STUBBORN = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
"""


def test_sleeping_ends_at_the_deadline(run, level):
    ran = run("import time; time.sleep(9)", level=level, wall_seconds=0.15)
    assert (ran.outcome.ending, ran.outcome.detail) == (Ending.TIMEOUT, "more than 0.15 s")
    assert 0.15 <= ran.outcome.wall_seconds < 3


def test_an_endless_loop_ends_at_the_deadline(run, level):
    assert run(LOOP, level=level, wall_seconds=0.15).outcome.ending is Ending.TIMEOUT


def test_a_loop_that_never_returns_to_python_ends_at_the_deadline(run, level):
    assert run("9 ** 9 ** 9", level=level, wall_seconds=0.15).outcome.ending is Ending.TIMEOUT


@pytest.mark.parametrize("rest", [LOOP, "import time; time.sleep(9)"], ids=["loops", "sleeps"])
def test_ignoring_every_signal_does_not_help(run, level, rest):
    assert run(STUBBORN + rest, level=level, wall_seconds=0.15).outcome.ending is Ending.TIMEOUT


def test_output_does_not_move_the_deadline(run, level):
    ran = run("while True: os.write(OUTPUT_FD, b'x')", level=level, wall_seconds=0.15, output_bytes=10**9)
    assert ran.outcome.ending is Ending.TIMEOUT
    assert ran.outcome.wall_seconds < 3


@only_linux
def test_processor_time_ends_it_before_the_deadline(run, level):
    ran = run(LOOP, level=level, cpu_seconds=0.2)
    assert (ran.outcome.ending, ran.outcome.detail) == (Ending.TIMEOUT, "more than 0.2 s of processor time")
    assert 0.2 < ran.outcome.cpu_seconds < 2


@only_linux
def test_sleeping_takes_no_processor_time(run, level):
    assert run("import time; time.sleep(0.3)", level=level, cpu_seconds=0.2).outcome.ending is Ending.DONE


@only_linux
@pytest.mark.slow
def test_the_kernel_ends_it_too_if_the_parent_is_held_up(level):
    import time

    from latentmas.sandbox import Limits, execute

    def slow(piece: bytes) -> bool:
        time.sleep(2.5)
        return True

    driver = "import os; os.write(OUTPUT_FD, b'x')\nwhile True: pass"
    limits = Limits(cpu_seconds=0.2, wall_seconds=9)
    outcome = execute(driver, b"", level=level, limits=limits, packages=(), on_output=slow)
    assert outcome.ending is Ending.TIMEOUT
    assert outcome.cpu_seconds < 3.5


@only_linux
def test_too_much_memory_is_a_memory_error(run, level):
    ran = run("try: bytearray(10 * 2**30)\nexcept MemoryError: say('too much')", level=level)
    assert ran.said == "too much"


@only_linux
def test_memory_in_small_pieces_is_limited_too(run, level):
    driver = "held = []\ntry:\n    while True: held.append(bytes(10**6))\nexcept MemoryError: del held; say('too much')"
    assert run(driver, level=level, memory_bytes=300 * 2**20).said == "too much"


def test_a_large_file_is_cut(run, level):
    driver = (
        "try: open('file', 'wb', 0).write(bytes(3000)); open('file', 'ab', 0).write(b'x')\nexcept OSError: say('cut')"
    )
    assert run(driver, level=level, file_bytes=2000).said == "cut"


def test_few_files_can_be_open(run, level):
    driver = "held = []\ntry:\n    while True: held.append(os.dup(0))\nexcept OSError: say(len(held) < 64)"
    assert run(driver, level=level).said == "True"


@only_linux
def test_deep_recursion_has_room(run, level):
    driver = (
        "import sys; sys.setrecursionlimit(10**6)\nnested = []\nfor _ in range(20_000): nested = [nested]\n"
        "say(len(str(nested)))"
    )
    if sys.version_info >= (3, 12):
        driver = "import resource; say(40_002 if resource.getrlimit(resource.RLIMIT_STACK)[0] >= 2**26 else 0)"
    assert run(driver, level=level).said == "40002"


@only_linux
def test_threads_up_to_the_limit_are_fine(run, level):
    driver = (
        "import threading, time\nthreads = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(15)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; say('done')"
    )
    assert run(driver, level=level, threads=16).said == "done"


@only_linux
def test_a_bomb_of_threads_is_stopped(run, level):
    driver = (
        "import threading, time\n"
        "while True:\n"
        "    try: threading.Thread(target=time.sleep, args=(9,)).start()\n"
        "    except RuntimeError: pass"
    )
    ran = run(driver, level=level, threads=16)
    assert (ran.outcome.ending, ran.outcome.detail) == (Ending.FAILED, "more than 16 threads")
    assert ran.outcome.wall_seconds < 3


def test_a_bomb_of_files_is_stopped(run, level, temporary):
    ran = run("import itertools\nfor n in itertools.count(): open(str(n), 'w').close()", level=level, scratch_files=50)
    assert (ran.outcome.ending, ran.outcome.detail) == (Ending.FAILED, "more than 50 files in the scratch folder")
    assert list(temporary.iterdir()) == []


def test_a_bomb_of_folders_is_stopped_and_removed(run, level, temporary):
    driver = "while True: os.mkdir('a' * 200); os.chdir('a' * 200)"
    ran = run(driver, level=level, scratch_files=100)
    assert ran.outcome.ending is Ending.FAILED
    assert "the scratch folder" in ran.outcome.detail
    assert list(temporary.iterdir()) == []


@only_linux
def test_much_in_the_scratch_folder_is_stopped(run, level, temporary):
    driver = (
        "import itertools, time\n"
        "try:\n"
        "    for n in range(20): open(str(n), 'wb').write(bytes(10**6))\n"
        "except OSError as error: say(error.strerror); os._exit(1)\n"
        "time.sleep(9)"
    )
    ran = run(driver, level=level, scratch_bytes=4_000_000)
    assert ran.outcome.ending is Ending.FAILED
    if level is Level.BWRAP:
        assert ran.said == "No space left on device"
    else:
        assert ran.outcome.detail == "more than 4000000 bytes in the scratch folder"
    assert list(temporary.iterdir()) == []


def test_folders_without_permissions_are_removed(run, level, temporary):
    run("os.makedirs('a/b/c'); os.mkdir('a/b/d', 0o300); open('a/b/d/e', 'w'); os.mkdir('f', 0)", level=level)
    assert list(temporary.iterdir()) == []
