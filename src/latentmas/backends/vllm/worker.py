"""The worker of an engine that thinks. With the V2 model runner it only reports; the V1 runner needs its help."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from vllm.platforms import current_platform

from latentmas.backends.vllm.settings import LatentSettings
from latentmas.backends.vllm.thoughts import Chunks, Thoughts, check_chunk
from latentmas.errors import CapabilityError


def _stock_worker() -> type[Any]:
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        return CPUWorker
    if current_platform.is_cuda_alike():
        from vllm.v1.worker.gpu_worker import Worker

        return Worker
    raise CapabilityError(
        f"latent thoughts run on vLLM for CUDA, ROCm and CPUs, not for {current_platform.device_name}; "
        "leave --use_vllm out to use transformers"
    )


class LatentWorker(_stock_worker()):  # type: ignore[misc]
    """vLLM's worker for this platform, with three methods more."""

    _watch: _BatchWatch | None = None

    def load_model(self, *args: Any, **options: Any) -> None:
        super().load_model(*args, **options)
        runner = self.model_runner
        if not self.vllm_config.use_v2_model_runner:
            self._watch = _BatchWatch(runner, LatentSettings.of(self.vllm_config), runner.get_model().open_thoughts())
            runner._model_forward = partial(_forward, self._watch, runner._model_forward)

    def execute_model(self, scheduler_output: Any, *args: Any, **options: Any) -> Any:
        if self._watch is not None:
            self._watch.forget({*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())})
        return super().execute_model(scheduler_output, *args, **options)

    def latentmas_report(self) -> dict[str, Any]:
        """Return what a manifest must know of this worker."""
        runner = "V2" if self.vllm_config.use_v2_model_runner else "V1"
        return {"runner": runner, "checkpoint": list(getattr(self.model_runner.get_model(), "checkpoint", ()))}

    def latentmas_thinking(self, wanted: list[Any]) -> list[Any]:
        """Return how the thoughts of requests changed; see `Recorder.take`."""
        recorder = self.model_runner.get_model().thoughts.recorder
        return [] if recorder is None else recorder.take(wanted)


def _forward(watch: _BatchWatch, forward: Any, *args: Any, **options: Any) -> Any:
    """Stand before the V1 runner's ``_model_forward``, which it calls for real steps only."""
    watch.begin()
    return forward(*args, **options)


class _BatchWatch:
    """Reads the V1 runner's batch before each step. Its rows move, so slots go by the name of the request."""

    def __init__(self, runner: Any, settings: LatentSettings, thoughts: Thoughts) -> None:
        self._runner = runner
        self._placeholder = settings.placeholder
        self._thoughts = thoughts
        self._slots: dict[str, int] = {}
        self._free = list(range(runner.max_num_reqs))

    def forget(self, names: Iterable[str]) -> None:
        """Take back the slots of requests that ended or start anew; one that only waits a step keeps its own."""
        self._free += [self._slots.pop(name) for name in names if name in self._slots]

    def begin(self) -> None:
        """Say what the step that was prepared runs."""
        batch, count = self._runner.input_batch, self._runner.input_batch.num_reqs
        names = batch.req_ids[:count]
        for name in names:
            if name not in self._slots:
                self._slots[name] = self._free.pop()
        self._spare_generators(names)
        starts = self._runner.query_start_loc.np[: count + 1].astype(np.int64)
        position = batch.num_computed_tokens_cpu[:count].astype(np.int64)
        after = position + np.diff(starts)
        for row in np.flatnonzero(np.diff(starts) > 1):
            prompt = batch.token_ids_cpu[row, : batch.num_prompt_tokens[row]]
            check_chunk(prompt == self._placeholder, position[row], after[row])
        self._thoughts.begin(
            Chunks(
                slot=np.array([self._slots[name] for name in names], dtype=np.int64),
                row=starts[:-1],
                last=np.arange(count, dtype=np.int64),
                begins=self._is_thought(position),
                ends=self._is_thought(after),
                position=after,
                names=names,
            )
        )

    def _is_thought(self, position: Any) -> Any:
        batch, count = self._runner.input_batch, len(position)
        inside = (position > 0) & (position < batch.num_prompt_tokens[:count])
        tokens = batch.token_ids_cpu[np.arange(count), np.where(inside, position, 0)]
        return inside & (tokens == self._placeholder)

    def _spare_generators(self, names: list[str]) -> None:
        """Let steps whose sample is thrown away take nothing from a request's own random numbers.

        The runner would turn the generator back afterwards, which generators of a CPU cannot.
        """
        runner = self._runner
        thrown_away = runner.discard_request_mask.np
        generators = runner.input_batch.generators
        generators.clear()
        for row, name in enumerate(names):
            generator = runner.requests[name].generator
            if generator is not None and not thrown_away[row]:
                generators[row] = generator
