"""Judge all specimens, or those named, and write the page of supported models.

python -m zoo                             all of them, one JSON line each
python -m zoo llama "llama (YaRN)"        a type with all its variants, one variant
python -m zoo --out FILE --table PAGE     lines to a file, and the page
python -m zoo --from FILE --table PAGE    the page from lines that are there; later lines of a name count
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from zoo.reference import quiet
from zoo.specimens import Specimen, specimens
from zoo.table import page
from zoo.verdict import Found, State, Verdict, judge


def main() -> int:
    parser = argparse.ArgumentParser(prog="zoo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--from", dest="files", action="append", default=[])
    parser.add_argument("--out")
    parser.add_argument("--table")
    parser.add_argument("--attention", default="auto")
    arguments = parser.parse_args()
    quiet()
    if arguments.files:
        verdicts = _read(arguments.files)
    else:
        verdicts, lines = [], []
        for verdict, seconds in _judged(arguments.names, arguments.attention):
            verdicts.append(verdict)
            lines.append(json.dumps({**verdict.record(), "seconds": round(seconds, 1)}))
            print(lines[-1], flush=True)
            if arguments.out:
                Path(arguments.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if arguments.table:
        Path(arguments.table).write_text(page(verdicts), encoding="utf-8")
    return int(not all(verdict.fine for verdict in verdicts))


def _judged(names: Sequence[str], attention: str) -> Iterator[tuple[Verdict, float]]:
    for specimen in specimens():
        if names and specimen.name not in names and specimen.model_type not in names:
            continue
        began = time.perf_counter()
        try:
            verdict = judge(specimen, attention=attention)
        except Exception as error:  # noqa: BLE001 - one that cannot be judged does not end the table
            verdict = Verdict(specimen, {"baseline": Found(State.UNKNOWN, f"{type(error).__name__}: {error}"[:300])})
        yield verdict, time.perf_counter() - began


def _read(files: Sequence[str]) -> list[Verdict]:
    known = {specimen.name: specimen for specimen in specimens()}
    found: dict[str, Verdict] = {}
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            specimen = known.get(record["name"], Specimen(record["name"]))
            found[record["name"]] = Verdict.from_record(specimen, record)
    return list(found.values())


if __name__ == "__main__":
    sys.exit(main())
