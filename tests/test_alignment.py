"""Alignments against second derivations in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentmas import alignment
from latentmas.alignment import (
    RIDGE_LAMBDA,
    AlignmentKind,
    EmbeddingSpace,
    NormOnly,
    Ridge,
    SoftEmbedding,
    build_alignment,
    ridge_matrix,
)

VOCABULARY, HIDDEN = 50, 6


def space(*, tied: bool = False, compute: torch.dtype = torch.float64, seed: int = 0) -> EmbeddingSpace:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).to(compute)
    head = table if tied else torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).to(compute)
    return EmbeddingSpace(
        embed=lambda ids: table[ids],
        head=head,
        logits=lambda hidden: hidden @ head.T,
        vocabulary=VOCABULARY,
        tied=tied,
        compute=compute,
    )


def table_of(made: EmbeddingSpace) -> Tensor:
    return made.embed(torch.arange(VOCABULARY))


def hidden_states(rows: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


def test_ridge_solves_the_regularized_least_squares_problem() -> None:
    made = space()
    # min |W_out X - W_in|^2 + lambda |X|^2, written as one ordinary problem with lambda's rows below.
    rows = np.vstack([made.head.numpy(), np.sqrt(RIDGE_LAMBDA) * np.eye(HIDDEN)])
    targets = np.vstack([table_of(made).numpy(), np.zeros((HIDDEN, HIDDEN))])
    expected, *_ = np.linalg.lstsq(rows, targets, rcond=None)
    np.testing.assert_allclose(ridge_matrix(made).numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("chunk", [1, 7, VOCABULARY, 1000])
def test_the_size_of_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    made = space()
    whole, norm = ridge_matrix(made), made.mean_norm()
    soft = SoftEmbedding(made, norm, 2.0)(hidden_states())
    monkeypatch.setattr(alignment, "CHUNK", chunk)
    torch.testing.assert_close(ridge_matrix(made), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(SoftEmbedding(made, norm, 2.0)(hidden_states()), soft, rtol=0, atol=1e-12)
    assert made.mean_norm() == pytest.approx(norm, rel=1e-14)


def test_ridge_thoughts_are_the_mapped_state_at_the_mean_norm() -> None:
    made = space()
    thoughts = build_alignment(AlignmentKind.RIDGE, made)
    assert isinstance(thoughts, Ridge)
    moved = hidden_states().numpy() @ ridge_matrix(made).numpy()
    length = np.mean(np.sqrt(np.sum(table_of(made).numpy() ** 2, axis=1)))
    expected = moved / np.linalg.norm(moved, axis=1, keepdims=True) * length
    np.testing.assert_allclose(thoughts(hidden_states()).numpy(), expected, rtol=1e-12)


def test_norm_only_keeps_the_direction() -> None:
    made = space()
    thoughts = build_alignment(AlignmentKind.NORM, made)
    assert isinstance(thoughts, NormOnly)
    result = thoughts(hidden_states())
    assert torch.allclose(torch.cosine_similarity(result, hidden_states()), torch.ones(4).double())
    assert result.norm(dim=1).tolist() == pytest.approx([made.mean_norm()] * 4)


def test_tied_embeddings_take_the_ridge_solution_as_the_identity() -> None:
    assert isinstance(build_alignment(AlignmentKind.RIDGE, space(tied=True)), NormOnly)
    # The decision costs lambda only: the exact solution is that near to the identity.
    torch.testing.assert_close(ridge_matrix(space(tied=True)), torch.eye(HIDDEN).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_soft_embedding_is_the_expected_input_embedding(temperature: float) -> None:
    made = space()
    thoughts = build_alignment(AlignmentKind.SOFT, made, soft_temperature=temperature)
    assert isinstance(thoughts, SoftEmbedding)
    scores = hidden_states().numpy() @ made.head.numpy().T / temperature
    weights = np.exp(scores)
    mean = weights / weights.sum(axis=1, keepdims=True) @ table_of(made).numpy()
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True) * made.mean_norm()
    np.testing.assert_allclose(thoughts(hidden_states()).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", list(AlignmentKind))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_thoughts_have_the_dtype_of_the_model(kind: AlignmentKind, dtype: torch.dtype) -> None:
    made = space(compute=torch.float64 if dtype is torch.float64 else torch.float32)
    if kind is AlignmentKind.SOFT:
        made = EmbeddingSpace(
            embed=made.embed,
            head=made.head,
            logits=lambda hidden: (hidden.to(made.head.dtype) @ made.head.T).to(dtype),
            vocabulary=VOCABULARY,
            tied=False,
            compute=made.compute,
        )
    thoughts = build_alignment(kind, made)
    result, exact = thoughts(hidden_states(dtype=dtype)), thoughts(hidden_states())
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact.double(), rtol=0, atol=0.05 if dtype is torch.bfloat16 else 1e-4)


def test_a_state_of_length_zero_gives_no_nan_and_nan_is_not_hidden() -> None:
    for kind in (AlignmentKind.NORM, AlignmentKind.RIDGE):
        thoughts = build_alignment(kind, space())
        assert thoughts(torch.zeros(1, HIDDEN).double()).tolist() == [[0.0] * HIDDEN]
        broken = hidden_states()
        broken[1, 3] = torch.nan
        assert thoughts(broken).isfinite().all(dim=1).tolist() == [True, False, True, True]


def test_the_stored_matrix_is_used(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "ridge.safetensors"
    made = space()
    first = build_alignment(AlignmentKind.RIDGE, made, cache_file=file)
    assert isinstance(first, Ridge)
    assert torch.equal(load_file(file)["ridge"], first.matrix)
    save_file({"ridge": 2 * torch.eye(HIDDEN, dtype=torch.float64)}, file)
    second = build_alignment(AlignmentKind.RIDGE, made, cache_file=file)
    assert isinstance(second, Ridge)
    assert torch.equal(second.matrix, 2 * torch.eye(HIDDEN, dtype=torch.float64))
    assert [path.name for path in file.parent.iterdir()] == ["ridge.safetensors"]


@pytest.mark.parametrize("size", [0, 3, 8, 60, -1])
def test_a_torn_matrix_is_computed_again(tmp_path: Path, size: int) -> None:
    file = tmp_path / "ridge.safetensors"
    made = space()
    build_alignment(AlignmentKind.RIDGE, made, cache_file=file)
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    again = build_alignment(AlignmentKind.RIDGE, made, cache_file=file)
    assert isinstance(again, Ridge)
    assert torch.equal(again.matrix, ridge_matrix(made))
    assert file.read_bytes() == whole


def test_a_matrix_that_cannot_be_kept_is_told_and_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "no folder").write_text("mine")
    made = space()
    aligned = build_alignment(AlignmentKind.RIDGE, made, cache_file=tmp_path / "no folder" / "ridge.safetensors")
    assert isinstance(aligned, Ridge)
    assert torch.equal(aligned.matrix, ridge_matrix(made))
    [record] = caplog.records
    assert "cannot be kept" in record.message
    assert "--cache_dir" in record.message
    assert (tmp_path / "no folder").read_text() == "mine"


def test_a_matrix_of_another_width_is_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "ridge.safetensors"
    save_file({"ridge": torch.eye(3)}, file)
    again = build_alignment(AlignmentKind.RIDGE, space(), cache_file=file)
    assert isinstance(again, Ridge)
    assert again.matrix.shape == (HIDDEN, HIDDEN)


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
def test_the_mean_norm_is_that_of_what_enters_the_model(tiny: Any, kind: str) -> None:
    causal = tiny.causal(kind)
    table = causal.get_input_embeddings().weight.numpy()
    scale = np.sqrt(causal.config.hidden_size) if kind == "gemma" else 1  # Gemma scales inside its embedding
    expected = scale * np.mean(np.linalg.norm(table, axis=1))
    assert tiny.model(kind).space().mean_norm() == pytest.approx(expected, rel=1e-7)


def test_padding_of_the_embedding_takes_no_part(tiny: Any) -> None:
    """Rows that no tokenizer can produce move neither the mean norm, nor the ridge, nor a soft thought."""
    known = 200
    causal = tiny.causal("qwen3")
    made = tiny.model("qwen3").space(known)
    table, head = causal.get_input_embeddings().weight[:known], causal.get_output_embeddings().weight[:known]
    assert made.mean_norm() == pytest.approx(float(table.norm(dim=1).mean()), rel=1e-12)
    assert made.mean_norm() != pytest.approx(tiny.model("qwen3").space().mean_norm(), rel=1e-6)
    gram = head.T @ head + RIDGE_LAMBDA * torch.eye(head.shape[1], dtype=torch.float64)
    torch.testing.assert_close(ridge_matrix(made), torch.linalg.inv(gram) @ head.T @ table, rtol=0, atol=1e-9)
    hidden = torch.randn(3, head.shape[1], generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    mean = torch.softmax(hidden @ head.T / 2.0, dim=-1) @ table
    expected = mean / mean.norm(dim=1, keepdim=True) * made.mean_norm()
    torch.testing.assert_close(SoftEmbedding(made, made.mean_norm(), 2.0)(hidden), expected)


def test_a_tokenizer_longer_than_the_embedding_takes_all_rows(tiny: Any) -> None:
    assert tiny.model("qwen3").space(10_000).vocabulary == tiny.model("qwen3").vocabulary


def test_tied_models_are_recognized(tiny: Any) -> None:
    assert tiny.model(tied=True).space().tied
    assert not tiny.model(tied=False).space().tied
