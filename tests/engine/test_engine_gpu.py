"""The same on a GPU: the V2 runner with its kernels compiled, torch.compile and CUDA graphs, as people run it.

Run it where vLLM for CUDA is installed: ``pytest -m "vllm and gpu" tests/engine -n0``.
"""

from __future__ import annotations

from typing import Any

import pytest

from contracts.laws import chain, prompts
from engine.conftest import Bench, Model

pytestmark = [pytest.mark.vllm, pytest.mark.gpu, pytest.mark.filterwarnings("default")]

ON_A_GPU = {"distributed_executor_backend": None, "enforce_eager": False}


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
@pytest.mark.parametrize("model", [Model(realign=True), Model(kind="gemma", tied=True)], ids=str)
def test_a_gpu_writes_what_the_oracle_writes(bench: Bench, report: Any, model: Model, eager: bool) -> None:
    rows = [row for thoughts in (0, 1, 5, 20) for row in bench.rows(model, thoughts)]
    options = {**ON_A_GPU, "enforce_eager": eager, "enable_prefix_caching": True}
    with bench.engine(model, **options) as backend:
        assert backend.environment()["model_runner"] == "V2"
        for _ in range(2):  # cold, then warm
            got = [completion.steps[-1].written for completion in backend.run([row.program for row in rows])]
            wrong = [number for number, row in enumerate(rows) if row.sane and got[number] != row.oracle]
            report(f"{len(wrong)} of {sum(row.sane for row in rows)} sane rows differ")
            assert wrong == []


def test_batches_of_every_size_replay_their_graphs_right(bench: Bench) -> None:
    """One request more at a time: graphs are captured for some sizes, and padded for the others."""
    model = Model(realign=True)
    rows = [*bench.rows(model, 20), *bench.rows(model, 5)]
    with bench.engine(model, **ON_A_GPU) as backend:
        for size in range(1, len(rows) + 1):
            got = [completion.steps[-1].written for completion in backend.run([row.program for row in rows[:size]])]
            assert [number for number, row in enumerate(rows[:size]) if row.sane and got[number] != row.oracle] == []


def test_half_precision_runs_and_repeats_itself(bench: Bench) -> None:
    programs = [chain(prompts(row), thoughts=20) for row in range(6)]
    with bench.engine(Model(realign=True), dtype="bfloat16", **ON_A_GPU) as backend:
        once, again = (backend.run(programs) for _ in range(2))
    assert once == again
