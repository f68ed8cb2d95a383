"""Cutting, splitting, rotating and storing a memory; laws 4 and 5 of DESIGN section 2 at their source."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentmas.backends.hf.load import fingerprint
from latentmas.errors import MemoryMismatchError, StoreError
from latentmas.memory import LatentMemory
from latentmas.program import Handover, KeepSpec, Positions, Program, Read, SlotKind, Think
from latentmas.rope import STILL, Rope

LAYERS, HEADS, WIDTH = 2, 2, 4
ROPES: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "short_factor": [1.0] * 6,
        "long_factor": [2.0] * 6,
    },
}


def memory_of(*blocks: Sequence[int], rows: int = 3) -> LatentMemory:
    """Return a memory made of blocks; each gives the number of real tokens of each row, padded on the left.

    The content of a slot is the number of the slot in the memory, so that it can be followed.
    """
    memory = LatentMemory(rows, LAYERS)
    for number, lengths in enumerate(blocks):
        width = max(lengths)
        valid = torch.tensor([[slot >= width - length for slot in range(width)] for length in lengths])
        memory.extend(valid, f"agent {number}", SlotKind(number % 3))
        name = torch.arange(memory.slots - width, memory.slots).double() + 1000 * torch.arange(rows)[:, None]
        for layer in range(LAYERS):
            content = (name + 0.25 * layer)[:, None, :, None].expand(rows, HEADS, width, WIDTH).clone()
            memory.write(layer, content, -content)
    return memory


def content(memory: LatentMemory, row: int, layer: int = 0) -> list[tuple[int, ...]]:
    """Return (content, position, agent, kind) of the real slots of a row, in order."""
    real = memory.valid[row]
    keys = memory.keys(layer)[row, 0, :, 0]
    assert torch.equal(memory.values(layer)[row, 0, :, 0][real], -keys[real])
    columns = (keys.long(), memory.positions[row], memory.agents[row], memory.kinds[row])
    return list(zip(*(column[real].tolist() for column in columns), strict=True))


def tensors(memory: LatentMemory) -> list[Tensor]:
    layers = [part for layer in range(memory.layers) for part in (memory.keys(layer), memory.values(layer))]
    return [memory.valid, memory.positions, memory.next_position, memory.agents, memory.kinds, *layers]


def equal(one: LatentMemory, other: LatentMemory) -> bool:
    return one.agent_names == other.agent_names and all(map(torch.equal, tensors(one), tensors(other)))


@st.composite
def memories(draw: st.DrawFn) -> tuple[LatentMemory, Tensor]:
    """Return a ragged memory, and a choice of its slots that may include padding."""
    blocks = draw(st.lists(st.lists(st.integers(1, 5), min_size=3, max_size=3), min_size=1, max_size=4))
    memory = memory_of(*blocks)
    row = st.lists(st.booleans(), min_size=memory.slots, max_size=memory.slots)
    return memory, torch.tensor(draw(st.lists(row, min_size=3, max_size=3)))


def test_padding_takes_no_position() -> None:
    memory = memory_of([2, 4, 1], [1, 1, 3])
    assert memory.positions.tolist() == [
        [0, 0, 0, 1, 0, 0, 2],
        [0, 1, 2, 3, 0, 0, 4],
        [0, 0, 0, 0, 1, 2, 3],
    ]
    assert memory.next_position.tolist() == [3, 5, 4] == memory.real_slots.tolist()
    assert memory.agent_names == ["agent 0", "agent 1"]


@given(memories())
def test_keep_keeps_the_chosen_real_slots_and_all_that_is_known_of_them(drawn: tuple[LatentMemory, Tensor]) -> None:
    memory, chosen = drawn
    kept = memory.keep(chosen)
    for row in range(memory.rows):
        real = [bool(pick) for pick, valid in zip(chosen[row], memory.valid[row], strict=True) if valid]
        for layer in range(LAYERS):
            expected = [slot for slot, pick in zip(content(memory, row, layer), real, strict=True) if pick]
            assert content(kept, row, layer) == expected
    assert kept.next_position.tolist() == memory.next_position.tolist(), "a position that was used stays used"
    assert kept.slots == int((chosen & memory.valid).sum(dim=1).max()), "no column of padding only"
    assert all(sorted(row) == row for row in kept.valid.tolist()), "shorter rows are padded on the left"


@given(memories())
def test_keeping_everything_changes_nothing(drawn: tuple[LatentMemory, Tensor]) -> None:
    memory, _ = drawn
    kept = memory.keep(torch.ones_like(memory.valid))
    assert [content(kept, row) for row in range(3)] == [content(memory, row) for row in range(3)]
    alone = memory.split_rows()[0]
    assert equal(alone.keep(alone.valid), alone)


@given(memories())
def test_split_rows_have_no_padding_and_lose_nothing(drawn: tuple[LatentMemory, Tensor]) -> None:
    memory, chosen = drawn
    kept = memory.keep(chosen)
    for row, alone in enumerate(kept.split_rows()):
        assert bool(alone.valid.all())
        assert content(alone, 0) == content(kept, row)
        assert alone.next_position.tolist() == [int(kept.next_position[row])]


def test_stacked_memories_hold_the_rows_of_each() -> None:
    short, long = memory_of([2, 1, 3]), memory_of([4, 1, 2], [1, 3, 2])
    stacked = LatentMemory.stack([short, long])
    assert [content(stacked, row) for row in range(6)] == [
        *(content(short, row) for row in range(3)),
        *(content(long, row) for row in range(3)),
    ]
    assert stacked.next_position.tolist() == [*short.next_position.tolist(), *long.next_position.tolist()]
    assert [stacked.turns_of(row) for row in (2, 5)] == [short.turns_of(2), long.turns_of(2)]


def test_turns_say_who_took_up_which_positions_also_after_slots_were_dropped() -> None:
    memory = memory_of([2, 4, 1], [1, 1, 3])
    assert memory.turns_of(0) == [("agent 0", 2), ("agent 1", 1)]
    assert memory.turns_of(2) == [("agent 0", 1), ("agent 1", 3)]
    kept = memory.keep(memory.agents == 1)
    assert kept.turns_of(1) == [("agent 0", 4), ("agent 1", 1)]
    assert kept.select_rows([2, 0]).turns_of(1) == memory.turns_of(0)
    valid = torch.ones(3, 2, dtype=torch.bool)
    memory.extend(valid, "on trial", SlotKind.PROMPT)
    memory.forget_newest(valid)
    assert memory.turns_of(0) == [("agent 0", 2), ("agent 1", 1)]
    memory.extend(valid, "agent 1", SlotKind.TEXT)
    assert memory.turns_of(0) == [("agent 0", 2), ("agent 1", 3)]


def test_slots_that_moved_together_have_turns_as_long_as_what_is_left_of_them() -> None:
    memory = memory_of([3, 4, 2], [2, 1, 3])
    chosen = memory.valid.clone()
    chosen[0, 1] = False  # the first of the first agent's four columns is padding in this row
    compact = memory.keep(chosen)
    compact.reposition(Positions.REROTATE, [STILL] * LAYERS)
    assert compact.turns_of(0) == [("agent 0", 2), ("agent 1", 2)]
    assert compact.turns_of(1) == memory.turns_of(1)
    compact.reposition(Positions.PUBLISHED, None)
    assert compact.turns_of(0) == [(None, 4)], "positions that are taken twice are nobody's"


def test_a_choice_of_another_shape_is_refused() -> None:
    with pytest.raises(MemoryMismatchError, match=r"\(3, 2\), the memory \(3, 4\)"):
        memory_of([2, 4, 1]).keep(torch.ones(3, 2, dtype=torch.bool))


def test_rows_can_be_selected_in_any_order_and_twice() -> None:
    memory = memory_of([2, 4, 1], [1, 2, 3])
    chosen = memory.select_rows([2, 0, 2])
    assert [content(chosen, row) for row in range(3)] == [content(memory, row) for row in (2, 0, 2)]
    assert chosen.next_position.tolist() == [4, 3, 4]
    assert memory.select_rows([]).rows == 0


def test_what_is_cut_or_copied_shares_nothing_with_the_original() -> None:
    memory = memory_of([2, 4, 1])
    before = [part.clone() for part in tensors(memory)]
    for copy in (memory.clone(), memory.keep(memory.valid), memory.select_rows([0, 1, 2]), *memory.split_rows()):
        for part in tensors(copy):
            part.zero_()
        copy.extend(torch.ones(copy.rows, 1, dtype=torch.bool), "new", SlotKind.TEXT)
    assert all(map(torch.equal, before, tensors(memory)))
    assert memory.agent_names == ["agent 0"]


def test_appending_after_a_cut_goes_on_behind_the_largest_true_position() -> None:
    memory = memory_of([3, 3, 3], [2, 2, 2])
    kept = memory.keep(memory.kinds == int(SlotKind.PROMPT))  # the newest two are dropped
    positions = kept.extend(torch.ones(3, 2, dtype=torch.bool), "agent 0", SlotKind.TEXT)
    assert positions.tolist() == [[5, 6]] * 3
    emptied = memory.keep(torch.zeros_like(memory.valid))
    assert emptied.slots == 0
    assert emptied.extend(torch.ones(3, 1, dtype=torch.bool), "agent 0", SlotKind.TEXT).tolist() == [[5]] * 3


def test_a_long_memory_grows_by_a_bounded_step() -> None:
    memory = LatentMemory(1, 1)
    one = torch.ones(1, 1, dtype=torch.bool)
    memory.reserve(4000)
    memory.extend(torch.ones(1, 4000, dtype=torch.bool), "a", SlotKind.PROMPT)
    memory.write(0, torch.zeros(1, 1, 4000, 2), torch.zeros(1, 1, 4000, 2))
    assert memory.storage_bytes == 4000 * 16
    memory.extend(one, "a", SlotKind.TEXT)
    memory.write(0, torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert memory.storage_bytes <= 4256 * 16


def test_room_for_what_comes_next_moves_nothing() -> None:
    memory = memory_of([3, 4, 5])
    chosen = memory.valid & (memory.positions != 2)
    kept, roomy = memory.keep(chosen), memory.keep(chosen, room=7)
    assert equal(kept, roomy)
    place = roomy.keys(0).data_ptr()
    roomy.extend(torch.ones(3, 7, dtype=torch.bool), "next", SlotKind.PROMPT)
    heads, width = roomy.keys(0).shape[1], roomy.keys(0).shape[3]
    full, _ = roomy.write(0, *(torch.zeros(3, heads, 7, width, dtype=torch.float64) for _ in range(2)))
    assert full.data_ptr() == place
    assert torch.equal(full[:, :, : kept.slots], kept.keys(0))


def test_growing_keeps_what_was_written() -> None:
    blocks = [[1, 2, 3]] * 12
    grown = memory_of(*blocks)
    reserved = LatentMemory(3, LAYERS)
    reserved.reserve(100)
    assert reserved.slots == 0
    assert grown.slots == 36
    assert [slot[0] for slot in content(grown, 2)] == list(range(2000, 2036))
    assert grown.slot_bytes == LAYERS * 2 * HEADS * WIDTH * 8
    assert grown.storage_bytes >= 3 * 36 * grown.slot_bytes


def test_an_empty_memory_says_so() -> None:
    memory = LatentMemory(1, LAYERS)
    assert memory.slot_bytes == 0
    with pytest.raises(MemoryMismatchError, match="layer 0 of this memory is empty"):
        memory.keys(0)


# Rotation


def read_at(tiny: Any, model: Any, programs: Sequence[Program], offset: Sequence[int]) -> LatentMemory:
    from latentmas.backends.hf.rollout import Rollout, Row

    rollout = Rollout(model, tiny.alignment(model), [Row(program=program, seed=0) for program in programs])
    rollout.memory.next_position += torch.tensor(offset)
    rollout.run()
    return rollout.memory


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_keys_written_at_0_and_rotated_equal_keys_written_later(tiny: Any, kind: str) -> None:
    model = tiny.model("llama", rope_parameters=ROPES[kind])
    assert model.ropes is not None
    programs = [
        Program((Read(agent="a", tokens=tokens), Think(agent="a", steps=3), Read(agent="b", tokens=(5, 6))))
        for tokens in ((1, 2, 3, 4), (9, 8))
    ]
    here, later = (read_at(tiny, model, programs, offset) for offset in ((0, 0), (7, 301)))
    turned = here.rotate(torch.tensor([7, 301]), model.ropes)
    assert torch.equal(turned.positions, later.positions)
    assert torch.equal(turned.next_position, later.next_position)
    real = later.valid[:, None, :, None]
    for layer in range(model.layers):
        size = float(later.keys(layer).abs().max())
        apart = (turned.keys(layer) - later.keys(layer)) * real
        assert float(apart.abs().max()) < 1e-4 * size, "float32 angles: 301 radians are known to 3e-5"
        assert float(((here.keys(layer) - later.keys(layer)) * real).abs().max()) > 0.1 * size, (
            "rotation does something"
        )
        torch.testing.assert_close(turned.values(layer), here.values(layer), rtol=0, atol=0)
    back = turned.rotate(torch.tensor([-7, -301]), model.ropes)
    torch.testing.assert_close(back.keys(0), here.keys(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_keys_whose_angles_depend_on_length_are_not_rotated(tiny: Any, kind: str) -> None:
    assert tiny.model("llama", rope_parameters=ROPES[kind]).ropes is None


def test_interleaved_pairs_turn_as_complex_numbers() -> None:
    keys = torch.randn(2, 3, 5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rates = torch.tensor([1.0, 0.1, 0.01])  # 6 of 10 dimensions turn
    offset = torch.tensor([4, 9])
    angle = torch.polar(torch.ones(2, 3), offset[:, None] * rates).to(torch.complex128)[:, None, None]
    neighbours = torch.view_as_complex(keys[..., :6].reshape(2, 3, 5, 3, 2))
    expected = torch.cat([torch.view_as_real(neighbours * angle).flatten(-2), keys[..., 6:]], dim=-1)
    turned = Rope(rates, interleaved=True).rotate(keys, offset)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)
    halves = torch.complex(keys[..., :3], keys[..., 3:6]) * angle
    expected = torch.cat([halves.real, halves.imag, keys[..., 6:]], dim=-1)
    torch.testing.assert_close(Rope(rates).rotate(keys, offset), expected, rtol=0, atol=1e-5)


def test_no_slot_moves_before_position_0() -> None:
    memory = memory_of([2, 2, 2])
    ropes = [Rope(torch.ones(WIDTH // 2))] * memory.layers
    with pytest.raises(MemoryMismatchError, match="before position 0"):
        memory.rotate(torch.tensor([0, -1, 0]), ropes)
    cut = memory.keep(memory.positions == 1)
    assert cut.rotate(torch.tensor([-1, -1, -1]), ropes).positions.tolist() == [[0]] * 3


# Files


def test_a_memory_file_gives_back_exactly_what_was_saved(tiny: Any, tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = tiny.model(dtype=dtype)
        keep = Handover(agent="a", keep=KeepSpec(name="thoughts"))
        steps = [(Read(agent="a", tokens=tokens), Think(agent="a", steps=3), keep) for tokens in ((1, 2, 3), (4,))]
        ends = (Read(agent="é 😀", tokens=(5, 6)),)
        memory = read_at(tiny, model, [Program((*own, *ends)) for own in steps], (0, 0))
        memory.save(tmp_path / "memory", model.fingerprint)
        loaded = LatentMemory.load(tmp_path / "memory", model.fingerprint)
        assert equal(loaded, memory)
        assert loaded.turns == memory.turns
        assert loaded.keys(0).dtype == dtype
        assert loaded.next_position.tolist() == [8, 6]
        grown = [
            part.extend(torch.ones(2, 1, dtype=torch.bool), "b", SlotKind.TEXT) for part in (memory.clone(), loaded)
        ]
        assert torch.equal(*grown), "a loaded memory goes on where it was"


def test_a_memory_of_another_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    own, other = tiny.model(), tiny.model("llama")
    assert own.fingerprint != other.fingerprint
    memory_of([1, 2, 1]).save(tmp_path / "memory", other.fingerprint)
    with pytest.raises(MemoryMismatchError, match=f"fingerprint {other.fingerprint[:16]}, this model has"):
        LatentMemory.load(tmp_path / "memory", own.fingerprint)


def test_the_fingerprint_tells_dtypes_apart(tiny: Any) -> None:
    models = [tiny.model(dtype=dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    assert len({model.fingerprint for model in models}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_changed_weight_changes_the_fingerprint(tiny: Any, dtype: torch.dtype) -> None:
    causal = deepcopy(tiny.causal(dtype=dtype))
    before = fingerprint(causal)
    assert fingerprint(deepcopy(causal)) == before
    for weight in (causal.lm_head.weight, causal.model.norm.weight, causal.model.layers[1].mlp.up_proj.weight):
        flat = weight.data.view(-1)
        kept = flat[-3].clone()
        flat[-3] += 0.5
        assert fingerprint(causal) != before
        flat[-3] = kept
    assert fingerprint(causal) == before


def test_a_memory_that_cannot_be_written_is_one_sentence(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        LatentMemory(1, 0).save(tmp_path / "nowhere" / "memory.safetensors", "f")


def test_a_memory_file_that_lost_a_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    LatentMemory(1, 0).save(path, "f")
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("valid", "positions")}
    save_file(tensors, path, metadata)
    with pytest.raises(MemoryMismatchError, match="damaged"):
        LatentMemory.load(path, "f")


def test_what_is_no_memory_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemoryMismatchError, match="there is no memory file"):
        LatentMemory.load(tmp_path / "missing", "x")
    with pytest.raises(MemoryMismatchError, match="there is no memory file"):
        LatentMemory.load(tmp_path, "x")
    weights = tmp_path / "weights"
    save_file({"weight": torch.ones(2)}, weights)
    with pytest.raises(MemoryMismatchError, match="has format None; expected latentmas-memory-2"):
        LatentMemory.load(weights, "x")
    whole = tmp_path / "whole"
    memory_of([1, 2, 1]).save(whole, "x")
    for size in (0, 1, 8, 100, whole.stat().st_size - 1):
        torn = tmp_path / "torn"
        torn.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(MemoryMismatchError, match="is not a safetensors file"):
            LatentMemory.load(torn, "x")


def test_an_empty_memory_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(MemoryMismatchError, match="empty"):
        LatentMemory(1, LAYERS).save(tmp_path / "memory", "x")
