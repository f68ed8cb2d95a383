"""Real vLLM engines on tiny models, in the test's own process unless a test wants otherwise.

Run these in vLLM's own environment with ``make test-vllm``: once with the V1 model runner, which is what vLLM has for a
CPU, and once with the V2 runner, which is what GPUs run, its Triton kernels interpreted.
"""

from __future__ import annotations

import os

# Before vLLM is imported anywhere.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from contracts.laws import Prompts, chain, prompts
from latentmas.program import Program

PLACEHOLDER = 271
VOCABULARY = 272
BLOCK = 32
CONTEXT = 1024
NEW_TOKENS = 16
# On a GPU it is the V2 runner in any case; the tests there say so themselves.
RUNNER = "V2" if os.environ.get("TRITON_INTERPRET") == "1" else "V1"
# vLLM's attention on a CPU wants heads of 32 at least.
SIZES = {"hidden_size": 128, "head_dim": 32, "vocab_size": VOCABULARY}
ENGINE = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 32 << 20,
    "distributed_executor_backend": "uni",
    "block_size": BLOCK,
    "disable_log_stats": False,
}


@dataclass(frozen=True)
class Model:
    """One of the tiny models: which, and how it thinks."""

    kind: str = "qwen3"
    tied: bool = False
    realign: bool = False


@dataclass(frozen=True)
class Row:
    """One team on one question, and what it must write.

    Attributes:
        sane: float32 and float64 agree on every thought to 1e-4; rounding decides nothing.
    """

    program: Program
    transformers: tuple[int, ...]
    oracle: tuple[int, ...]
    sane: bool


def sizes(model: Model) -> dict[str, Any]:
    """Return the shape of a model. Gemma is always tied in vLLM, and tame only with weaker layers."""
    return {**SIZES, **({"spread": 0.09} if model.kind == "gemma" else {})}


class Bench:
    """Models as folders, engines on them, and what transformers and the oracle say."""

    def __init__(self, tiny: Any, folder: Path) -> None:
        self.tiny = tiny
        self._folder = folder
        self._rows: dict[object, list[Row]] = {}

    def path(self, model: Model, poison: int | None = None) -> Path:
        """Return the folder of a model; reading the token `poison` gives NaN."""
        import torch

        path = self._folder / f"{model.kind}-{model.tied}-{poison}"
        if not path.exists():
            causal = deepcopy(self.causal(model, torch.float32))
            if poison is not None:
                causal.get_input_embeddings().weight[poison] = float("nan")
            causal.save_pretrained(path)
            self.tiny.tokenizer.save_pretrained(path)
        return path

    def causal(self, model: Model, dtype: Any) -> Any:
        return self.tiny.causal(model.kind, tied=model.tied, dtype=dtype, **sizes(model))

    def transformers(self, model: Model, dtype: Any, **options: Any) -> Any:
        more = {**sizes(model), **options}
        return self.tiny.backend(model.kind, tied=model.tied, realign=model.realign, dtype=dtype, **more)

    def options(self, model: Model, *, latent: Any = True, poison: int | None = None, **more: Any) -> Any:
        """Return `EngineOptions` for a model; `latent` is its settings, or whether to have the usual ones."""
        from latentmas.backends.vllm.engine import EngineOptions
        from latentmas.backends.vllm.settings import LatentSettings

        alignment = "ridge" if model.realign else "norm"
        settings = LatentSettings(placeholder=PLACEHOLDER, alignment=alignment, measures=True)
        named = {name: more.pop(name) for name in list(more) if name in EngineOptions.__slots__}
        return EngineOptions(
            **{
                "model": str(self.path(model, poison)),
                "architecture": type(self.causal(model, None)).__name__,
                "latent": settings if latent is True else latent or None,
                "stop_tokens": self.tiny.ends,
                "dtype": "float32",
                "max_model_len": CONTEXT,
                "max_num_seqs": 16,
                "more": {name: value for name, value in {**ENGINE, **more}.items() if value is not None},
                **named,
            }
        )

    @contextmanager
    def engine(self, model: Model, **options: Any) -> Iterator[Any]:
        """Open a `VLLMBackend`; its engine is ended afterwards."""
        from latentmas.backends.hf.chat import ChatCodec
        from latentmas.backends.vllm.backend import VLLMBackend
        from latentmas.backends.vllm.engine import VLLMEngine

        chosen = self.options(model, **options)
        backend = VLLMBackend(
            lambda: VLLMEngine(chosen),
            ChatCodec(self.tiny.tokenizer),
            placeholder=PLACEHOLDER if chosen.latent else None,
            model_id="tiny-random",
        )
        try:
            if backend.environment()["device"] == "cpu":
                assert backend.environment()["model_runner"] in (RUNNER, None)
            yield backend
        finally:
            backend.close()

    def rows(self, model: Model, thoughts: int, count: int = 6) -> list[Row]:
        """Return rows with unlike prompts, and what they must write."""
        key = (model, thoughts, count)
        if key not in self._rows:
            said = [prompts(seed, shortest=3) for seed in range(count)]
            self._rows[key] = self._expect(model, thoughts, said)
        return self._rows[key]

    def _expect(self, model: Model, thoughts: int, said: Sequence[Prompts]) -> list[Row]:
        import torch

        from parity.oracle import Oracle

        oracle = Oracle(self.causal(model, torch.float64))
        programs = [chain(row, thoughts=thoughts, write=NEW_TOKENS) for row in said]
        single = self.transformers(model, torch.float32).run(programs)
        rows = []
        for row, program, completion in zip(said, programs, single, strict=True):
            expected = oracle.chain(
                row, thoughts=thoughts, realign=model.realign, max_new_tokens=NEW_TOKENS, end=self.tiny.ends
            )
            made = self._thoughts(model, program)
            apart = (made - expected.thoughts).norm(dim=1) / expected.thoughts.norm(dim=1)
            sane = bool((apart <= 1e-4).all())
            rows.append(
                Row(program=program, transformers=completion.steps[-1].written, oracle=expected.written, sane=sane)
            )
        return rows

    def _thoughts(self, model: Model, program: Program) -> Any:
        """Return ``[thoughts, E]`` of a program in float32."""
        import torch

        from latentmas.backends.hf.rollout import Rollout
        from latentmas.backends.hf.rollout import Row as Running

        backend = self.transformers(model, torch.float32)
        made = []

        class Recording:
            norm = backend.alignment.norm

            def __call__(self, hidden: Any) -> Any:
                made.append(backend.alignment(hidden))
                return made[-1]

        Rollout(backend.model, Recording(), [Running(program=program, seed=0)]).run()
        return torch.cat(made).double() if made else torch.zeros(0, 1)


@pytest.fixture(scope="session")
def bench(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tiny, tmp_path_factory.mktemp("engine-models"))


@pytest.fixture
def report(capfd: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure that a person should see."""

    def say(sentence: str) -> None:
        with capfd.disabled():
            print(f" [{sentence}] ", end="", flush=True)

    return say


class Watch:
    """Counts what an engine in this process does."""

    def __init__(self, backend: Any) -> None:
        self.positions = self.preemptions = 0
        scheduler = self.scheduler = backend._engine._engine.engine_core.engine_core.scheduler
        schedule, preempt = scheduler.schedule, scheduler._preempt_request

        def counted(*args: Any, **options: Any) -> Any:
            output = schedule(*args, **options)
            self.positions += output.total_num_scheduled_tokens
            return output

        def preempted(*args: Any, **options: Any) -> Any:
            self.preemptions += 1
            return preempt(*args, **options)

        scheduler.schedule, scheduler._preempt_request = counted, preempted

    @cached_property
    def name(self) -> str:
        return type(self.scheduler).__name__
