"""Why an engine did not start, in one sentence, and what to do about it. Reads text; knows nothing of processes."""

from __future__ import annotations

import itertools
import math
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_PREFIX: Final = re.compile(
    r"^(\x1b\[[\d;]*m)*(\([^()]*pid=\d+\)\s?)?(\x1b\[[\d;]*m)*"  # (EngineCore pid=12)
    r"((DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:.]+ (\[[^\]]*\] ?)?)?(\x1b\[[\d;]*m)*"
)
_TRACEBACK: Final = "Traceback (most recent call last):"
_HANDLING: Final = "During handling of the above exception, another exception occurred:"
_POINTERS: Final = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "See root cause",
    "See stack",
)
"""What vLLM raises to say that the cause is somewhere else."""
_LONGEST: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why an engine did not start.

    Attributes:
        text: Type and message of the innermost exception.
        remedy: What to do; None where nobody knows.
    """

    text: str
    remedy: str | None

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


def find_cause(error: BaseException, said: str = "") -> Cause:
    """Return why an engine did not start.

    Args:
        error: What vLLM raised.
        said: What its processes wrote to stderr.
    """
    found = [*_raised(said), *_chain(error)]
    telling = [text for text in found if not any(pointer in text for pointer in _POINTERS)]
    for text in telling:
        if (remedy := _remedy(text)) is not None:
            return Cause(text=_shortened(text.split(". ")[0].rstrip(".")), remedy=remedy)
    if telling:
        return Cause(text=_shortened(telling[0]).rstrip("."), remedy=None)
    return Cause(text=_killed(str(error)) or _shortened(found[-1]), remedy=None)


def _raised(said: str) -> Iterator[str]:
    """Yield the exceptions whose tracebacks stand in a text, in order, each with the rest of its message's paragraph.

    One that was replaced by another while it was handled is left out: the later one is meant for people.
    """
    lines = [(match[0], line[match.end() :].rstrip()) for line in said.splitlines() if (match := _PREFIX.match(line))]
    inside = False
    found: list[str] = []
    for number, (source, line) in enumerate(lines):
        if line == _TRACEBACK:
            inside = True
        elif line == _HANDLING and found:
            found.pop()
        elif inside and re.match(r"[A-Za-z_][\w.]*(: |$)", line):
            inside = False
            rest = _paragraph(source, lines[number + 1 : number + 4]) if source else []
            found.append(" ".join([line, *rest]))
    yield from found


def _paragraph(source: str, lines: Iterable[tuple[str, str]]) -> list[str]:
    """Return what the same source goes on to say, up to an empty line."""
    going_on = itertools.takewhile(lambda said: said[0] == source and said[1], lines)
    return [line.strip() for _, line in going_on]


def _chain(error: BaseException) -> Iterator[str]:
    """Yield an exception after those it came from."""
    if error.__cause__ is not None:
        yield from _chain(error.__cause__)
    text = " ".join(str(error).split())
    # pydantic puts a count in front of what was said
    text = re.sub(r"^\d+ validation errors? for \S+ (.*?Value error, )?", "", text)
    text = re.sub(r" \[type=.*$", "", text)
    yield f"{type(error).__name__}: {text}" if text else type(error).__name__


def _killed(text: str) -> str | None:
    """Return that a process was killed by a signal, where an exit code says so."""
    if (code := re.search(r"'([^']+)': -(\d+)", text)) is None:
        return None
    number = int(code[2])
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process {code[1]} was killed by signal {name}{why}"


def _shortened(text: str) -> str:
    """Return the first sentences of a message, as many as fit in a line that people read."""
    if len(text) <= _LONGEST:
        return text
    end = text.rfind(". ", 0, _LONGEST)
    return text[: end + 1] if end > _LONGEST // 3 else f"{text[: _LONGEST - 3]}..."


def _less_memory(match: re.Match[str]) -> str:
    free, total, share = float(match["free"]), float(match["total"]), float(match["share"])
    # A twentieth of the whole stays free for everything else.
    fitting = math.floor((free / total - 0.05) * 20) / 20
    give = f"give --gpu_memory_utilization {fitting:g}" if fitting > 0 else "there is next to nothing to give"
    return (
        f"--gpu_memory_utilization {share:g} asks for {share * total:.1f} GiB and {free:g} of {total:g} GiB are free; "
        f"{give}, or end what holds the memory"
    )


def _less_context(match: re.Match[str]) -> str:
    fits = re.search(r"estimated maximum model length is (\d+)", match.string)
    shorter = f"give --max_model_len {fits[1]}" if fits else "give a smaller --max_model_len"
    return f"{shorter}, or a larger --gpu_memory_utilization"


_REMEDIES: Final[tuple[tuple[str, Callable[[re.Match[str]], str]], ...]] = (
    (
        r"\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired \w+ memory utilization "
        r"\((?P<share>[\d.]+),",
        _less_memory,
    ),
    (r"larger than the available KV cache memory", _less_context),
    (
        r"No available memory for the cache blocks",
        lambda match: (
            "the weights fill what vLLM may take; give a larger --gpu_memory_utilization, "
            "or spread them with --tensor_parallel_size"
        ),
    ),
    (
        r"kv cache allocation is less than requested memory",
        lambda match: "give a smaller --gpu_memory_utilization, or set VLLM_CPU_KVCACHE_SPACE to fewer GiB",
    ),
    (
        r"User-specified max_model_len \(\d+\) is greater than the derived max_model_len \(\w+=(?P<most>\d+)",
        lambda match: f"give --max_model_len of at most {int(match['most'])}, or leave it out",
    ),
    (
        r"(?i)max_num_seqs",
        lambda match: "give a smaller --generate_bs",
    ),
    (
        r"(?i)out of memory|OutOfMemoryError|DefaultCPUAllocator|can't allocate memory",
        lambda match: (
            "give a smaller --max_model_len or --generate_bs, spread the model with --tensor_parallel_size, "
            "or end what holds the memory"
        ),
    ),
    (
        r"(?i)address already in use|EADDRINUSE",
        lambda match: "another process holds the port; end it, or set VLLM_PORT to a free one",
    ),
    (
        r"(?i)failed to find C compiler|InvalidCxxCompiler|no working C\+\+ compiler|No such file or directory: "
        r"'(gcc|g\+\+|cc|c\+\+|clang)'|Python\.h",
        lambda match: (
            "install a C++ compiler and the headers of Python (gcc, g++, python3-dev), or compile nothing: "
            """--vllm_options '{"enforce_eager": true}'"""
        ),
    ),
    (
        r"(?i)bfloat16 is only supported|dtype.{0,40}not supported|unsupported dtype|not supported.{0,20}dtype",
        lambda match: "give --dtype float16 or --dtype float32",
    ),
    (
        r"(?i)world size.{0,60}(larger|greater|exceed)|tensor.parallel.{0,40}(divisible|larger|greater)|"
        r"attention heads.{0,60}divisible by tensor parallel",
        lambda match: "give a smaller --tensor_parallel_size",
    ),
)


def _remedy(text: str) -> str | None:
    for pattern, remedy in _REMEDIES:
        if (match := re.search(pattern, text)) is not None:
            return remedy(match)
    return None
