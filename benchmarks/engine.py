"""vLLM with thoughts beside our transformers backend: the same questions, the same tokens, in turns.

    make benchmark-vllm
    python benchmarks/engine.py --questions 64 --rounds 3 --json out.json

Both sides run the team of four on the embedded model, greedily, in float32 on one thread each. The transformers
backend runs at every batch size asked for, and its best one counts. What is written must be equal, or nothing is timed.
Starting and loading are not timed; the first round of each side is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# One thread each, and no message of vLLM's between the figures; before anything is imported that reads them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if options.separate else "0"
    import torch

    torch.set_num_threads(1)
    questions = make_questions(options.questions)
    sides = open_sides(options)
    texts = {name: [record.text for record in side.ask_all(questions)] for name, side in sides.items()}
    first = next(iter(texts.values()))
    if unlike := [name for name, given in texts.items() if given != first]:
        same = {name: sum(a == b for a, b in zip(texts[name], first, strict=True)) for name in unlike}
        print(f"the sides do not write the same, nothing is timed: {same} of {len(first)} equal", file=sys.stderr)
        return 1
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens = dict.fromkeys(sides, 0)
    for _ in range(options.rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            records = side.ask_all(questions)
            seconds[name].append(time.perf_counter() - began)
            tokens[name] = sum(agent.written_tokens + agent.thoughts for record in records for agent in record.agents)
    for side in sides.values():
        side.close()
    show(options, seconds, tokens)
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64, help="asked at once (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 32, 64], help="of the transformers backend")
    parser.add_argument("--latent_steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="timed ones (default: %(default)s)")
    parser.add_argument("--separate", action="store_true", help="run the engine in a process of its own, as vLLM does")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(words)


def make_questions(count: int) -> list[str]:
    """Return questions of the task, of unlike lengths."""
    from latentmas.experiment.compose import find_task

    task = find_task("tiny")
    rows = iter(task.rows("test"))
    return [task.sample(next(rows), number).question for number in range(count)]


def open_sides(options: argparse.Namespace) -> dict[str, Any]:
    from latentmas import Team

    # No prefix cache: rounds repeat the questions, and what is asked for here is the cost of computing.
    engine = {"kv_cache_memory_bytes": 256 << 20, "enforce_eager": True, "distributed_executor_backend": "uni"}
    sides: dict[str, Any] = {
        f"transformers, batch {size}": Team("tiny", latent_steps=options.latent_steps, generate_bs=size)
        for size in options.batch
    }
    sides["vllm"] = Team(
        "tiny",
        latent_steps=options.latent_steps,
        generate_bs=options.questions,
        use_vllm=True,
        vllm_options=engine,
    )
    return sides


def show(options: argparse.Namespace, seconds: dict[str, list[float]], tokens: dict[str, int]) -> None:
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    best = min((name for name in medians if name.startswith("transformers")), key=medians.__getitem__)
    print(
        f"{options.questions} questions at once, {options.latent_steps} thoughts per agent, median of {options.rounds} "
        f"rounds in turns\n{platform.machine()}, one thread; vLLM {_vllm()}, torch {version('torch')}, "
        f"transformers {version('transformers')}\n"
    )
    print(f"{'':<28}{'seconds':>9}{'min':>9}{'max':>9}{'questions/s':>13}{'tokens/s':>10}{'of best batch':>15}")
    for name, median in medians.items():
        ratio = [b / a for a, b in zip(seconds[name], seconds[best], strict=True)]
        print(
            f"{name:<28}{median:>9.3f}{min(seconds[name]):>9.3f}{max(seconds[name]):>9.3f}"
            f"{options.questions / median:>13.1f}{tokens[name] / median:>10.0f}{statistics.median(ratio):>14.2f}x"
        )
    if options.json:
        document = {
            "questions": options.questions,
            "latent_steps": options.latent_steps,
            "machine": platform.processor() or platform.machine(),
            "versions": {"vllm": _vllm(), **{name: version(name) for name in ("torch", "transformers", "latentmas")}},
            "seconds": seconds,
            "tokens": tokens,
            "best_transformers": best,
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def _vllm() -> str:
    from latentmas.backends.vllm.compatibility import installed

    return installed() or "not installed"


if __name__ == "__main__":
    sys.exit(main())
