"""The first second of a command: what it loads, Ctrl-C, and a stdout that takes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentmas.cli import _streams, main

REPOSITORY = Path(__file__).parents[2]
COMMANDS = ["demo", "doctor", "grade", "handovers", "plot", "run", "tasks", "vllm"]
HEAVY = {
    *("torch", "transformers", "numpy", "scipy", "matplotlib", "datasets", "pyarrow", "yaml", "jinja2"),
    *("tokenizers", "filelock", "safetensors"),
}
RUN = ["run", "--method", "latent_mas", "--model_name", "scripted", "--task", "tiny", "--max_samples", "2"]
LATENTMAS = [sys.executable, "-m", "latentmas"]

LOADED = """
import sys
from latentmas.cli import main
code = main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""

# Ctrl-C at the moment a module is about to be imported.
INTERRUPTED = """
import signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
from latentmas.cli import main
sys.exit(main(sys.argv[2:]))
"""


def loaded(*words: str) -> set[str]:
    """Return the packages in memory once a command line is done."""
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Let child processes hear SIGINT, even where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_version_loads_nothing_but_the_standard_library():
    assert not loaded("--version") & {*HEAVY, "pydantic", "typer", "rich", "typing"}


def test_the_list_of_commands_loads_no_command():
    assert not loaded("--help") & {*HEAVY, "pydantic"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_what_knows_its_options_and_no_more(command):
    assert not loaded(command, "--help") & HEAVY


def test_every_command_is_listed_with_its_first_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f" {command} " in out
    assert "Grade stored answers again, without a model." in out


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["tasks"], ["run", "--help"]], ids=" ".join)
def test_a_full_stdout_is_one_line(words):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*LATENTMAS, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdout takes no more (No space left on device)")
    assert len(done.stderr.splitlines()) == 1


def test_a_run_with_a_full_stdout_keeps_its_answers_and_the_same_command_prints_them(tmp_path):
    words = [*LATENTMAS, *RUN, "--output_dir", str(tmp_path / "run")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "the same command prints it again" in done.stderr.splitlines()[-1]
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1].startswith('{"method": "latent_mas"')
    assert "goes on, 2 of 2 done" in again.stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["tasks"], RUN], ids=" ".join)
def test_a_reader_that_is_gone_is_told_nothing(words, tmp_path):
    more = ["--output_dir", str(tmp_path / "run")] if words is RUN else []
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*LATENTMAS, *words, *more], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "2>/dev/full", ">&- 2>&-"])
def test_closed_and_full_streams_change_no_exit_code(closed):
    for words, code in (("--version", 0), ("rin", 2)):
        line = f"{sys.executable} -m latentmas {words} {closed}"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert "Traceback" not in done.stdout + done.stderr


def test_stdout_is_the_same_as_before_when_a_command_is_done():
    before = sys.stdout
    with _streams.guarded_stdout():
        assert sys.stdout is not before
    assert sys.stdout is before


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize(
    "module", ["typer", "rich.console", "latentmas.cli.run", "pydantic", "latentmas.experiment.compose", "numpy"]
)
def test_ctrl_c_while_a_module_is_imported_is_exit_code_130_and_no_traceback(module, tmp_path):
    words = [sys.executable, "-c", INTERRUPTED, module, *RUN, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("seconds", [0.15, 0.5, 1.0])
@pytest.mark.parametrize("program", ["latentmas", "run.py"])
def test_ctrl_c_in_the_first_second_is_no_traceback(program, seconds, tmp_path):
    other = {"scripted": "tiny", "2": "2000"}  # what takes a while to load, and is not done in a second
    words = [other.get(word, word) for word in RUN]
    if program == "run.py":
        begin = f"runpy.run_path({str(REPOSITORY / 'run.py')!r}, run_name='__main__')"
        del words[0]
    else:
        begin = "runpy.run_module('latentmas', run_name='__main__')"
    # The interpreter itself must be there: what interrupts it earlier can be heard by nobody.
    command = [sys.executable, "-c", f"import runpy; print('up', flush=True); {begin}", *words]
    with subprocess.Popen(
        [*command, "--output_dir", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode == 130
    said = [line for line in err.splitlines() if "new run" not in line and "records are stored" not in line]
    assert len(said) <= 1


def test_an_interrupt_that_was_heard_inside_of_a_c_extension_is_still_exit_code_130(tmp_path):
    # exec of a text is what extensions do: the interpreter notes that an interrupt went through.
    (tmp_path / "begin.py").write_text(
        "import sys; from latentmas import cli\n"
        "def run(words, abbreviations):\n"
        "    exec('raise KeyboardInterrupt')\n"
        "cli._run = run\n"
        "sys.exit(cli.main([]))"
    )
    done = subprocess.run([sys.executable, "-m", "begin"], capture_output=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, b"")
