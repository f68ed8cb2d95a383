"""Measure how long the canonical solutions of HumanEval+ and MBPP+ take, and write the table that limits come from.

    python benchmarks/canonical_seconds.py ../shared/data

Only the calls and the writing down of their results are measured, each test alone in this process. The table keeps
tests that take longer than half a second, by the digest of their text; 5 times that is what an answer may take, where
it is more than ten seconds. The folder holds the two data sets as evalplus publishes them, or as JSON lines in the
columns of the hub.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import marshal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from latentmas.scorers._code_driver import write
from latentmas.scorers._code_limits import calibration_seconds
from latentmas.scorers._hub_tests import parse_test

TABLE = Path(__file__).parents[1] / "src" / "latentmas" / "scorers" / "_code_seconds.json"
LEAST_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds humanevalplus/ and mbppplus/")
    parser.add_argument("--output", type=Path, default=TABLE)
    chosen = parser.parse_args()
    sys.set_int_max_str_digits(0)
    sys.modules["answer"] = type(sys)("answer")
    calibrations = [calibration_seconds()]
    seconds, measured = {}, 0
    for name, code, test, entry_point in programs(chosen.folder):
        parsed = parse_test(test, entry_point)
        taken = seconds_of(code, parsed.entry_point, [marshal.dumps(arguments) for arguments in parsed.inputs])
        measured += 1
        if taken > LEAST_SECONDS:
            seconds[parsed.digest] = round(taken, 2)
            calibrations.append(calibration_seconds())
            print(f"{measured:4} {name:16} {taken:7.2f} s", flush=True)
    table = {
        "calibration_seconds": round(sorted(calibrations)[len(calibrations) // 2], 5),
        "seconds": dict(sorted(seconds.items(), key=lambda item: -item[1])),
    }
    chosen.output.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"{len(seconds)} of {measured} tests take longer than {LEAST_SECONDS} s; calibration {calibrations}")


def programs(folder: Path) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield name, canonical solution, test and entry point of each row."""
    for row in rows(folder / "humanevalplus"):
        yield row["task_id"], row["prompt"] + row["canonical_solution"], row["test"], row["entry_point"]
    for row in rows(folder / "mbppplus"):
        yield f"Mbpp/{row['task_id']}", row["code"], row["test"], None


def rows(folder: Path) -> Iterator[dict[str, str]]:
    for path in sorted(folder.glob("*.jsonl*")):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def seconds_of(code: str, entry_point: str, calls: list[bytes]) -> float:
    """Return the processor time that a program takes to answer all calls."""
    namespace: dict[str, object] = {"__name__": "answer"}
    exec(compile(code, "answer.py", "exec", dont_inherit=True), namespace)
    function = namespace[entry_point]
    assert callable(function)
    gc.collect()
    start = time.process_time()
    for arguments in calls:
        write(function(*marshal.loads(arguments)), _forget)
    return time.process_time() - start


def _forget(text: str) -> None:
    """Take a piece of a result and keep nothing of it."""


if __name__ == "__main__":
    main()
