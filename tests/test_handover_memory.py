"""What a hand-over drops is given back: counted in storages, in the account, and in what the system or a card holds."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.memory import LatentMemory
from latentmas.program import Budget, Handover, KeepSpec, Program, Read, SlotKind

SLOTS, KEEP = 200, 0.6
LENGTHS = (SLOTS, 155, 90)
"""Of the rows of a ragged memory; padding stands on the left."""


def test_a_hand_over_that_keeps_60_percent_holds_60_percent_of_the_bytes(tiny: Any, grain: str) -> None:
    rollout = rollout_of(tiny, grain, lengths=(SLOTS, SLOTS, SLOTS))
    before = held(rollout.memory)
    hand_over(rollout)
    assert rollout.memory.real_slots.tolist() == [120, 120, 120]
    assert held(rollout.memory) == pytest.approx(KEEP * before, rel=0.01)
    assert held(rollout.memory) == rollout.memory.storage_bytes


def test_the_longest_of_ragged_rows_decides_what_is_held(tiny: Any, grain: str) -> None:
    rollout = rollout_of(tiny, grain, lengths=LENGTHS)
    before = held(rollout.memory)
    hand_over(rollout)
    assert rollout.memory.real_slots.tolist() == [120, 93, 54]
    assert held(rollout.memory) == pytest.approx(KEEP * before, rel=0.01)


@pytest.mark.parametrize("lengths", [(SLOTS, SLOTS, SLOTS), LENGTHS], ids=["equal rows", "ragged rows"])
def test_nobody_holds_a_buffer_of_the_memory_before(tiny: Any, grain: str, lengths: tuple[int, ...]) -> None:
    rollout = rollout_of(tiny, grain, lengths)
    old = storages(rollout.memory)
    # A new tensor may begin where an old one did; but then it is a smaller one.
    size = rollout.memory.keys(0).untyped_storage().nbytes()
    assert len(living(old)) == len(old)
    hand_over(rollout)
    left = [tensor for tensor in living(old) if tensor.untyped_storage().nbytes() >= size]
    assert not left


def test_views_instead_of_copies_fail_the_same_check(tiny: Any) -> None:
    rollout = rollout_of(tiny, "token", lengths=(SLOTS, SLOTS, SLOTS))
    memory = rollout.memory
    before, old = held(memory), storages(memory)
    kept = views(memory, int(KEEP * SLOTS))
    del memory
    rollout.memory = kept
    gc.collect()
    assert kept.slots == 120
    assert kept.keys(0).numel() == 3 * 2 * 120 * 16, "it looks as if less were held"
    assert held(kept) == before
    assert held(kept) != pytest.approx(KEEP * before, rel=0.01)
    assert len(living(old)) >= len(old)


def test_a_memory_that_is_still_held_elsewhere_is_found(tiny: Any) -> None:
    rollout = rollout_of(tiny, "token", lengths=(SLOTS, SLOTS, SLOTS), releases=False)
    old, before = storages(rollout.memory), rollout.memory
    hand_over(rollout)
    assert len(living(old)) == len(old)
    assert before.storage_bytes == held(before)


@pytest.mark.parametrize("lengths", [(SLOTS, SLOTS, SLOTS), LENGTHS], ids=["equal rows", "ragged rows"])
def test_the_account_says_what_the_tensors_hold(tiny: Any, grain: str, lengths: tuple[int, ...]) -> None:
    rollout = rollout_of(tiny, grain, lengths)
    rows, before, slot = list(rollout.rows), held(rollout.memory), bytes_of_slot(rollout.memory)
    hand_over(rollout)
    for row, length in zip(rows, lengths, strict=True):
        account = row.accounts[-1]
        handed = account.handover
        assert handed is not None
        kept = int(KEEP * length)
        assert {(share.agent, share.kind) for share in handed.shares} == {
            ("planner", "prompt"),
            ("planner", "thought"),
            ("critic", "prompt"),
        }
        assert sum(share.slots_before for share in handed.shares) == pytest.approx(length)
        assert sum(share.slots_after for share in handed.shares) == pytest.approx(kept)
        # A share of one agent is rounded to whole bytes; the whole is not off by more than one for each of them.
        assert sum(share.bytes_before for share in handed.shares) == pytest.approx(length * slot, abs=3)
        assert sum(share.bytes_after for share in handed.shares) == pytest.approx(kept * slot, abs=3)
        assert all(share.bytes_after <= share.bytes_before for share in handed.shares)
        assert (handed.storage_before, handed.storage_after) == (before // 3, held(rollout.memory) // 3)
        assert (account.slots, account.memory_bytes) == (kept, kept * slot)


@pytest.mark.slow
def test_resident_memory_falls_by_40_percent_of_a_gigabyte(tiny: Any, grain: str) -> None:
    rollout = rollout_of(tiny, grain, lengths=(1_000_000,))
    memory = held(rollout.memory)
    assert memory >= 1_000_000_000
    before = resident()
    hand_over(rollout)
    fallen = before - resident()
    assert fallen == pytest.approx((1 - KEEP) * memory, abs=0.1 * memory)


@pytest.mark.gpu
def test_allocated_memory_of_a_card_falls_by_40_percent(tiny: Any, grain: str) -> None:
    rollout = rollout_of(tiny, grain, lengths=(40_000,) * 3, device="cuda")
    memory, before = held(rollout.memory), torch.cuda.memory_allocated()
    hand_over(rollout)
    fallen = before - torch.cuda.memory_allocated()
    assert fallen == pytest.approx((1 - KEEP) * memory, abs=0.1 * memory)


@pytest.fixture(params=["token", "head"])
def grain(request: pytest.FixtureRequest) -> str:
    """How fine a filter chooses."""
    return str(request.param)


def rollout_of(
    tiny: Any,
    grain: str,
    lengths: tuple[int, ...],
    *,
    releases: bool = True,
    device: str = "cpu",
) -> Rollout:
    """Return a rollout before its hand-over, whose rows remember so many slots of two agents."""
    model = tiny.model(device=device)
    # Short keys first: the one filter that can choose for each head and needs nobody who reads.
    keep = KeepSpec(name="key_norm", parameters=(("grain", grain),), budget=Budget(amount=KEEP))
    program = Program((Read(agent="critic", tokens=(1,)), Handover(agent="critic", keep=keep)))
    rows = [Row(program, seed) for seed in range(len(lengths))]
    memory = filled(lengths, dtype=model.dtype, device=device)
    return Rollout(model, tiny.alignment(model), rows, memory, releases=releases)


def filled(lengths: tuple[int, ...], *, dtype: torch.dtype, device: str) -> LatentMemory:
    """Return a memory of random keys and values as wide as those of the tiny model."""
    rows, width = len(lengths), max(lengths)
    memory = LatentMemory(rows, layers=2, device=device, capacity=width)
    own = torch.tensor(lengths, device=device)
    real = torch.arange(width, device=device) >= width - own[:, None]
    ends = (0, width * 3 // 5, width * 4 // 5, width)
    parts = (("planner", SlotKind.PROMPT), ("planner", SlotKind.THOUGHT), ("critic", SlotKind.PROMPT))
    torch.manual_seed(0)
    for start, end, (agent, kind) in zip(ends, ends[1:], parts, strict=False):
        memory.extend(real[:, start:end], agent, kind)
        for layer in range(memory.layers):
            size = (rows, 2, end - start, 16)
            memory.write(layer, *(torch.randn(size, dtype=dtype, device=device) for _ in range(2)))
    return memory


@torch.inference_mode()
def hand_over(rollout: Rollout) -> None:
    rollout.step(1, last=True)


def tensors(memory: LatentMemory) -> list[Tensor]:
    """Return the keys and values of every layer."""
    return [part for layer in range(memory.layers) for part in (memory.keys(layer), memory.values(layer))]


def storages(memory: LatentMemory) -> set[int]:
    """Return where the storages of keys and values begin."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(memory)}


def held(memory: LatentMemory) -> int:
    """Return the bytes of all storages that keys and values are views of, each counted once."""
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors(memory)}
    return sum(sizes.values())


def bytes_of_slot(memory: LatentMemory) -> int:
    return sum(tensor[0, :, 0].numel() * tensor.element_size() for tensor in tensors(memory))


def living(addresses: set[int]) -> list[Tensor]:
    """Return one tensor for each of these storages that something in this process still refers to."""
    gc.collect()
    found = {
        thing.untyped_storage().data_ptr(): thing
        for thing in gc.get_objects()
        if type(thing) is Tensor and thing.layout is torch.strided and thing.numel()
    }
    return [tensor for address, tensor in found.items() if address in addresses]


def views(memory: LatentMemory, slots: int) -> LatentMemory:
    """Keep the newest slots as a bad implementation would: as views into buffers that stay as large as they were."""
    kept = LatentMemory(memory.rows, memory.layers, memory.device, capacity=slots)
    kept.extend(memory.valid[:, -slots:], "planner", SlotKind.PROMPT)
    for layer in range(memory.layers):
        kept._keys[layer] = memory.keys(layer)[:, :, -slots:]
        kept._values[layer] = memory.values(layer)[:, :, -slots:]
    return kept


def resident() -> int:
    """Return the resident memory of this process in bytes, after free pages went back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
