"""A run on a vLLM engine in which things go wrong: ``python faulty_run.py FOLDER SAMPLES``.

The engine gives up 3 % of the samples each time it is asked, and dies twice on the way. Said by sample, so that a run
that was killed and goes on meets the same faults.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import wraps
from typing import Any

GIVEN_UP = 0.03
DEATHS = (150, 400)
"""Steps of this process after which the engine dies."""


def is_given_up(tokens: Sequence[int]) -> bool:
    """Decide by the prompt, which the scheduler sees."""
    digest = hashlib.sha256(repr(list(tokens)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < GIVEN_UP


def spoil() -> None:
    """Let vLLM's own scheduler fail, below everything that is ours."""
    from vllm.v1.core.sched.scheduler import Scheduler

    schedule, update = Scheduler.schedule, Scheduler.update_from_output
    steps = 0

    # Wrapped, because the check of what we rely on reads the source of these.
    @wraps(schedule)
    def dying(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps in DEATHS:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return schedule(self, *args, **options)

    @wraps(update)
    def giving_up(self: Any, *args: Any, **options: Any) -> Any:
        for request in self.running:
            if is_given_up(request.prompt_token_ids):
                self.grammar_compile_error_reqs.add(request.request_id)
        return update(self, *args, **options)

    Scheduler.schedule, Scheduler.update_from_output = dying, giving_up


def main(folder: str, samples: str) -> int:
    from latentmas.cli import main as latentmas

    spoil()
    words = ["run", "--method", "latent_mas", "--model_name", "tiny", "--task", "tiny_split", "--temperature", "0"]
    engine = '{"kv_cache_memory_bytes": 60000000, "enforce_eager": true, "distributed_executor_backend": "uni"}'
    return latentmas(
        [
            *words,
            "--use_vllm",
            "--generate_bs",
            "16",
            "--max_samples",
            samples,
            "--output_dir",
            folder,
            "--vllm_options",
            engine,
        ]
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
