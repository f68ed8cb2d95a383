"""What a driver gets, what comes back from it, and what is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from latentmas.errors import CapabilityError, ConfigError
from latentmas.sandbox import Ending, Level, Limits, SandboxError, execute


def test_a_driver_gets_the_payload_and_its_output_comes_back(run, level):
    ran = run("import sys; say(sys.stdin.buffer.read()[::-1].decode())", b"\x01olleh", level=level)
    assert (ran.outcome.ending, ran.outcome.detail, ran.said) == (Ending.DONE, "", "hello\x01")


def test_the_payload_ends(run, level):
    ran = run("import sys; sys.stdin.buffer.read(); say(sys.stdin.buffer.read(), os.read(0, 1))", b"x" * 9, level=level)
    assert ran.said == "b'' b''"


def test_the_payload_can_be_read_from_the_descriptor(run, level):
    assert run("say(os.read(0, 100).decode())", b"payload", level=level).said == "payload"


def test_the_payload_need_not_be_read(run, level):
    assert run("pass", b"x" * 4_000_000, level=level).outcome.ending is Ending.DONE


def test_the_environment_is_exactly_this(run, level):
    names = eval(run("say(sorted(os.environ))", level=level).said)
    threads = ["MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    assert names == sorted([*threads, "HOME", "TMPDIR", "PYTHONHASHSEED", "PYTHONUTF8"])


def test_open_descriptors_are_the_standard_ones_and_the_output(run, level):
    with open(os.devnull) as ours:
        os.set_inheritable(ours.fileno(), True)
        ran = run("say([n for n in range(3, 300) if n != OUTPUT_FD and os.path.exists(n)])", level=level)
    assert ran.said == "[]"


def test_the_scratch_folder_is_the_working_folder_and_takes_files(run, level):
    ran = run(
        "import tempfile\n"
        "assert os.getcwd() == os.environ['HOME'] == tempfile.gettempdir()\n"
        "os.mkdir('a'); open('a/b', 'w').write('text'); os.rename('a/b', 'c'); os.symlink('c', 'd')\n"
        "say(open('d').read()); os.unlink('c'); os.rmdir('a')",
        level=level,
    )
    assert (ran.said, ran.outcome.ending) == ("text", Ending.DONE)


def test_what_is_printed_is_lost(run, level, capfd):
    printing = "import sys; print('printed'); print('printed', file=sys.stderr); os.write(2, b'written')\n"
    ran = run(printing + "say([os.path.samestat(os.fstat(n), os.stat('/dev/null')) for n in (1, 2)])", level=level)
    assert ran.said == "[True, True]"
    assert capfd.readouterr() == ("", "")


def test_the_interpreter_starts_without_site_and_with_nothing_of_ours_on_its_path(run, level):
    ran = run("import sys; say('site' in sys.modules, sys.argv, [p for p in sys.path if 'site-' in p])", level=level)
    assert ran.said == "False [''] []"


def test_the_driver_is_the_main_module_and_sees_nothing_of_the_prelude(run, level):
    ran = run(
        "import sys; say(__name__, sorted(set(vars(sys.modules['__main__'])) - {'os', 'say', 'sys'}))", level=level
    )
    name, names = ran.said.split(" ", 1)
    assert name == "__main__"
    assert [known for known in eval(names) if not known.startswith("__")] == ["OUTPUT_FD"]


def test_a_driver_that_cannot_be_compiled_is_a_bug_of_the_caller(run, level):
    with pytest.raises(SyntaxError):
        run("this is no program", level=level)


def test_a_driver_may_be_large(run, level):
    lines = "".join(f"x{number} = {number}\n" for number in range(20_000))
    assert run(f"{lines}say(x19999)", level=level).said == "19999"


@pytest.mark.parametrize("code", [1, 3, 120])
def test_exit_status_is_told(run, level, code):
    ran = run(f"os._exit({code})", level=level)
    assert (ran.outcome.ending, ran.outcome.detail) == (Ending.FAILED, f"exit status {code}")


def test_an_exception_in_the_driver_is_a_failure(run, level):
    ran = run("say('before'); raise KeyError", level=level)
    assert (ran.outcome.ending, ran.outcome.detail, ran.said) == (Ending.FAILED, "exit status 1", "before")


def test_the_signal_that_killed_is_told(run, level):
    ran = run("import ctypes; ctypes.string_at(0)", level=level)
    assert (ran.outcome.ending, ran.outcome.detail) == (Ending.FAILED, "killed by SIGSEGV")


def test_output_comes_while_the_driver_runs_and_ends_it_when_enough(level):
    pieces = []

    def one_piece(piece: bytes) -> bool:
        pieces.append(piece)
        return False

    driver = "import os, time; os.write(OUTPUT_FD, b'first'); time.sleep(9); os.write(OUTPUT_FD, b'second')"
    outcome = execute(
        driver, b"", level=level, limits=Limits(cpu_seconds=5, wall_seconds=5), packages=(), on_output=one_piece
    )
    assert (pieces, outcome.ending) == ([b"first"], Ending.STOPPED)
    assert outcome.wall_seconds < 3


def test_all_output_before_the_end_comes_back(run, level):
    ran = run("for n in range(200): os.write(OUTPUT_FD, bytes([n]) * 10_000)\nos._exit(0)", level=level)
    assert ran.output == b"".join(bytes([n]) * 10_000 for n in range(200))


@pytest.mark.skipif(sys.platform != "linux", reason="sets the size of a pipe")
def test_what_is_in_the_pipe_at_the_end_comes_back_in_however_many_pieces(level):
    pieces = []

    def slow_at_first(piece: bytes) -> bool:
        time.sleep(0 if pieces else 0.1)
        pieces.append(piece)
        return True

    driver = (
        "import fcntl, os\nfcntl.fcntl(OUTPUT_FD, fcntl.F_SETPIPE_SZ, 2**20)\n"
        "fcntl.fcntl(OUTPUT_FD, fcntl.F_SETFL, os.O_DIRECT | os.O_WRONLY)\n"
        "for n in range(200): os.write(OUTPUT_FD, bytes([n]))"
    )
    limits = Limits(cpu_seconds=5, wall_seconds=5)
    outcome = execute(driver, b"", level=level, limits=limits, packages=(), on_output=slow_at_first)
    assert outcome.ending is Ending.DONE
    assert b"".join(pieces) == bytes(range(200))


def test_output_up_to_the_limit_is_no_flood(run, level):
    ran = run("os.write(OUTPUT_FD, b'x' * 1000)", level=level, output_bytes=1000)
    assert (len(ran.output), ran.outcome.ending) == (1000, Ending.DONE)


def test_a_flood_is_cut_at_the_limit(run, level):
    ran = run("while True: os.write(OUTPUT_FD, b'x' * 9999)", level=level, output_bytes=100_000)
    assert (len(ran.output), ran.outcome.ending) == (100_000, Ending.FLOOD)


def test_a_short_flood_is_one_as_well(run, level):
    ran = run("os.write(OUTPUT_FD, b'x' * 1001); os._exit(0)", level=level, output_bytes=1000)
    assert (len(ran.output), ran.outcome.ending) == (1000, Ending.FLOOD)


def test_a_driver_that_closed_its_output_still_ends_by_itself(run, level):
    ran = run("import time; os.close(OUTPUT_FD); time.sleep(0.1); os._exit(3)", level=level)
    assert ran.outcome.detail == "exit status 3"


def test_a_driver_that_closed_its_output_still_ends_at_the_deadline(run, level):
    ours = time.thread_time()
    ran = run("import time; os.closerange(0, 300); time.sleep(9)", level=level, wall_seconds=0.15)
    assert ran.outcome.ending is Ending.TIMEOUT
    assert time.thread_time() - ours < 0.07  # this side sleeps meanwhile


def test_exiting_at_once_ends_threads_too(run, level):
    ran = run(
        "import threading, time; threading.Thread(target=time.sleep, args=(9,)).start(); os._exit(0)", level=level
    )
    assert ran.outcome.ending is Ending.DONE
    assert ran.outcome.wall_seconds < 3


def test_processor_time_is_measured(run, level):
    ran = run("import time\nwhile time.process_time() < 0.2: pass", level=level)
    assert 0.2 <= ran.outcome.cpu_seconds < 1


def test_numpy_can_be_imported_if_it_is_named(run, level):
    pytest.importorskip("numpy")
    assert run("import numpy; say(numpy.arange(4).sum())", level=level, packages=("numpy",)).said == "6"


def test_packages_that_are_not_named_do_not_exist(run, level):
    driver = "import sys\ntry: import numpy, pytest\nexcept ImportError: say('none')"
    assert run(driver, level=level).said == "none"


def test_packages_that_are_not_installed_are_left_out(run, level):
    assert run("say('here')", level=level, packages=("no_such_package_anywhere",)).said == "here"


def test_only_top_level_packages_can_be_named(run, rlimit):
    with pytest.raises(ConfigError, match="top-level"):
        run("pass", level=rlimit, packages=("os.path",))


def test_off_executes_nothing(run):
    with pytest.raises(CapabilityError, match="executes nothing"):
        run("say('here')", level=Level.OFF)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_there_is_no_way_to_say_no_limit(value):
    with pytest.raises(ConfigError, match="wall_seconds"):
        Limits(cpu_seconds=1, wall_seconds=value)


def test_a_process_that_cannot_be_set_up_is_an_error_and_no_result(run, level):
    with pytest.raises(SandboxError, match=r"did not start: .*Error"):
        run("say('here')", level=level, memory_bytes=1)


def test_an_error_of_the_caller_passes_and_leaves_nothing(level, temporary):
    def broken(piece: bytes) -> bool:
        raise LookupError(piece.decode())

    limits = Limits(cpu_seconds=5, wall_seconds=5)
    with pytest.raises(LookupError, match="x"):
        execute("import os; os.write(OUTPUT_FD, b'x')", b"", level=level, limits=limits, packages=(), on_output=broken)
    assert list(temporary.iterdir()) == []


def test_many_runs_at_once_do_not_mix(run, level):
    def echo(number: int) -> str:
        return run("import sys, time; time.sleep(0.02); say(sys.stdin.read())", b"%d" % number, level=level).said

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(echo, range(18))) == [str(number) for number in range(18)]


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_thirty_runs_leave_no_descriptors_files_or_processes(run, level, temporary):
    run("pass", level=level)
    before, children = len(os.listdir("/proc/self/fd")), own_children()
    for number in range(30):
        driver = ["say('x')", "open('file', 'w')", "os._exit(9)"][number % 3]
        run(driver, b"payload", level=level, output_bytes=1 + number % 2)
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(temporary.iterdir()) == []
    assert own_children() == children


def own_children() -> set[str]:
    """Return the processes of this one that were not waited for; other tests may have some."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


PARENT = """
import sys, tempfile
tempfile.tempdir = sys.argv[2]
from latentmas.sandbox import Level, Limits, execute

def show(piece):
    print(piece.decode(), flush=True)
    return True

execute(
    "import os, time; os.write(OUTPUT_FD, b'running'); time.sleep(60)",
    b"", level=Level(sys.argv[1]), limits=Limits(cpu_seconds=60, wall_seconds=60), packages=(), on_output=show,
)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_nothing_runs_on_when_the_parent_is_interrupted_or_killed(level, temporary, sent):
    command = [sys.executable, "-c", PARENT, level.value, temporary]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout.readline() == "running\n"
        confined = _descendants(parent.pid)
        assert confined
        parent.send_signal(sent)
    until = time.monotonic() + 5
    while any(map(_lives, confined)) and time.monotonic() < until:
        time.sleep(0.01)
    assert [pid for pid in confined if _lives(pid)] == []
    if sent == signal.SIGINT:
        assert list(temporary.iterdir()) == []


def _descendants(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(word) for word in file.read().split()]
    return children + [below for child in children for below in _descendants(child)]


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
