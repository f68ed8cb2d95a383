"""vLLM beside transformers on real weights: the same tokens in float32, and a reason for every row that differs."""

from __future__ import annotations

import os

# Before vLLM is imported anywhere.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from latentmas.program import Program
from real.conftest import Real, differing, solve, written

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.filterwarnings("default")]

ENGINE = '{"enforce_eager": true, "kv_cache_memory_bytes": 402653184, "distributed_executor_backend": "uni"}'
METHODS = [
    {"method": "baseline"},
    {"method": "latent_mas", "latent_steps": 5},
    {"method": "text_mas", "max_new_tokens": 16},
]
CLOSE = 1e-2
"""Largest gap between the two best logits that rounding in float32 may turn round, thoughts included."""


@contextmanager
def engine(real: Real, thinks: bool) -> Iterator[Any]:
    from latentmas.experiment import engines

    config = real.config(use_vllm=True, dtype="float32", max_model_len=4096, device="auto", vllm_options=ENGINE)
    backend = engines.open_vllm(config, real.codec, thinks=thinks)
    try:
        yield backend
    finally:
        backend.close()


@pytest.mark.parametrize("options", METHODS, ids=[str(options["method"]) for options in METHODS])
def test_vllm_writes_what_transformers_writes_for_nineteen_of_twenty_questions(
    real: Real, report: Any, options: dict[str, Any]
) -> None:
    samples = real.questions
    method = real.method(**options)
    transformers = real.backend()
    transformers.batch_size = 10
    reference = solve(transformers, method, samples)
    with engine(real, thinks=options["method"] == "latent_mas") as backend:
        found = solve(backend, method, samples)
    expected, got = [written(each) for each in reference], [written(each) for each in found]
    assert len(set(expected)) > len(samples) // 2, "questions must lead to different answers"
    apart = differing(expected, got)
    report(f"{len(samples) - len(apart)} of {len(samples)} rows equal")
    gaps = []
    for row in apart:
        agent = differing(expected[row], got[row])[0]
        place = differing_place(expected[row][agent], got[row][agent])
        gaps.append(gap(real, reference[row][agent][0], place))
        report(f"row {row}: agent {agent} differs at token {place}, where the two best logits are {gaps[-1]:.1e} apart")
    assert all(each < CLOSE for each in gaps), "where tokens differ, rounding must have decided"
    assert len(apart) <= len(samples) // 20


def differing_place(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of the first token in which two texts differ; where one goes on, the end of the shorter."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))


def gap(real: Real, program: Program, place: int) -> float:
    """Return how far apart transformers sees the two best tokens at a place of the text a program writes."""
    from latentmas.backends.hf.load import LoadedModel

    backend, seen, honest = real.backend(), [], LoadedModel.logits

    def watched(self: Any, hidden: Any) -> Any:
        logits = honest(self, hidden)
        seen.append(logits[0].float().topk(2).values)
        return logits

    LoadedModel.logits = watched  # type: ignore[method-assign]
    try:
        backend.run([program])
    finally:
        LoadedModel.logits = honest  # type: ignore[method-assign]
    best, second = seen[place].tolist()
    return float(best - second)


def test_thoughts_of_vllm_are_those_of_transformers_when_they_come_in_any_company(real: Real) -> None:
    method = real.method(method="latent_mas", latent_steps=5)
    few = real.questions[:4]
    with engine(real, thinks=True) as backend:
        together = [written(each) for each in solve(backend, method, few)]
        alone = [written(each) for sample in few[:2] for each in solve(backend, method, [sample])]
    assert alone == together[:2]
