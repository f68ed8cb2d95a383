"""Keys and values in 8 bits: how far off, how large, and in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentmas.int8 import LEVELS, Range, pack
from latentmas.memory import LatentMemory
from latentmas.program import SlotKind, Storage


def numbers(rows: int = 2, slots: int = 9, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensor = torch.randn(rows, 2, slots, 8, generator=generator) * torch.tensor([1.0, 30, 1, 1, 5, 1, 0.1, 1])
    valid = torch.ones(rows, slots, dtype=torch.bool)
    valid[-1, :3] = False
    return tensor.to(dtype), valid


@pytest.mark.parametrize("by", list(Range))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_number_is_off_by_more_than_half_a_step_of_its_own_range(by: Range, dtype: torch.dtype) -> None:
    tensor, valid = numbers(dtype=dtype)
    back = pack(tensor, valid, by).unpack()
    assert back.dtype == dtype
    for row in range(2):
        real = tensor[row][:, valid[row]].double()
        axis = 1 if by is Range.CHANNEL else 2
        step = (real.amax(axis, keepdim=True) - real.amin(axis, keepdim=True)) / LEVELS
        rounding = real.abs() * (2.0**-8 if dtype == torch.bfloat16 else 1e-6)
        assert bool(((back[row][:, valid[row]].double() - real).abs() <= step / 2 + rounding).all())


@pytest.mark.parametrize("by", list(Range))
def test_padding_and_other_rows_change_no_code(by: Range) -> None:
    tensor, valid = numbers()
    spoiled = tensor.clone()
    spoiled[1, :, :3] = 1e6
    spoiled[0] *= 2
    assert torch.equal(pack(tensor, valid, by).unpack()[1, :, 3:], pack(spoiled, valid, by).unpack()[1, :, 3:])


def test_constant_and_empty_ranges_come_back_as_they_were() -> None:
    valid = torch.ones(1, 4, dtype=torch.bool)
    for content in (torch.full((1, 1, 4, 2), 7.0), torch.zeros(1, 1, 4, 2)):
        assert torch.equal(pack(content, valid, Range.CHANNEL).unpack(), content)
    empty = torch.zeros(1, 1, 0, 2)
    assert pack(empty, valid[:, :0], Range.CHANNEL).unpack().shape == empty.shape


def filled(slots: int = 400) -> LatentMemory:
    memory = LatentMemory(2, 2)
    valid = torch.ones(2, slots, dtype=torch.bool)
    valid[1, :50] = False
    memory.extend(valid, ["a", "b"], SlotKind.PROMPT)
    generator = torch.Generator().manual_seed(5)
    for layer in range(2):
        memory.write(layer, *(torch.randn(2, 2, slots, 16, generator=generator) for _ in range(2)))
    return memory


def test_a_memory_through_int8_is_a_quarter_as_large_and_its_error_is_measured() -> None:
    memory = filled()
    before = [memory.keys(layer).clone() for layer in range(2)]
    stored, of_keys, of_values = memory.through_int8()
    assert 0.25 < stored / memory.storage_bytes < 0.4
    off = sum(((memory.keys(layer) - before[layer])[1, :, 50:].double() ** 2).sum() for layer in range(2))
    whole = sum((before[layer][1, :, 50:].double() ** 2).sum() for layer in range(2))
    assert float(of_keys[1]) == pytest.approx(float((off / whole).sqrt()), rel=1e-6)
    assert 0 < float(of_keys.max()) < 0.02
    assert 0 < float(of_values.max()) < 0.02


def test_a_memory_file_in_int8_is_smaller_and_comes_back_within_its_error(tmp_path: Path) -> None:
    memory = filled()
    memory.save(tmp_path / "native", "x")
    memory.save(tmp_path / "int8", "x", Storage.INT8)
    assert (tmp_path / "int8").stat().st_size < 0.5 * (tmp_path / "native").stat().st_size
    back = LatentMemory.load(tmp_path / "int8", "x")
    twin = memory.clone()
    twin.through_int8()
    real = memory.valid[:, None, :, None]
    for layer in range(2):
        assert torch.equal(back.keys(layer) * real, twin.keys(layer) * real)
        assert torch.equal(back.values(layer) * real, twin.values(layer) * real)
    assert torch.equal(back.positions, memory.positions)
    assert torch.equal(back.made, memory.made)
