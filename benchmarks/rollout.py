"""Cost of a latent team on this package beside the published way of running it, on a model with random weights.

    python benchmarks/rollout.py                                     # 12 layers, 512 wide, CPU, about 4 minutes
    python benchmarks/rollout.py --device cuda --dtype bfloat16 --shape qwen3-4b --batch 1 8 20
    python benchmarks/rollout.py --batch 8 --vocabulary 32000 --ragged --json out.json

Both sides run in one process, in turns, on the same weights and prompts; the medians are printed. First each side
runs in a process of its own, which gives its peak memory and its tokens: where they are not equal, nothing is timed
and the exit code is 1. A chain of agents: each reads a prompt and thinks, the last reads and writes greedy tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from published import run_published
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from latentmas.alignment import AlignmentKind, build_alignment
from latentmas.backends.hf.backend import HFBackend
from latentmas.backends.hf.chat import ChatCodec
from latentmas.backends.hf.load import describe_model
from latentmas.program import Handover, Program, Read, Think, Write

PHASES = ("prefill", "think", "decode")
VERBS = {"Read": "prefill", "Think": "think", "Write": "decode"}
SIDES = ("published", "ours")
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Size of a Qwen3 model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int = 151936
    tied: bool = True


SHAPES = {
    "small": Shape(layers=12, hidden=512, heads=8, kv_heads=4, head_width=64, feed_forward=1536),
    "qwen3-0.6b": Shape(layers=28, hidden=1024, heads=16, kv_heads=8, head_width=128, feed_forward=3072),
    "qwen3-4b": Shape(layers=36, hidden=2560, heads=32, kv_heads=8, head_width=128, feed_forward=9728),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one side: its tokens per row, and seconds per phase and in total."""

    tokens: list[list[int]]
    seconds: dict[str, float]


class NoTokenizer:
    """Stands in for a tokenizer; the benchmark never looks at text."""

    eos_token_id = None
    chat_template = None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


class Bench:
    """A model with both ways of running it.

    Args:
        dtype: Instead of the one asked for.
    """

    def __init__(self, options: argparse.Namespace, dtype: str | None = None) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.model = build_model(options, dtype or options.dtype)
        described = describe_model(self.model, NoTokenizer(), "sdpa")
        self.alignment = build_alignment(AlignmentKind.NORM, described.space())
        self.described = described

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, side: str, batch: int, ragged: bool) -> Result:
        """Run one side on the prompts of this batch size."""
        prompts = make_prompts(self.options, batch, ragged)
        self.synchronize()
        began = time.perf_counter()
        tokens, seconds = self._published(prompts) if side == "published" else self._ours(prompts)
        self.synchronize()
        return Result(tokens, {**seconds, "total": time.perf_counter() - began})

    def warm_up(self, side: str, batch: int) -> None:
        """Run one side on a few tokens."""
        full = self.options
        self.options = argparse.Namespace(**{**vars(full), "prompt": 16, "thoughts": 2, "new_tokens": 2})
        self.run(side, batch, ragged=False)
        self.options = full

    def _published(self, prompts: list[list[tuple[int, ...]]]) -> tuple[list[list[int]], dict[str, float]]:
        run = run_published(
            self.model,
            prompts,
            thoughts=self.options.thoughts,
            new_tokens=self.options.new_tokens,
            synchronize=self.synchronize,
        )
        return run.tokens, run.seconds

    def _ours(self, prompts: list[list[tuple[int, ...]]]) -> tuple[list[list[int]], dict[str, float]]:
        backend = HFBackend(self.described, ChatCodec(NoTokenizer()), self.alignment, batch_size=len(prompts[0]))
        completions = backend.run([self._program(row) for row in zip(*prompts, strict=True)])
        seconds = dict.fromkeys(PHASES, 0.0)
        for completion in completions:
            for step in completion.steps:
                if step.verb in VERBS:
                    seconds[VERBS[step.verb]] += step.seconds  # each row carries its share of the batch
        return [list(completion.steps[-1].written) for completion in completions], seconds

    def _program(self, prompts: Sequence[tuple[int, ...]]) -> Program:
        steps: list[Read | Think | Handover | Write] = []
        for number, tokens in enumerate(prompts, start=1):
            agent = f"agent{number}"
            steps.append(Read(agent=agent, tokens=tokens))
            if number < len(prompts):
                steps += [Think(agent=agent, steps=self.options.thoughts), Handover(agent=agent)]
            else:
                steps.append(Write(agent=agent, max_new_tokens=self.options.new_tokens))
        return Program(tuple(steps))


def build_model(options: argparse.Namespace, dtype: str) -> Any:
    """Return the model in eval mode, with weights that depend on `--seed` and the shape only."""
    shape = SHAPES[options.shape]
    config = Qwen3Config(
        vocab_size=options.vocabulary or shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=40960,
        tie_word_embeddings=shape.tied and not options.untied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(options.seed)
    with torch.device(options.device):
        model = Qwen3ForCausalLM._from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def make_prompts(options: argparse.Namespace, batch: int, ragged: bool) -> list[list[tuple[int, ...]]]:
    """Return the prompt tokens of each row, for each agent; with `ragged` from 2/3 to 4/3 of the length."""
    vocabulary = options.vocabulary or SHAPES[options.shape].vocabulary
    chance = random.Random(options.seed)
    low, high = (options.prompt * 2 // 3, options.prompt * 4 // 3) if ragged else (options.prompt, options.prompt)
    return [
        [tuple(chance.randrange(1, vocabulary) for _ in range(chance.randint(low, high))) for _ in range(batch)]
        for _ in range(options.agents)
    ]


def run_alone(options: argparse.Namespace) -> None:
    """Run one side once, in this process; print its tokens and how much memory it took beyond the weights."""
    bench = Bench(options)
    (batch,) = options.batch
    before = _memory(bench.device, reset=True)
    result = bench.run(options.side, batch, options.ragged)
    print(json.dumps({"tokens": result.tokens, "bytes": _memory(bench.device) - before}))


def ask(options: argparse.Namespace, batch: int, *, dtype: str, ragged: bool) -> dict[str, dict[str, Any]]:
    """Run each side in a process of its own; return their tokens and their memory in bytes."""
    running = {side: _start(options, side, batch, dtype, ragged) for side in SIDES}
    answers: dict[str, dict[str, Any]] = {}
    for side, process in running.items():
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"the run of {side} at batch {batch} failed with exit code {process.returncode}")
        answers[side] = json.loads(output.splitlines()[-1])
    return answers


def _start(options: argparse.Namespace, side: str, batch: int, dtype: str, ragged: bool) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--side", side, "--batch", str(batch), "--dtype", dtype]
    for name in ("device", "shape", "vocabulary", "agents", "prompt", "thoughts", "new_tokens", "seed", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += ["--untied"] * options.untied + ["--ragged"] * ragged
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def check(options: argparse.Namespace, batch: int) -> dict[str, int]:
    """Compare the tokens of both sides on prompts of equal length; return the peak memory of each.

    In float32 even where less is asked for: rounding in bfloat16 is another token every few rows on any code.
    """
    exact = options.dtype if options.dtype in ("float32", "float64") else "float32"
    answers = ask(options, batch, dtype=exact, ragged=False)
    pairs = list(zip(*(answers[side]["tokens"] for side in SIDES), strict=True))
    equal = sum(theirs == ours for theirs, ours in pairs)
    print(
        f"batch {batch}: tokens of {equal} of {batch} rows are equal on both sides ({exact}, prompts of one length)",
        flush=True,
    )
    if equal < batch:
        row, (theirs, ours) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
        sys.exit(f"row {row} differs, so nothing is timed:\n  published {theirs}\n  ours      {ours}")
    if exact != options.dtype or options.ragged:
        answers = ask(options, batch, dtype=options.dtype, ragged=options.ragged)
    return {side: answers[side]["bytes"] for side in SIDES}


def measure(bench: Bench, batch: int) -> dict[str, Any]:
    """Time both sides in turns; return the medians and all repeats."""
    options = bench.options
    for side in SIDES:  # the first run pays for kernels, threads and the allocator
        if bench.device.type == "cpu":
            bench.warm_up(side, batch)
        else:
            bench.run(side, batch, options.ragged)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats):
        for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
            runs[side].append(bench.run(side, batch, options.ragged).seconds)
    medians = {
        side: {phase: statistics.median(run[phase] for run in runs[side]) for phase in (*PHASES, "total")}
        for side in SIDES
    }
    return {"seconds": medians, "repeats": runs}


def table(options: argparse.Namespace, batch: int, result: dict[str, Any]) -> str:
    """Return the figures of one batch size, for a person."""
    passes = {
        "prefill": (f"{options.agents} x {options.prompt} tokens", options.agents * options.prompt),
        "think": (f"{options.agents - 1} x {options.thoughts} thoughts", (options.agents - 1) * options.thoughts),
        "decode": (f"{options.new_tokens} tokens", options.new_tokens),
    }
    lines = [f"{f'batch {batch}':<28}{'published':>12}{'ours':>12}{'ratio':>9}{'published':>14}{'ours':>12}"]
    for phase in (*PHASES, "total"):
        theirs, ours = (result["seconds"][side][phase] for side in SIDES)
        line = f"{theirs:>10.3f} s{ours:>10.3f} s{theirs / ours:>8.2f}x" if ours else ""
        label = phase
        if phase in passes:
            what, amount = passes[phase]
            label = f"  {phase:<8}{what}"
            line += "".join(
                f"{batch * amount / seconds:>{width}.0f}/s" for seconds, width in ((theirs, 12), (ours, 10)) if seconds
            )
        lines.append(f"{label:<28}{line}")
    theirs, ours = (result["memory_bytes"][side] / MIB for side in SIDES)
    lines.append(f"{'peak memory above weights':<28}{theirs:>8.0f} MiB{ours:>8.0f} MiB{theirs / ours:>8.2f}x")
    return "\n".join(lines)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return what somebody needs to repeat the figures."""
    device = torch.device(options.device)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """Return the commit, with ``+`` where files differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def _memory(device: torch.device, *, reset: bool = False) -> int:
    """Return the peak memory in bytes; with `reset` start a new peak first.

    On Linux the peak of resident memory can be reset, after memory that was freed went back to the system; elsewhere
    the peak covers the building of the model too, and the growth beyond it is shown.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if reset:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def parse() -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="rows of a batch (default: 1 8)")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="size of the model (default: small)")
    parser.add_argument("--vocabulary", type=int, default=0, help="tokens; 0 is the shape's own, 151936 (default)")
    parser.add_argument("--untied", action="store_true", help="LM head and embedding are two matrices")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:0 ... (default: cpu)")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--agents", type=int, default=4, help="the last one writes (default: 4)")
    parser.add_argument("--prompt", type=int, default=150, help="tokens each agent reads (default: 150)")
    parser.add_argument("--ragged", action="store_true", help="time prompts of 2/3 to 4/3 of that length instead")
    parser.add_argument("--thoughts", type=int, default=20, help="m, of each agent but the last (default: 20)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens the last agent writes (default: 64)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=UserWarning, module="transformers")
    if options.side:
        run_alone(options)
        return
    facts = machine(options)
    shape = SHAPES[options.shape]
    vocabulary = options.vocabulary or shape.vocabulary
    tied = "untied" if options.untied or not shape.tied else "tied"
    print(
        f"Qwen3, random weights: {shape.layers} layers, {shape.hidden} wide, {shape.heads} query and {shape.kv_heads} "
        f"key/value heads of {shape.head_width}, feed-forward {shape.feed_forward}, vocabulary {vocabulary} ({tied})\n"
        f"{options.dtype}, sdpa, greedy; {facts['device']}, {facts['threads']} thread(s) of {facts['cores']} cores, "
        f"load {facts['load_average']}\nPython {facts['python']}, torch {facts['torch']}, transformers "
        f"{facts['transformers']}, commit {facts['commit']}\n"
    )
    memory = {batch: check(options, batch) for batch in options.batch}
    bench = Bench(options)
    results = {}
    for batch in options.batch:
        results[batch] = {**measure(bench, batch), "memory_bytes": memory[batch]}
        print(f"\n{table(options, batch, results[batch])}", flush=True)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "side")}
        document = {"machine": facts, "options": settings, "results": results}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
