"""Judge all specimens, or those named: ``python -m zoo [--out FILE] [--table FILE] [NAME ...]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from zoo.reference import quiet
from zoo.specimens import specimens
from zoo.table import page
from zoo.verdict import Found, State, Verdict, judge


def main() -> int:
    parser = argparse.ArgumentParser(prog="zoo")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", help="one JSON line for each specimen")
    parser.add_argument("--table", help="the page of supported models, in Markdown")
    parser.add_argument("--attention", default="auto")
    arguments = parser.parse_args()
    quiet()
    bad, lines, verdicts = 0, [], []
    for specimen in specimens():
        if arguments.names and specimen.name not in arguments.names and specimen.model_type not in arguments.names:
            continue
        began = time.perf_counter()
        try:
            verdict = judge(specimen, attention=arguments.attention)
        except Exception as error:  # noqa: BLE001 - one that cannot be judged does not end the table
            verdict = Verdict(specimen, {"baseline": Found(State.UNKNOWN, f"{type(error).__name__}: {error}"[:300])})
        verdicts.append(verdict)
        bad += not verdict.fine
        record = {
            "name": specimen.name,
            "state": verdict.state.value,
            "checks": {check: [found.state.value, found.why] for check, found in verdict.found.items()},
            "weights": verdict.weights,
            "sensitivity": verdict.sensitivity,
            "notes": verdict.notes,
            "seconds": round(time.perf_counter() - began, 1),
        }
        lines.append(json.dumps(record))
        print(lines[-1], flush=True)
        if arguments.out:
            Path(arguments.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if arguments.table:
        Path(arguments.table).write_text(page(verdicts), encoding="utf-8")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
