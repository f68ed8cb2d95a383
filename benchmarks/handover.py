"""What a hand-over costs and gains: seconds from the hand-over to the last written token, by filter.

    python benchmarks/handover.py                                    # 8 rows of 8000 slots, all cores, some minutes
    python benchmarks/handover.py --break_even                       # from which length of the memory on it pays
    python benchmarks/handover.py --memory                           # resident memory before and after one hand-over
    python benchmarks/handover.py --rounds 5 --json benchmarks/results/x.json

A model with random weights and a memory of random keys and values, written through `LatentMemory`: what is in them
changes no time. Each measurement starts from a copy of that memory, made outside of what is timed; then the hand-over
(scoring and cutting), the next agent's prompt, and greedy tokens without an end. All ways run in one process, in turns.
Where others use the machine too, compare seconds of CPU time on one thread (`--threads 1`).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rollout import SHAPES, NoTokenizer, Shape, build_model, machine
from transformers.utils import logging as transformers_logging

from latentmas.alignment import AlignmentKind, build_alignment
from latentmas.backends.hf.load import describe_model
from latentmas.backends.hf.rollout import Rollout, Row, _makes_memory_anew, _slots_ahead
from latentmas.memory import LatentMemory
from latentmas.program import KEEP_ALL, Budget, Handover, KeepSpec, Program, Read, SlotKind, Write

SHAPE = "4x256"
SHAPES[SHAPE] = Shape(
    layers=4, hidden=256, heads=8, kv_heads=8, head_width=64, feed_forward=768, vocabulary=1000, tied=False
)
PHASES = ("handover", "read", "write", "total")
FILTERS: dict[str, tuple[str, dict[str, str]]] = {
    "receiver, head": ("receiver", {"grain": "head"}),
    "receiver, layer": ("receiver", {"grain": "layer"}),
    "receiver, token": ("receiver", {"grain": "token"}),
    "sender, head": ("sender", {"grain": "head"}),
    "knn, top": ("knn", {"strategy": "top"}),
    "random": ("random", {}),
    "recency": ("recency", {}),
}
FULL, RECEIVER = "full", "receiver, head"
LENGTHS = (250, 500, 1000, 2000, 4000, 8000)
CHUNK = 500
MIB = 2**20


class Bench:
    """The model, and programs that start with a memory at hand."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        built = argparse.Namespace(shape=SHAPE, vocabulary=0, untied=True, seed=options.seed, device="cpu")
        self.model = describe_model(build_model(built, "float32"), NoTokenizer(), "sdpa")
        self.alignment = build_alignment(AlignmentKind.NORM, self.model.space())
        chance = random.Random(options.seed)
        self._prompts = [
            tuple(chance.randrange(1, SHAPES[SHAPE].vocabulary) for _ in range(options.prompt))
            for _ in range(options.batch)
        ]

    def fill(self, slots: int) -> LatentMemory:
        """Return a memory of random keys and values, with the room that a rollout reserves where all is handed over."""
        shape, rows = SHAPES[SHAPE], self.options.batch
        room = _slots_ahead([program.steps[1:] for program in self._programs(KEEP_ALL)])
        memory = LatentMemory(rows, shape.layers, capacity=slots + room)
        generator = torch.Generator().manual_seed(self.options.seed)
        for start in range(0, slots, CHUNK):
            new = min(CHUNK, slots - start)
            memory.extend(torch.ones(rows, new, dtype=torch.bool), f"agent{start * 3 // slots + 1}", SlotKind.PROMPT)
            for layer in range(shape.layers):
                size = (rows, shape.kv_heads, new, shape.head_width)
                memory.write(layer, *(torch.randn(size, generator=generator) for _ in range(2)))
        return memory

    def rollout(self, way: str, memory: LatentMemory) -> Rollout:
        """Return the rollout of a way, ready for its hand-over: step 1, as step 0 is what made the memory."""
        keep = KEEP_ALL
        if way != FULL:
            name, parameters = FILTERS[way]
            keep = KeepSpec(name=name, parameters=tuple(parameters.items()), budget=Budget(amount=self.options.keep))
        rows = [Row(program, seed) for seed, program in enumerate(self._programs(keep))]
        rollout = Rollout(self.model, self.alignment, rows, memory, releases=True)
        if way.startswith("sender"):  # seen while the sender took its turn, which ended before the clock starts
            size = (memory.layers, memory.rows, SHAPES[SHAPE].kv_heads, memory.slots)
            rollout.attended = torch.rand(size, generator=torch.Generator().manual_seed(self.options.seed))
        return rollout

    def _programs(self, keep: KeepSpec) -> list[Program]:
        return [
            Program(
                (
                    Read(agent="agent3", tokens=(1,)),
                    Handover(agent="agent3", keep=keep),
                    Read(agent="judger", tokens=prompt),
                    Write(agent="judger", max_new_tokens=self.options.tokens),
                )
            )
            for prompt in self._prompts
        ]

    def time(self, way: str, template: LatentMemory) -> dict[str, float]:
        """Return the seconds of each phase."""
        rollout = self.rollout(way, template.clone())
        gc.collect()
        seconds, began, computed = {}, time.perf_counter(), time.process_time()
        for phase, before in zip(PHASES, _run(rollout), strict=False):
            seconds[phase], began = before - began, before
        written = [len(row.written) for row in rollout.rows]
        if written != [self.options.tokens] * self.options.batch:
            sys.exit(f"{way}: rows wrote {written} tokens instead of {self.options.tokens}; nothing is timed")
        return {**seconds, "total": sum(seconds.values()), "cpu": time.process_time() - computed}


@torch.inference_mode()
def _run(rollout: Rollout) -> Iterator[float]:
    """Run what follows step 0 as `Rollout.run` does, and say when each step ended."""
    for number in range(1, len(rollout.rows[0].steps)):
        _ahead(rollout, number)
        rollout.step(number, last=number + 1 == len(rollout.rows[0].steps))
        yield time.perf_counter()


def _ahead(rollout: Rollout, number: int) -> None:
    """Make room where `Rollout.run` does: in a memory that a hand-over made anew."""
    if _makes_memory_anew(rollout.rows[0].steps[number - 1]):
        rollout.memory.reserve(_slots_ahead([row.steps[number:] for row in rollout.rows]))


def measure(bench: Bench, ways: Sequence[str], slots: int) -> dict[str, list[dict[str, float]]]:
    """Time all ways in turns; the first turn of a memory that is small warms up."""
    template = bench.fill(min(slots, CHUNK))
    for way in ways:
        bench.time(way, template)
    template = bench.fill(slots)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(bench.options.rounds):
        first = number % len(ways)  # what ran just before leaves its mark: no way always follows the same other
        for way in (*ways[first:], *ways[:first]):
            runs[way].append(bench.time(way, template))
            print(f"  round {number + 1}: {way} {runs[way][-1]['total']:.2f} s", file=sys.stderr, flush=True)
    return runs


def summarize(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return medians of each phase, extremes of the total, and the ratio of full to each way, round by round."""
    summary = {}
    for way, rounds in runs.items():
        totals = [each["total"] for each in rounds]
        ratios = [full["total"] / own for full, own in zip(runs[FULL], totals, strict=True)]
        summary[way] = {
            **{phase: statistics.median(each[phase] for each in rounds) for phase in (*PHASES, "cpu")},
            "min": min(totals),
            "max": max(totals),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "ratio_cpu": statistics.median(f["cpu"] / own["cpu"] for f, own in zip(runs[FULL], rounds, strict=True)),
        }
    return summary


def compare(bench: Bench) -> dict[str, Any]:
    options = bench.options
    ways = [FULL, *(way for way in FILTERS if not options.filters or way.split(",")[0] in options.filters)]
    runs = measure(bench, ways, options.slots)
    summary = summarize(runs)
    print(
        f"{f'{options.batch} x {options.slots} slots, keep {options.keep:g}':<28}{'hand-over':>11}{'read':>9}"
        f"{'write':>9}{'total':>9}{'min':>9}{'max':>9}{'full/it':>10}{'min':>8}{'max':>8}"
        f"{'cpu':>10}{'full/it':>10}"
    )
    for way, row in summary.items():
        print(
            f"{way:<28}{row['handover']:>9.3f} s{row['read']:>7.3f} s{row['write']:>7.3f} s{row['total']:>7.3f} s"
            f"{row['min']:>7.3f} s{row['max']:>7.3f} s{row['ratio']:>9.2f}x{row['ratio_min']:>7.2f}x"
            f"{row['ratio_max']:>7.2f}x{row['cpu']:>8.3f} s{row['ratio_cpu']:>9.2f}x"
        )
    return {"summary": summary, "rounds": runs}


def break_even(bench: Bench) -> dict[str, Any]:
    options = bench.options
    print(
        f"{f'{options.batch} rows, keep {options.keep:g}':<28}{'full':>11}{'receiver':>11}{'hand-over':>11}"
        f"{'full/it':>10}{'min':>8}{'max':>8}{'of cpu':>10}"
    )
    summaries: dict[int, dict[str, dict[str, float]]] = {}
    for slots in LENGTHS:
        summaries[slots] = summarize(measure(bench, (FULL, RECEIVER), slots))
        full, own = summaries[slots][FULL], summaries[slots][RECEIVER]
        print(
            f"{f'{slots} slots':<28}{full['total']:>9.3f} s{own['total']:>9.3f} s{own['handover']:>9.3f} s"
            f"{own['ratio']:>9.2f}x{own['ratio_min']:>7.2f}x{own['ratio_max']:>7.2f}x{own['ratio_cpu']:>9.2f}x",
            flush=True,
        )
    pays = crossing([(slots, summary[RECEIVER]["ratio"]) for slots, summary in summaries.items()])
    print(f"{'it pays from':<28}{f'{pays:.0f} slots on' if pays else 'no length measured here'}")
    return {"lengths": summaries, "break_even": pays}


def crossing(points: Sequence[tuple[int, float]]) -> float | None:
    """Return the length from which the ratio stays at 1 or above, interpolated; None where it ends below."""
    if points[-1][1] < 1:
        return None
    for (shorter, below), (longer, above) in reversed(list(pairwise(points))):
        if below < 1:
            return shorter + (longer - shorter) * (1 - below) / (above - below)
    return float(points[0][0])


class Peak:
    """The largest resident memory while a block runs, looked at every millisecond."""

    def __enter__(self) -> Peak:
        self.bytes, self._done = resident(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.001):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def show_memory(bench: Bench) -> dict[str, Any]:
    """Print what one hand-over gives back to the system."""
    options, results = bench.options, {}
    bench.time(RECEIVER, bench.fill(CHUNK))
    print(
        f"{f'{options.batch} x {options.slots} slots, keep {options.keep:g}':<28}{'before':>12}"
        f"{'peak':>12}{'after':>12}{'given back':>12}"
    )
    for way in (way for way in FILTERS if not options.filters or way.split(",")[0] in options.filters):
        _settle()
        empty = resident()
        rollout = bench.rollout(way, bench.fill(options.slots))
        _settle()
        before, stored_before = resident(), rollout.memory.storage_bytes
        with Peak() as peak, torch.inference_mode():
            rollout.step(1, last=False)
        gc.collect()
        untrimmed = resident()
        _settle()
        after, stored_after = resident(), rollout.memory.storage_bytes
        rows = {
            "memory": (stored_before, None, stored_after, stored_before),
            "resident": (before - empty, peak.bytes - empty, untrimmed - empty, stored_before),
            "resident, trimmed": (before - empty, peak.bytes - empty, after - empty, stored_before),
        }
        print(way)
        for label, (old, high, new, whole) in rows.items():
            print(
                f"  {label:<26}{old / MIB:>8.0f} MiB{f'{high / MIB:.0f} MiB' if high else '':>12}{new / MIB:>8.0f} MiB"
                f"{(old - new) / MIB:>8.0f} MiB{100 * (old - new) / whole:>7.1f} %",
                flush=True,
            )
        results[way] = {
            label: {"before": old, "peak": high, "after": new} for label, (old, high, new, _) in rows.items()
        }
        del rollout
    return results


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _settle() -> None:
    """Drop what nobody holds, and let the allocator give free pages back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted({name for name, _ in FILTERS.values()})
    parser.add_argument("--slots", type=int, default=8000, help="of each row's memory (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="rows (default: %(default)s)")
    parser.add_argument("--keep", type=float, default=0.6, help="share of the slots (default: %(default)s)")
    parser.add_argument("--filters", nargs="+", choices=names, help="beside full (default: all)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens the next agent reads (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens it writes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed ones, in turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: one per core)")
    parser.add_argument(
        "--break_even", action="store_true", help=f"receiver, memories of {LENGTHS[0]} to {LENGTHS[-1]}"
    )
    parser.add_argument("--memory", action="store_true", help="resident memory instead of seconds")
    parser.add_argument("--seed", type=int, default=0, help="of weights, memory and prompts (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=UserWarning, module="transformers")
    options.device = "cpu"
    facts = machine(options)
    shape = SHAPES[SHAPE]
    slot = 2 * 4 * shape.layers * shape.kv_heads * shape.head_width
    print(
        f"Qwen3, random weights: {shape.layers} layers, {shape.hidden} wide, {shape.heads} query and {shape.kv_heads} "
        f"key/value heads of {shape.head_width}, feed-forward {shape.feed_forward}, vocabulary {shape.vocabulary} "
        f"(untied)\nrandom keys and values, {slot} bytes per slot, {options.batch * options.slots * slot / 1e9:.2f} GB "
        f"in {options.batch} rows of {options.slots}; reads {options.prompt}, writes {options.tokens} tokens\n"
        f"float32, sdpa, greedy; {facts['device']}, {facts['threads']} thread(s) of {facts['cores']} cores, load "
        f"{facts['load_average']}\nPython {facts['python']}, torch {facts['torch']}, transformers "
        f"{facts['transformers']}, commit {facts['commit']}\n",
        flush=True,
    )
    bench = Bench(options)
    parts: dict[str, Any] = {}
    if options.memory:
        parts["memory"] = show_memory(bench)
    if options.break_even:
        parts["break_even"] = break_even(bench)
    if not parts:
        parts["filters"] = compare(bench)
    if options.json:
        before = json.loads(options.json.read_text())["results"] if options.json.exists() else {}
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "device")}
        document = {
            "results": {**before, **{k: {"machine": facts, "options": settings, **v} for k, v in parts.items()}}
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
