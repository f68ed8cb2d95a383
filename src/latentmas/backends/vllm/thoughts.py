"""Thoughts inside a worker: kept from the step that ends before one to the step that begins with it.

Shape letters: N token rows of a step, R requests of a step, S slots (one per request that can run), E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentmas.alignment import Alignment
from latentmas.backends.vllm.recorder import Recorder

_NONE: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """What a step runs, one entry per request, in the order of the batch. All arrays are ``[R]``.

    Attributes:
        slot: Where the request keeps its thought; no two requests that can run share one.
        row: First of its token rows in the step.
        last: Its row among those whose logits are computed.
        begins: Its first token is a thought.
        ends: The token after its chunk is a thought.
        position: Of the token after its chunk.
        names: Of the requests, as the engine knows them; empty where nobody measures.
    """

    slot: NDArray[np.int64]
    row: NDArray[np.int64]
    last: NDArray[np.int64]
    begins: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    position: NDArray[np.int64]
    names: Sequence[str] = ()


def check_chunk(marked: NDArray[np.bool_], start: int, end: int) -> None:
    """Make sure that a chunk holds a thought only at its start, which is the scheduler's promise.

    Args:
        marked: By position, whether it is a thought.
    """
    if marked[start + 1 : end].any():
        raise RuntimeError(
            f"a step reads positions {start} to {end - 1} of a request at once, with a thought behind the first of "
            "them; this vLLM does not schedule as latentmas asks for"
        )


@final
class Thoughts:
    """The thoughts of all requests of one worker.

    `begin` is called before each step, `overlay` inside the forward pass, `tap` with the hidden states whose logits are
    computed. Nothing waits for the device. `overlay` reads and writes tensors that stay where they are, so it may be
    part of a CUDA graph, and what it returns may be the input of one.

    Args:
        slots: S.
        rows: Largest N.
        hidden_size: E.
        recorder: Is given every thought; None where nobody measures.
    """

    def __init__(
        self,
        alignment: Alignment,
        *,
        slots: int,
        rows: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
        recorder: Recorder | None = None,
    ) -> None:
        self.recorder = recorder
        self._alignment = alignment
        self._device = device
        self._waiting = torch.zeros(slots, hidden_size, dtype=dtype, device=device)
        self._source = torch.full((rows,), _NONE, dtype=torch.int32, device=device)
        self._inputs = torch.zeros(rows, hidden_size, dtype=dtype, device=device)
        self._used = 0
        self._due: tuple[Tensor, Tensor] | None = None
        self._due_of: tuple[list[str], list[int]] = [], []

    def begin(self, chunks: Chunks) -> None:
        """Say what the next step runs."""
        rows = chunks.row[chunks.begins]
        longest = int(rows.max()) + 1 if len(rows) else 0
        if used := max(longest, self._used):
            source = np.full(used, _NONE, dtype=np.int32)
            source[rows] = chunks.slot[chunks.begins]
            self._source[:used].copy_(self._staged(source), non_blocking=True)
        self._used = longest
        self._due = None
        if chunks.ends.any():
            last, slot = (self._staged(part[chunks.ends]) for part in (chunks.last, chunks.slot))
            self._due = last.to(self._device, non_blocking=True), slot.to(self._device, non_blocking=True)
            if self.recorder is not None:
                names = [chunks.names[row] for row in np.flatnonzero(chunks.ends).tolist()]
                self._due_of = names, chunks.position[chunks.ends].tolist()

    def overlay(self, embeddings: Tensor) -> Tensor:
        """Return ``[N, E]`` input embeddings with thoughts where the step has placeholders.

        It is the same memory in every step: vLLM replays graphs that read their inputs from where they were captured.
        """
        rows = embeddings.shape[0]
        source = self._source[:rows]
        thoughts = self._waiting.index_select(0, source.clamp_min(0))
        return torch.where(source[:, None] == _NONE, embeddings, thoughts, out=self._inputs[:rows])

    def tap(self, hidden: Tensor) -> None:
        """Take the ``[>= R, E]`` last hidden states of a step, once: the head is also computed at other times."""
        if self._due is not None:
            (last, slot), self._due = self._due, None
            made_from = hidden.index_select(0, last)
            thoughts = self._alignment(made_from).to(self._waiting.dtype)
            self._waiting.index_copy_(0, slot, thoughts)
            if self.recorder is not None:
                self.recorder.keep(*self._due_of, thoughts, torch.linalg.vector_norm(made_from.float(), dim=1))

    def _staged(self, values: NDArray[Any]) -> Tensor:
        """Return the values where the device can fetch them by itself; a copy of ordinary memory would wait for it."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self._device.type == "cuda" else tensor
