"""Judge all specimens, or those named: ``python -m zoo [--out FILE] [NAME ...]``."""

from __future__ import annotations

import argparse
import json
import sys
import time

from zoo.reference import quiet
from zoo.specimens import specimens
from zoo.verdict import judge


def main() -> int:
    parser = argparse.ArgumentParser(prog="zoo")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out")
    parser.add_argument("--attention", default="auto")
    arguments = parser.parse_args()
    quiet()
    bad, lines = 0, []
    for specimen in specimens():
        if arguments.names and specimen.name not in arguments.names and specimen.model_type not in arguments.names:
            continue
        began = time.perf_counter()
        verdict = judge(specimen, attention=arguments.attention)
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
            with open(arguments.out, "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
