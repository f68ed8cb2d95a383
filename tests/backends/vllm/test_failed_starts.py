"""An engine that does not start says why, in the error itself, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest

from latentmas.backends.vllm.failures import find_cause

GONE = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
WORKER = "(VllmWorker-0 pid=22868) ERROR 11-28 14:05:40 [multiproc_executor.py:953] "
CORE = "(EngineCore pid=22710) ERROR 11-28 14:05:45 [core.py:1510] "


def logged(prefix: str, error: str) -> str:
    """Return how vLLM logs an exception of one of its processes."""
    lines = ["It failed to start.", "Traceback (most recent call last):", '  File "core.py", line 1, in run', error]
    return "".join(f"{prefix}{line}\n" for line in lines)


POINTER = logged(
    CORE, "Exception: WorkerProc initialization failed due to an exception. See stack trace for root cause."
)
NO_MEMORY = (
    "ValueError: Available memory on node 0 (9.02/23.54 GiB) on startup is less than desired CPU memory utilization "
    "(0.9, 21.19 GiB). On the CPU backend, the flag controls the fraction of CPU memory reserved."
)
NO_GPU_MEMORY = (
    "ValueError: Free memory on device cuda:0 (70.1/139.8 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 125.8 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (8192), (3.5 GiB KV cache is needed, which "
    "is larger than the available KV cache memory (1.2 GiB). Based on the available memory, the estimated maximum "
    "model length is 2808. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`."
)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (NO_MEMORY, "asks for 21.2 GiB and 9.02 of 23.54 GiB are free; give --gpu_memory_utilization 0.3,"),
        (NO_GPU_MEMORY, "give --gpu_memory_utilization 0.45,"),
        (TOO_LONG, "give --max_model_len 2808, or a larger --gpu_memory_utilization"),
        ("ValueError: No available memory for the cache blocks. Try more.", "give a larger --gpu_memory_utilization"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "end what holds the memory"),
        ("torch.distributed.DistNetworkError: port: 29500, message: EADDRINUSE: address already in use", "VLLM_PORT"),
        ("torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found in config: (None, 'g++')", "g++"),
        (
            "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
            '"enforce_eager": true',
        ),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.", "--dtype float16"),
        ("RuntimeError: CUDA out of memory occurred when warming up. Try lowering `max_num_seqs`.", "--generate_bs"),
        ("ValueError: World size (2) is larger than the number of available GPUs (1)", "--tensor_parallel_size"),
    ],
)
def test_the_cause_stands_in_the_error_with_what_to_do_about_it(raised, told):
    cause = str(find_cause(GONE, logged(WORKER, raised) + POINTER))
    assert cause.startswith(raised.split(". ")[0].rstrip("."))
    assert told in cause
    assert "\n" not in cause
    assert "See root cause" not in cause


def test_what_nobody_knows_a_remedy_for_is_still_named():
    cause = find_cause(GONE, logged(WORKER, "ImportError: libcudart.so.13: cannot open shared object file") + POINTER)
    assert (cause.text, cause.remedy) == ("ImportError: libcudart.so.13: cannot open shared object file", None)


def test_an_exception_raised_from_another_has_the_other_as_its_cause():
    said = logged(CORE, "OSError: the disk is full")
    said += f"{CORE}\n{CORE}The above exception was the direct cause of the following exception:\n{CORE}\n"
    said += logged(CORE, "RuntimeError: weights could not be read")
    assert find_cause(GONE, said).text == "OSError: the disk is full"


def test_an_exception_that_was_replaced_while_it_was_handled_is_not_the_cause():
    said = logged(CORE, "KeyError: 'rope'")
    said += f"{CORE}\n{CORE}During handling of the above exception, another exception occurred:\n{CORE}\n"
    said += logged(CORE, "ValueError: this rope is not known")
    assert find_cause(GONE, said).text == "ValueError: this rope is not known"


def test_a_process_that_was_killed_is_named_with_its_signal():
    error = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'E_0': -9}")
    assert str(find_cause(error)) == (
        "its process E_0 was killed by signal SIGKILL, as the system does when memory runs out"
    )


def test_what_pydantic_counts_is_left_out():
    error = ValueError(
        "1 validation error for ModelConfig\n  Value error, User-specified max_model_len (999999) is greater than the "
        "derived max_model_len (max_position_embeddings=8192.0 or model_max_length=None in model's config.json). "
        "To allow it, ... [type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]"
    )
    cause = find_cause(error)
    assert cause.text.startswith("ValueError: User-specified max_model_len (999999) is greater")
    assert cause.remedy == "give --max_model_len of at most 8192, or leave it out"


def test_the_lines_after_an_exception_belong_to_it_and_the_next_message_does_not():
    said = logged(WORKER, f"RuntimeError: nvcc failed\n{WORKER}  with exit code 7") + POINTER
    assert find_cause(GONE, said).text == "RuntimeError: nvcc failed with exit code 7"


def test_words_that_are_no_exception_are_no_cause():
    said = f"{WORKER}Something: was logged\nWarning: more\n" + logged(CORE, "OSError: the cause")
    assert find_cause(GONE, said).text == "OSError: the cause"


# What processes say meanwhile

LISTENS = """
import os, subprocess, sys
from latentmas.backends.vllm.overheard import overheard

held, outcome = sys.argv[1] == "held", sys.argv[2]
with overheard(held=held) as heard:
    print("ours", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo theirs >&2"], check=True)
    found = heard.text()
    if outcome == "drop":
        heard.drop()
    print("ours again", file=sys.stderr)
subprocess.run(["sh", "-c", "echo later >&2"], check=True)
print(repr(found), os.isatty(2))
"""


def listen(*words: str) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", LISTENS, *words], capture_output=True, text=True, check=True, timeout=60, env=os.environ
    )
    return done.stdout.strip(), done.stderr.splitlines()


def test_what_a_process_says_on_stderr_is_heard_and_passed_on_at_once():
    assert listen("open", "-") == ("'theirs\\n' False", ["ours", "theirs", "ours again", "later"])


def test_what_is_held_back_comes_at_the_end():
    assert listen("held", "-") == ("'theirs\\n' False", ["ours", "ours again", "theirs", "later"])


def test_what_is_dropped_is_not_passed_on():
    assert listen("held", "drop") == ("'theirs\\n' False", ["ours", "ours again", "later"])


def test_a_process_that_outlives_the_start_is_heard_as_long_as_it_lives():
    script = textwrap.dedent(
        """
        import subprocess, sys
        from latentmas.backends.vllm.overheard import overheard
        with overheard(held=True):
            child = subprocess.Popen(["sh", "-c", "read line; echo said $line >&2"], stdin=subprocess.PIPE)
        child.communicate(b"late\\n")
        import time
        time.sleep(0.3)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == "said late\n"


def test_listening_leaves_stderr_as_it_was(capfd):
    from latentmas.backends.vllm.overheard import overheard

    before, stream = os.fstat(2), sys.stderr
    with overheard(held=False) as heard:
        assert heard is not None
        os.write(2, b"through the pipe\n")
        assert heard.text() == "through the pipe\n"
    assert (os.fstat(2).st_ino, sys.stderr) == (before.st_ino, stream)
    assert capfd.readouterr().err == "through the pipe\n"
    for thread in threading.enumerate():
        if thread.name == "latentmas-engine-stderr":
            thread.join(5)
            assert not thread.is_alive(), "nobody can write any more, and it still listens"
