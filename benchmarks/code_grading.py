"""What grading code in a sandbox costs: 200 short answers, against the same programs run bare.

    python benchmarks/code_grading.py [--level landlock] [--workers 2] [--answers 200]

Graded: found in a text, run confined, every result compared. Bare: ``python file.py``, which makes the same calls and
compares nothing, from as many threads as there are workers. The start of the workers is not measured on either side;
of several rounds each side's best one counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

from latentmas import sandbox
from latentmas.samples import Answer, FinishReason, Sample, Score, Verdict
from latentmas.scorers.code import CodeScorer

PROGRAMS: dict[str, tuple[str, list[str]]] = {
    "digit_sum": (
        "def digit_sum(n: int) -> int:\n    return sum(int(digit) for digit in str(abs(n)))\n",
        [f"digit_sum({n}) == {sum(map(int, str(n)))}" for n in range(0, 4000, 100)],
    ),
    "pairs": (
        "from typing import List, Tuple\n\ndef pairs(xs: List[int], total: int) -> List[Tuple[int, int]]:\n"
        "    return [(a, b) for i, a in enumerate(xs) for b in xs[i + 1:] if a + b == total]\n",
        [f"pairs({list(range(n))}, 3) == {[(0, 3), (1, 2)] if n > 3 else []}" for n in range(4, 30)],
    ),
    "vowels": (
        "import re\n\ndef vowels(text):\n    return len(re.findall('[aeiou]', text.lower()))\n",
        [f"vowels({'abcdE' * n!r}) == {2 * n}" for n in range(40)],
    ),
    "counts": (
        "from collections import Counter\n\ndef counts(words):\n    return dict(Counter(words))\n",
        [f"counts({['a'] * n + ['b']}) == {{'a': {n}, 'b': 1}}" for n in range(1, 30)],
    ),
    "merge": (
        "import heapq\n\ndef merge(a, b):\n    return list(heapq.merge(a, b))\n",
        [f"merge({list(range(0, n, 2))}, {list(range(1, n, 2))}) == {list(range(n))}" for n in range(30)],
    ),
    "mean": (
        "import math\n\ndef mean(xs):\n    return math.fsum(xs) / len(xs)\n",
        [f"math.isclose(mean({[float(x) for x in range(n)]}), {(n - 1) / 2})" for n in range(1, 40)],
    ),
    "fib": (
        "from functools import lru_cache\n\n@lru_cache(None)\ndef fib(n):\n"
        "    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
        ["fib(10) == 55", "fib(50) == 12586269025", "fib(90) == 2880067194370816120"],
    ),
    "is_prime": (
        "def is_prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))\n",
        ["is_prime(2) is True", "is_prime(10007) is True", "not is_prime(10005)", "not is_prime(1)"],
    ),
    "rotate": (
        "def rotate(grid):\n    return [list(row) for row in zip(*grid[::-1])]\n",
        ["rotate([[1, 2], [3, 4]]) == [[3, 1], [4, 2]]", "rotate([]) == []"],
    ),
    "combine": (
        "from itertools import combinations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Bag:\n"
        "    items: list\n\ndef combine(xs, k):\n    return [sum(c) for c in combinations(Bag(xs).items, k)]\n",
        ["combine([1, 2, 3], 2) == [3, 4, 5]", "combine([1], 2) == []"],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", default="auto", choices=["auto", "bwrap", "landlock", "rlimit"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    level = sandbox.choose(chosen.level, allow_unsafe=chosen.level == "rlimit")
    names = [list(PROGRAMS)[number % len(PROGRAMS)] for number in range(chosen.answers)]
    graded, bare = [], []
    with ProcessPoolExecutor(chosen.workers) as processes, ThreadPoolExecutor(chosen.workers) as threads:
        list(processes.map(grade_one, names[: 4 * len(PROGRAMS)], [level] * 4 * len(PROGRAMS)))
        for _ in range(chosen.rounds):
            graded.append(seconds_graded(processes, names, level))
            bare.append(seconds_bare(threads, names))
    print(f"{chosen.answers} answers, {chosen.workers} workers, sandbox {level.value}, Python {sys.version.split()[0]}")
    for name, seconds in (("graded", graded), ("bare", bare)):
        each = 1000 * min(seconds) * chosen.workers / chosen.answers
        print(
            f"{name:7} {min(seconds):6.2f} s   {each:5.1f} ms per answer and worker   {[round(s, 2) for s in seconds]}"
        )
    print(f"ratio   {min(graded) / min(bare):6.2f}")


def seconds_graded(processes: ProcessPoolExecutor, names: Sequence[str], level: sandbox.Level) -> float:
    start = time.perf_counter()
    scores = list(processes.map(grade_one, names, [level] * len(names), chunksize=4))
    seconds = time.perf_counter() - start
    assert all(score.verdict is Verdict.CORRECT for score in scores), scores
    return seconds


def seconds_bare(threads: ThreadPoolExecutor, names: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, f"{name}.py") for name in PROGRAMS}
        for name, path in paths.items():
            path.write_text(bare_program(name), encoding="utf-8")
        start = time.perf_counter()
        for done in threads.map(run_bare, [paths[name] for name in names]):
            assert done == 0
        return time.perf_counter() - start


def grade_one(name: str, level: sandbox.Level) -> Score:
    code, lines = PROGRAMS[name]
    answer = Answer(text=f"Here it is:\n\n```python\n{code}```\n", finish_reason=FinishReason.STOP)
    test = "".join(f"assert {line}\n" for line in lines)
    return CodeScorer(level=level)(answer, Sample(id=name, question="", target=test, entry_point=name))


def bare_program(name: str) -> str:
    code, lines = PROGRAMS[name]
    return code + "import math\n" * any("math." in line for line in lines) + "".join(f"{line}\n" for line in lines)


def run_bare(path: Path) -> int:
    return subprocess.run([sys.executable, str(path)], stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    main()
