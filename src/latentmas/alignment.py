"""How a hidden state becomes an input embedding (LatentMAS, section 3.1 and appendix A).

Every alignment ends with the same rescale to the mean norm of the input embeddings; without it thoughts leave the
range the model was trained on. This module knows tensors only: a backend says what its input and output space are.

Shape letters: B rows, V vocabulary, E hidden size.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)

MIN_NORM: Final = 1e-6
RIDGE_LAMBDA: Final = 1e-5
SOFT_TEMPERATURE: Final = 0.5
"""Below where thoughts collapse, above where they are one token each, on two real models (``docs/thoughts.md``)."""
CHUNK: Final = 8192
"""Vocabulary rows handled at once, so that no float64 copy of a whole embedding is ever made."""


class AlignmentKind(StrEnum):
    """The alignments there are, under the names of ``--alignment``."""

    NORM = "norm"
    RIDGE = "ridge"
    SOFT = "soft"


class Alignment(Protocol):
    """Maps hidden states to input embeddings."""

    @property
    def norm(self) -> float:
        """The length of every thought: the mean norm of the input embeddings."""
        ...

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return ``[B, E]`` input embeddings for ``[B, E]`` hidden states, in the dtype of the latter."""
        ...


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """What an alignment needs to know of a model.

    Attributes:
        embed: Token ids ``[n]`` to what the embedding module puts out, ``[n, E]`` (Gemma scales in there).
        head: LM head weight, at least ``[V, E]``, or the rows of it that this process holds.
        logits: ``[B, E]`` hidden states to ``[B, >= V]`` logits.
        vocabulary: V, rows of the input embedding that the tokenizer can produce. Rows behind them are padding, which
            no model ever read: they take no part in an alignment, nor does what the head says of them.
        tied: Input embedding and LM head are one matrix.
        compute: dtype of the arithmetic: float64 for float64 models, else float32.
        first_row: Of the vocabulary, where `head` begins.
        total: Sums a tensor over all processes that hold a part of the head.
    """

    embed: Callable[[Tensor], Tensor]
    head: Tensor
    logits: Callable[[Tensor], Tensor]
    vocabulary: int
    tied: bool
    compute: torch.dtype
    first_row: int = 0
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the input embeddings ``[<= CHUNK, E]`` of the whole vocabulary, in order."""
        for start in range(0, self.vocabulary, CHUNK):
            span = slice(start, min(start + CHUNK, self.vocabulary))
            ids = torch.arange(span.start, span.stop, device=self.head.device)
            yield span, self.embed(ids).to(self.head.device)

    def mean_norm(self) -> float:
        """Return the mean Euclidean norm of the input embeddings: the length every thought is scaled to."""
        total = sum(float(rows.to(self.exact).norm(dim=1).sum()) for _, rows in self.chunks())
        return total / self.vocabulary

    @property
    def exact(self) -> torch.dtype:
        """float64 wherever the device has it."""
        return torch.float32 if self.head.device.type == "mps" else torch.float64


@dataclass(frozen=True, slots=True)
class NormOnly:
    """The hidden state itself, rescaled: the published default."""

    norm: float
    compute: torch.dtype

    def __call__(self, hidden: Tensor) -> Tensor:
        return rescale(hidden.to(self.compute), self.norm).to(hidden.dtype)


@dataclass(frozen=True, slots=True)
class Ridge:
    """``h @ W_a`` rescaled, with the ridge solution ``W_a`` that maps output rows to input rows.

    Attributes:
        matrix: ``[E, E]`` in the dtype of the arithmetic.
    """

    matrix: Tensor
    norm: float

    def __call__(self, hidden: Tensor) -> Tensor:
        moved = hidden.to(self.matrix.device, self.matrix.dtype) @ self.matrix
        return rescale(moved, self.norm).to(hidden.device, hidden.dtype)


@dataclass(frozen=True, slots=True)
class SoftEmbedding:
    """The mean input embedding under ``softmax(logits / temperature)``, rescaled. Computes the LM head."""

    space: EmbeddingSpace
    norm: float
    temperature: float

    def __call__(self, hidden: Tensor) -> Tensor:
        scaled = self.space.logits(hidden).to(self.space.compute) / self.temperature
        # What padding gets of the probability makes the mean shorter, which the rescale undoes.
        weights = torch.softmax(scaled, dim=-1)  # [B, >= V]
        mean = sum(weights[:, span].to(rows.device) @ rows.to(self.space.compute) for span, rows in self.space.chunks())
        assert isinstance(mean, Tensor)
        return rescale(mean, self.norm).to(hidden.device, hidden.dtype)


def rescale(vectors: Tensor, norm: float) -> Tensor:
    """Return ``[B, E]`` vectors of this norm; the length divided by is clamped to `MIN_NORM`."""
    length: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors * (norm / length.clamp_min(MIN_NORM))


def build_alignment(
    kind: AlignmentKind,
    space: EmbeddingSpace,
    *,
    soft_temperature: float = SOFT_TEMPERATURE,
    cache_file: Path | None = None,
) -> Alignment:
    """Return the alignment of this kind for a model.

    Args:
        cache_file: Where the ridge matrix of this model and vocabulary is kept between runs; None computes it anew.
    """
    norm = space.mean_norm()
    if kind is AlignmentKind.SOFT:
        return SoftEmbedding(space, norm, soft_temperature)
    # With tied embeddings the ridge solution is the identity up to lambda; taken as such, by decision.
    if kind is AlignmentKind.NORM or space.tied:
        return NormOnly(norm, space.compute)
    matrix = _load_matrix(cache_file, space.head.shape[1]) if cache_file else None
    if matrix is None:
        matrix = ridge_matrix(space)
        if cache_file:
            _save_matrix(cache_file, matrix)
    return Ridge(matrix.to(space.head.device, space.compute), norm)


def ridge_matrix(space: EmbeddingSpace) -> Tensor:
    """Return ``(W_out^T W_out + lambda I)^-1 W_out^T W_in``, ``[E, E]``, summed over chunks of the vocabulary.

    The published code solves in float32; the condition of the Gram matrix makes float64 worth its price.
    """
    width = space.head.shape[1]
    gram = torch.zeros(width, width, dtype=space.exact, device=space.head.device)
    target = torch.zeros_like(gram)
    first, held = space.first_row, space.head.shape[0]
    for span, rows in space.chunks():
        start, stop = max(span.start, first), min(span.stop, first + held)
        if start < stop:
            out = space.head[start - first : stop - first].to(space.exact)
            gram += out.T @ out
            target += out.T @ rows[start - span.start : stop - span.start].to(space.exact)
    gram, target = space.total(gram), space.total(target)
    gram.diagonal().add_(RIDGE_LAMBDA)
    solution: Tensor = torch.linalg.solve(gram, target)
    return solution


def _load_matrix(path: Path, width: int) -> Tensor | None:
    """Return the stored matrix; None where there is none, or a torn one that must be computed again."""
    try:
        matrix = load_file(path).get("ridge")
    except (OSError, SafetensorError):  # why nothing can be kept there, saving says
        return None
    return matrix if matrix is not None and matrix.shape == (width, width) else None


def _save_matrix(path: Path, matrix: Tensor) -> None:
    """Keep the matrix; where that cannot be, say so and go on, for it can be computed again."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"ridge": matrix.cpu().contiguous()}, unfinished)
        unfinished.replace(path)  # atomic, so that a run beside this one never reads half a file
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        logger.warning(
            "the ridge matrix cannot be kept as %s (%s) and is computed by each run; make room, or let --cache_dir or "
            "LATENTMAS_CACHE name another folder",
            path,
            getattr(error, "strerror", None) or error,
        )
