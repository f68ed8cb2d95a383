"""Asks math-verify whether an expression equals a number. Run as a script, in a process that may be killed at any time.

It reads one JSON object per line, ``{"box": "\\\\sqrt{4900}", "target": "70"}``, and answers each with ``{"equal":
true}``; before the first it says ``{"ready": true}``. It ends with its input. It imports nothing of the package.

    python -P _symbolic_worker.py SECONDS

SECONDS is the longest a question may take, plus a reserve for the asker to notice: then the system ends the process,
also where a single operation of the interpreter takes longer and nobody is left to kill it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from fractions import Fraction
from typing import Final

MEMORY_BYTES: Final = 2 << 30


def main(seconds: int) -> None:
    """Answer questions until the input ends."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    math_verify, sympy = importlib.import_module("math_verify"), importlib.import_module("sympy")
    # Only the box: other extractions would take a number out of what they cannot parse.
    only_box = math_verify.LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)

    def say(reply: dict[str, bool]) -> None:
        print(json.dumps(reply), file=replies, flush=True)

    def equal(box: str, target: Fraction) -> bool:
        # Without its own time limits, which do not stop a long operation.
        found = math_verify.parse(
            f"$\\boxed{{{box}}}$", extraction_config=[only_box], fallback_mode="no_fallback", parsing_timeout=None
        )
        gold = sympy.Rational(target.numerator, target.denominator)
        return bool(math_verify.verify(gold, found, float_rounding=12, timeout_seconds=None))

    say({"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        signal.alarm(seconds)
        is_equal = equal(question["box"], Fraction(question["target"]))
        signal.alarm(0)
        say({"equal": is_equal})


if __name__ == "__main__":
    main(int(sys.argv[1]))
