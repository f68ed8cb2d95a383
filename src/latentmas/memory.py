"""LatentMemory: the KV cache that agents leave behind, with what every slot is.

This module is the only place that appends, cuts, splits, joins, moves or counts slots. It knows nothing of models.

Shape letters: B rows in the batch, L layers, H key/value heads, S slots, D head width, T new slots; P is 1 or L and Q
is 1 or H: a memory holds the same slots in every layer and head until a hand-over chooses for each of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from latentmas.errors import MemoryMismatchError, StoreError
from latentmas.int8 import Packed, Range, pack
from latentmas.program import Positions, SlotKind, Storage
from latentmas.rope import Rope
from latentmas.turns import Turn, concatenate

FILE_FORMATS: Final = ("latentmas-memory-2", "latentmas-memory-1")
"""The first is written, all of them are read."""
GROWTH: Final = 1.5
LARGEST_STEP: Final = 256
"""A buffer that is too small grows to GROWTH times its length, but by no more than LARGEST_STEP slots: copying it every
256 tokens costs little beside attending to it 256 times, and half of a long memory would be a lot to keep empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What of a row's memory belongs to one agent and kind.

    Attributes:
        slots: Mean over layers and heads, where they hold different slots.
        bytes: Of their keys and values.
    """

    agent: str
    kind: SlotKind
    slots: float
    bytes: int


class Begun(NamedTuple):
    """Where a turn begins; it goes on to the next. `agent` is None where nobody knows whose it is."""

    agent: str | None
    start: int


class LatentMemory:
    """Keys and values of every layer, and for every slot: is it real, its position, its agent and kind.

    Rows are padded on the left of every Read, so pads lie between the real slots; `valid` tells them apart.
    One rollout owns a memory and appends to it in place (`extend`, then `write` once per layer). Everything else
    leaves this memory as it is and returns a new one, unless it is told to `release`.

    Attributes:
        agent_names: What the numbers in `agents` mean.
        slots: S, the used width of every buffer.
        next_position: ``[B]`` the position of the next token: one past the largest true position ever used,
            never the number of slots (DESIGN law 4), unless a hand-over said otherwise.
        made: ``[B]`` real slots that were ever in this memory.
        turns: For each row, who took up which positions, in order. Dropping slots changes nothing of that; by it a Join
            knows what several memories have in common.
    """

    def __init__(self, rows: int, layers: int, device: torch.device | str = "cpu", capacity: int = 0) -> None:
        self.agent_names: list[str] = []
        self.slots = 0
        self.next_position = torch.zeros(rows, dtype=torch.long, device=device)
        self.made = torch.zeros(rows, dtype=torch.long, device=device)
        self.turns: list[tuple[Begun, ...]] = [()] * rows
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._capacity = capacity
        self._valid = torch.zeros(rows, capacity, dtype=torch.bool, device=device)
        self._positions = torch.zeros(1, rows, 1, capacity, dtype=torch.long, device=device)  # [P, B, Q, S]
        self._agents = torch.zeros(1, rows, 1, capacity, dtype=torch.int16, device=device)
        self._kinds = torch.zeros(1, rows, 1, capacity, dtype=torch.uint8, device=device)

    @property
    def rows(self) -> int:
        return self.next_position.shape[0]

    @property
    def layers(self) -> int:
        return len(self._keys)

    @property
    def device(self) -> torch.device:
        return self.next_position.device

    @property
    def uniform(self) -> bool:
        """Whether every layer and head holds the same slots."""
        return self._positions.shape[0] == self._positions.shape[2] == 1

    @property
    def valid(self) -> Tensor:
        """``[B, S]`` bool: False where a slot is padding. The same in every layer and head."""
        return self._valid[:, : self.slots]

    @property
    def positions(self) -> Tensor:
        """``[B, S]`` positions, 0 where a slot is padding; ``[P, B, Q, S]`` where the memory is not uniform."""
        return self._label(self._positions)

    @property
    def agents(self) -> Tensor:
        """``[B, S]`` index into `agent_names`; ``[P, B, Q, S]`` where the memory is not uniform."""
        return self._label(self._agents)

    @property
    def kinds(self) -> Tensor:
        """``[B, S]`` values of `SlotKind`; ``[P, B, Q, S]`` where the memory is not uniform."""
        return self._label(self._kinds)

    def keys(self, layer: int) -> Tensor:
        """Return ``[B, H, S, D]``, rotated as the model stored them."""
        return self._used(self._keys[layer], layer)

    def values(self, layer: int) -> Tensor:
        """Return ``[B, H, S, D]``."""
        return self._used(self._values[layer], layer)

    @property
    def real_slots(self) -> Tensor:
        """``[B]`` slots of each row that are no padding."""
        return self.valid.sum(dim=1)

    @property
    def slot_bytes(self) -> int:
        """Bytes of the keys and values of one slot over all layers; 0 while nothing was written."""
        return sum(buffer.shape[1] * buffer.shape[3] * buffer.element_size() for buffer in self._buffers())

    @property
    def storage_bytes(self) -> int:
        """Bytes of the storages behind the keys and values, each counted once, padding and reserve included."""
        storages = {buffer.untyped_storage().data_ptr(): buffer.untyped_storage() for buffer in self._buffers()}
        return sum(storage.nbytes() for storage in storages.values())

    def agent_number(self, name: str) -> int:
        """Return the number of an agent, and give it one when it is new."""
        if name not in self.agent_names:
            self.agent_names.append(name)
        return self.agent_names.index(name)

    def agent_numbers(self, names: Sequence[str]) -> Tensor:
        """Return the number of each row's agent, ``[B]``."""
        return torch.tensor([self.agent_number(name) for name in names], dtype=torch.int16, device=self.device)

    def reserve(self, slots: int) -> None:
        """Make room for that many more slots, so that appending them moves nothing."""
        if self.slots + slots > self._capacity:
            self._grow(self.slots + slots)

    def extend(self, valid: Tensor, agents: str | Sequence[str], kind: SlotKind) -> Tensor:
        """Append T slots and return their positions, ``[B, T]``; `write` then fills each layer.

        Args:
            valid: ``[B, T]`` bool; padding gets position 0 and takes none.
            agents: Of each row, or one for all.
        """
        new = valid.shape[1]
        if self.slots + new > self._capacity:
            step = min(int(self._capacity * (GROWTH - 1)), LARGEST_STEP)
            self._grow(max(self.slots + new, self._capacity + step))
        span = slice(self.slots, self.slots + new)
        real = valid.long()
        positions = (self.next_position[:, None] + real.cumsum(dim=1) - 1) * real  # [B, T]
        self._valid[:, span] = valid
        self._positions[..., span] = positions[None, :, None]
        names = [agents] * self.rows if isinstance(agents, str) else list(agents)
        if names != [turns[-1].agent if turns else None for turns in self.turns]:
            self._begin_turns(names)
        self._agents[..., span] = self.agent_numbers(names)[None, :, None, None]
        self._kinds[..., span] = int(kind)
        self.next_position = self.next_position + real.sum(dim=1)
        self.made = self.made + real.sum(dim=1)
        self.slots += new
        return positions

    def _begin_turns(self, names: Sequence[str]) -> None:
        """Note where each agent begins to speak that did not speak last."""
        for row, (name, start) in enumerate(zip(names, self.next_position.tolist(), strict=True)):
            # What was read on trial or undone took no position in the end.
            earlier = tuple(turn for turn in self.turns[row] if turn.start < start)
            speaks_on = bool(earlier) and earlier[-1].agent == name
            self.turns[row] = earlier if speaks_on else (*earlier, Begun(name, start))

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the newest T slots of a layer; return all keys and values of it as views, ``[B, H, S, D]``.

        Args:
            keys: ``[B, H, T, D]``, rotated.
            values: ``[B, H, T, D]``; D may differ from that of the keys.
        """
        span = slice(self.slots - keys.shape[2], self.slots)
        full = []
        for buffers, new in ((self._keys, keys), (self._values, values)):
            buffer = buffers[layer]
            if buffer is None:
                buffer = new.new_empty(new.shape[0], new.shape[1], self._capacity, new.shape[3])
            elif buffer.shape[2] < self._capacity:
                longer = buffer.new_empty(*buffer.shape[:2], self._capacity, buffer.shape[3])
                longer[:, :, : span.start] = buffer[:, :, : span.start]
                buffer = longer
            buffers[layer] = buffer
            buffer[:, :, span] = new
            full.append(buffer[:, :, : self.slots])
        return full[0], full[1]

    def replace(self, rows: Tensor, anew: LatentMemory) -> None:
        """Take the keys and values of `anew` for the slots of some rows, in place; what the slots are stays.

        Args:
            rows: ``[b]`` which rows.
            anew: b rows with as many slots, in the same columns.
        """
        for buffers, others in ((self._keys, anew._keys), (self._values, anew._values)):
            for buffer, other in zip(buffers, others, strict=True):
                if buffer is not None and other is not None:
                    buffer[rows.to(buffer.device), :, : self.slots] = other[:, :, : self.slots]

    def forget_newest(self, valid: Tensor) -> None:
        """Take back an `extend` of slots that were read on trial; `valid` is what it was given."""
        new = valid.long().sum(dim=1)
        self.slots -= valid.shape[1]
        self.next_position, self.made = self.next_position - new, self.made - new

    def keep(self, chosen: Tensor, *, release: bool = False, room: int = 0) -> LatentMemory:
        """Return the chosen slots of each row, in their old order and at their old positions.

        Rows may keep different numbers of slots; shorter rows are padded on the left. Where nothing is dropped, padding
        stays as well, so that not one bit of what follows changes. `next_position` stays.

        Args:
            chosen: ``[B, S]`` bool, or ``[P, B, Q, S]``: a set for each layer or head, of equal size within a row.
                Padding is dropped even where it is chosen.
            release: Give up this memory layer by layer, so that the two never exist as a whole.
            room: Slots that will be appended, so that appending them moves nothing.

        Raises:
            MemoryMismatchError: The shape is another one, or the sets of a row differ in size.
        """
        sets = chosen[None, :, None] if chosen.dim() == 2 else chosen
        if sets.shape[1::2] != self.valid.shape:
            raise MemoryMismatchError(
                f"the choice has shape {tuple(chosen.shape)}, the memory {tuple(self.valid.shape)} (rows, slots)"
            )
        sets = sets & self.valid[None, :, None]
        kept = _sizes(sets)
        if bool((kept == self.real_slots).all()):
            everything = torch.arange(self.slots, device=self.device).expand(1, self.rows, 1, -1)
            return self._gather(everything, self.valid.clone(), release=release, room=room)
        return self._gather(*_places(sets, kept), release=release, room=room)

    def without_padding(self) -> LatentMemory:
        """Return the same slots in as few columns as they need."""
        return self._gather(*_places(self.valid[None, :, None], self.real_slots))

    def select_rows(self, rows: Sequence[int]) -> LatentMemory:
        """Return these rows, in this order; a row may be named more than once."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.device)
        result = LatentMemory(0, self.layers, self.device)
        result.agent_names = list(self.agent_names)
        result.slots, result._capacity = self.slots, self._capacity
        result.next_position, result.made = self.next_position[index], self.made[index]
        result.turns = [self.turns[row] for row in rows]
        result._valid = self._valid[index]
        result._positions, result._agents = self._positions[:, index], self._agents[:, index]
        result._kinds = self._kinds[:, index]
        for source, target in ((self._keys, result._keys), (self._values, result._values)):
            target[:] = [
                None if buffer is None else buffer.index_select(0, index.to(buffer.device)) for buffer in source
            ]
        return result

    def split_rows(self) -> list[LatentMemory]:
        """Return each row as a memory of its own, without padding."""
        return [self.select_rows([row]).without_padding() for row in range(self.rows)]

    def clone(self) -> LatentMemory:
        """Return a copy that shares nothing with this memory."""
        return self.select_rows(range(self.rows))

    def rotate(self, offset: Tensor, ropes: Sequence[Rope]) -> LatentMemory:
        """Return the memory as if everything in it had been read `offset` positions later.

        Args:
            offset: ``[B]`` positions, may be negative as long as no position becomes so.
            ropes: How each layer rotates its keys.
        """
        offset = offset.to(self.device)
        used, real = self._positions[..., : self.slots], self.valid[None, :, None]
        moved = torch.where(real, used, self.next_position[None, :, None, None]) + offset[None, :, None, None]
        if bool((moved < 0).any()):
            raise MemoryMismatchError(f"rotating by {offset.tolist()} moves a slot before position 0")
        result = self.clone()
        result._positions[..., : self.slots] = moved * real
        result.next_position = self.next_position + offset
        result.turns = [
            tuple(Begun(turn.agent, max(0, turn.start + by)) if turn.start else turn for turn in turns)
            for turns, by in zip(self.turns, offset.tolist(), strict=True)
        ]
        result._move(ropes, [offset] * self.layers)
        return result

    def reposition(self, policy: Positions, ropes: Sequence[Rope] | None) -> None:
        """Decide where the slots are and where the next token goes, in place, after slots were dropped.

        Args:
            policy: ``true`` leaves everything; ``rerotate`` moves the slots to 0, 1, 2 ... and turns their keys;
                ``published`` leaves keys where they are and lets the next token follow the number of slots.
            ropes: How each layer rotates its keys; needed where slots move.
        """
        if policy is Positions.TRUE:
            return
        if policy is Positions.REROTATE:
            assert ropes is not None
            compact = ((self.valid.cumsum(dim=1) - 1) * self.valid)[None, :, None]  # [1, B, 1, S]
            offset = compact - self._positions[..., : self.slots] * self.valid[None, :, None]  # [P, B, Q, S]
            self._move(ropes, [offset[layer if len(offset) > 1 else 0] for layer in range(self.layers)])
            self.turns = self._compact_turns()
            self._positions[..., : self.slots] = compact
        else:
            self.turns = [(Begun(None, 0),)] * self.rows  # positions are taken twice
        self.next_position = self.real_slots

    def _compact_turns(self) -> list[tuple[Begun, ...]]:
        """Return the turns once the slots have moved together to 0, 1, 2 ...; nobody's where heads differ in them.

        A row is looked at by itself: what others in the batch kept has no part in where its turns lie.
        """
        used, compact = self._positions[..., : self.slots], []
        for row, turns in enumerate(self.turns):
            starts = torch.tensor([turn.start for turn in turns], dtype=torch.long, device=self.device)
            before = used[:, row, :, None] < starts[:, None]  # [P, Q, turns, S]
            counts = (before & self.valid[row]).sum(dim=-1)
            agreed = bool((counts == counts[:1, :1]).all())
            anew = zip(turns, counts[0, 0].tolist(), strict=True)
            compact.append(tuple(Begun(turn.agent, at) for turn, at in anew) if agreed else (Begun(None, 0),))
        return compact

    @classmethod
    def join(cls, parts: Sequence[LatentMemory], ropes: Sequence[Rope]) -> LatentMemory:
        """Return memories that were made independently, concatenated, each turn of an agent once.

        What several parts hold of the same agent is there once, as the first of them has it; and positions count
        once what several parts count, also where its slots were dropped. So the next position is that of the union.

        Args:
            parts: At least one, all of the same rows, layers and widths.
            ropes: How each layer rotates its keys.

        Raises:
            MemoryMismatchError: Heads hold different numbers of slots of an agent that is there once.
        """
        rows, layers, device = parts[0].rows, parts[0].layers, parts[0].device
        sets, heads = (max(part._positions.shape[axis] for part in parts) for axis in (0, 2))
        result = cls(rows, layers, device)
        positions, agents, kinds, wanted = [], [], [], []
        seen: list[Tensor] = []
        unions = [concatenate([part.turns_of(row) for part in parts]) for row in range(rows)]
        result.turns = [_begun(union.turns) for union in unions]
        offsets = []
        for number, part in enumerate(parts):
            shape = (sets, rows, heads, part.slots)
            valid = part.valid[None, :, None].expand(shape)
            numbers = result.agent_numbers_of(part)[part._agents[..., : part.slots].long()].expand(shape)
            again = torch.zeros(shape, dtype=torch.bool, device=device)
            for row, before in enumerate(_agents_of_rows(seen, rows)):
                if before:
                    known = torch.tensor(sorted(before), dtype=numbers.dtype, device=device)
                    again[:, row] = torch.isin(numbers[:, row], known) & valid[:, row]
            seen.append(torch.where(valid, numbers, -1))
            offset = part._offsets([union.starts[number] for union in unions])  # [B], or [P, B, Q, S]
            offsets.append(offset)
            moved = part._positions[..., : part.slots] + (offset[None, :, None, None] if offset.dim() == 1 else offset)
            positions.append(moved.expand(shape) * valid)
            agents.append(numbers)
            kinds.append(part._kinds[..., : part.slots].expand(shape))
            wanted.append(valid & ~again)
        result.slots = result._capacity = sum(part.slots for part in parts)
        result.next_position = torch.tensor([union.end for union in unions], dtype=torch.long, device=device)
        result._valid = torch.cat([part.valid for part in parts], dim=1)
        result._positions, result._agents = torch.cat(positions, dim=-1), torch.cat(agents, dim=-1)
        result._kinds = torch.cat(kinds, dim=-1)
        for layer in range(layers):
            moved_pairs = [
                ropes[layer].move(keys, values, own if own.dim() == 1 else own[layer if len(own) > 1 else 0])
                # What stays where it is is not turned, so that not one of its bits changes.
                if bool(own.any())
                else (keys, values)
                for part, own in zip(parts, offsets, strict=True)
                for keys, values in [(part.keys(layer), part.values(layer))]
            ]
            result._keys[layer] = torch.cat([keys for keys, _ in moved_pairs], dim=2)
            result._values[layer] = torch.cat([values for _, values in moved_pairs], dim=2)
        chosen = torch.cat(wanted, dim=-1)
        once = _sizes(chosen)
        result.made = sum((part.made - part.real_slots for part in parts), once)
        order, real = _places(chosen, once)
        return result._gather(result._by_position(order, real), real, release=True)

    @classmethod
    def stack(cls, parts: Sequence[LatentMemory]) -> LatentMemory:
        """Return the rows of several memories of the same layers in one batch; shorter ones are padded on the left."""
        layers, device = parts[0].layers, parts[0].device
        sets, heads = (max(part._positions.shape[axis] for part in parts) for axis in (0, 2))
        width = max(part.slots for part in parts)
        result = cls(sum(part.rows for part in parts), layers, device, capacity=width)
        result.slots = width
        result.next_position = torch.cat([part.next_position for part in parts])
        result.made = torch.cat([part.made for part in parts])
        result.turns = [turns for part in parts for turns in part.turns]
        result._valid = torch.cat([pad(part.valid, (width - part.slots, 0)) for part in parts])
        labels = []
        for part in parts:
            numbers = result.agent_numbers_of(part)[part._agents[..., : part.slots].long()]
            own = (part._positions[..., : part.slots], numbers, part._kinds[..., : part.slots])
            labels.append([pad(label, (width - part.slots, 0)).expand(sets, -1, heads, -1) for label in own])
        result._positions, result._agents, result._kinds = (
            torch.cat(same, dim=1) for same in zip(*labels, strict=True)
        )
        for name, buffers in (("keys", result._keys), ("values", result._values)):
            for layer in range(layers):
                filled = [pad(getattr(part, name)(layer), (0, 0, width - part.slots, 0)) for part in parts]
                buffers[layer] = torch.cat(filled)
        return result

    def turns_of(self, row: int) -> list[Turn]:
        """Return who took up how many positions of a row, in order, from 0 to the next position."""
        end = int(self.next_position[row])
        begun = [turn for turn in self.turns[row] if turn.start < end] or [Begun(None, 0)] * (end > 0)
        starts = [0, *(turn.start for turn in begun[1:]), end]
        return [Turn(turn.agent, stop - start) for turn, (start, stop) in zip(begun, pairwise(starts), strict=False)]

    def _offsets(self, starts: Sequence[Sequence[int]]) -> Tensor:
        """Return by how much each slot moves, ``[P, B, Q, S]``; ``[B]`` where all of a row move alike.

        Args:
            starts: Where the turns of each row shall begin.
        """
        begun = [_begun(self.turns_of(row)) for row in range(self.rows)]
        moves = [
            [new - turn.start for turn, new in zip(turns, anew, strict=True)] or [0]
            for turns, anew in zip(begun, starts, strict=True)
        ]
        if all(len(set(of_row)) == 1 for of_row in moves):
            return torch.tensor([of_row[0] for of_row in moves], dtype=torch.long, device=self.device)
        used = self._positions[..., : self.slots]
        offset = torch.zeros_like(used)
        for row, (turns, of_row) in enumerate(zip(begun, moves, strict=True)):
            for turn, by in zip(turns, of_row, strict=False):
                offset[:, row] = torch.where(used[:, row] >= turn.start, by, offset[:, row])
        return offset * self.valid[None, :, None]

    def _move(self, ropes: Sequence[Rope], offsets: Sequence[Tensor]) -> None:
        """Rotate what is in every layer, in place; see `Rope.rotate` for the shapes of offsets."""
        for layer, (rope, offset) in enumerate(zip(ropes, offsets, strict=True)):
            if self._keys[layer] is not None:
                keys, values = self.keys(layer), self.values(layer)
                moved_keys, moved_values = rope.move(keys, values, offset)
                keys.copy_(moved_keys)
                values.copy_(moved_values)

    def agent_numbers_of(self, other: LatentMemory) -> Tensor:
        """Return which numbers here the agents of another memory have, and give them one."""
        numbers = [self.agent_number(name) for name in other.agent_names]
        return torch.tensor(numbers or [0], dtype=torch.int16, device=self.device)

    def through_int8(self) -> tuple[int, Tensor, Tensor]:
        """Store keys and values as int8 and read them back, layer by layer, in place.

        Returns:
            Bytes they took as int8, padding included, and the error of keys and of values, ``[B]`` each: the root mean
            square of the difference over the real slots, as a share of that of what was stored.
        """
        bytes_stored, errors = 0, []
        for buffers, by in ((self._keys, Range.CHANNEL), (self._values, Range.TOKEN)):
            lost, whole = (torch.zeros(self.rows, dtype=torch.float64, device=self.device) for _ in range(2))
            for buffer in buffers:
                if buffer is None:
                    continue
                used, real = buffer[:, :, : self.slots], self.valid.to(buffer.device)
                packed = pack(used, real, by)
                back = packed.unpack()
                bytes_stored += packed.nbytes
                for total, part in ((lost, back.double() - used.double()), (whole, used.double())):
                    square = (part.pow(2).sum(dim=(1, 3)) * real).sum(dim=1)
                    total.add_(square.to(self.device))
                buffer[:, :, : self.slots] = torch.where(real[:, None, :, None], back, used)
            errors.append((lost / whole.clamp_min(1e-300)).sqrt())
        return bytes_stored, errors[0], errors[1]

    def shares(self) -> list[list[Share]]:
        """Return for each row what belongs to whom, in the order in which it lies; measured from the tensors."""
        codes = self._agents[..., : self.slots].long() * len(SlotKind) + self._kinds[..., : self.slots]  # [P, B, Q, S]
        codes = torch.where(self.valid[None, :, None], codes, -1)
        found: list[list[tuple[int, Share]]] = [[] for _ in range(self.rows)]
        for code in torch.bincount((codes + 1).flatten())[1:].nonzero().flatten().tolist():
            here = codes == code
            counts = here.sum(dim=-1).double().cpu()  # [P, B, Q]
            begins = here.any(dim=2).any(dim=0).byte().argmax(dim=-1).tolist()  # [B]
            slots = counts.mean(dim=(0, 2)).tolist()
            sizes = torch.zeros(self.rows, dtype=torch.float64)
            for layer in range(self.layers):
                of_layer = counts[layer if len(counts) > 1 else 0]  # [B, Q]
                for buffer in (self._keys[layer], self._values[layer]):
                    if buffer is not None:
                        of_heads = of_layer.expand(-1, buffer.shape[1]).sum(dim=1)
                        sizes += of_heads * buffer.shape[3] * buffer.element_size()
            agent, kind = divmod(code, len(SlotKind))
            for row, (mean, size) in enumerate(zip(slots, sizes.tolist(), strict=True)):
                if mean:
                    name = self.agent_names[agent]
                    share = Share(agent=name, kind=SlotKind(kind), slots=mean, bytes=round(size))
                    found[row].append((begins[row], share))
        # By the row alone: agents have their numbers from whichever row of the batch brought them first.
        return [[share for _, share in sorted(of_row, key=lambda item: item[0])] for of_row in found]

    def save(self, path: Path | str, fingerprint: str, storage: Storage = Storage.NATIVE) -> None:
        """Write a safetensors file that only a model with this fingerprint will read back.

        Args:
            storage: ``int8`` packs keys per channel and values per token; `load` unpacks them.
        """
        tensors = {
            "valid": self.valid,
            "next_position": self.next_position,
            "made": self.made,
            **{name: getattr(self, f"_{name}")[..., : self.slots] for name in ("positions", "agents", "kinds")},
        }
        for layer in range(self.layers):
            for name, tensor, by in (
                ("keys", self.keys(layer), Range.CHANNEL),
                ("values", self.values(layer), Range.TOKEN),
            ):
                if storage is Storage.NATIVE:
                    tensors[f"{name}.{layer}"] = tensor
                else:
                    packed = pack(tensor, self.valid.to(tensor.device), by)
                    parts = packed.tensors()
                    tensors |= {f"{name}.{layer}.{part}": content for part, content in parts.items()}
        first = next(self._buffers(), None)
        metadata = {
            "format": FILE_FORMATS[0],
            "fingerprint": fingerprint,
            "agent_names": json.dumps(self.agent_names),
            "turns": json.dumps(self.turns),
            "layers": str(self.layers),
            "storage": storage.value,
            "dtype": str(first.dtype if first is not None else None).removeprefix("torch."),
        }
        try:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, metadata)
        except (SafetensorError, OSError) as error:
            raise StoreError(f"the memory cannot be written to {str(path)!r}: {error}") from error

    @classmethod
    def load(cls, path: Path | str, fingerprint: str, device: torch.device | str = "cpu") -> LatentMemory:
        """Read a file that `save` wrote.

        Raises:
            MemoryMismatchError: There is no such file, it is no memory, or it was made by another model.
        """
        if not Path(path).is_file():
            raise MemoryMismatchError(f"there is no memory file {str(path)!r}")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise MemoryMismatchError(f"{str(path)!r} is not a safetensors file: {error}") from error
        if metadata.get("format") not in FILE_FORMATS:
            raise MemoryMismatchError(
                f"{str(path)!r} has format {metadata.get('format')!r}; expected {' or '.join(FILE_FORMATS)}"
            )
        if metadata["fingerprint"] != fingerprint:
            raise MemoryMismatchError(
                f"{str(path)!r} was made by the model with fingerprint {metadata['fingerprint'][:16]}, this model has "
                f"{fingerprint[:16]}; it belongs to another model, or to this one in another dtype: load that one"
            )
        try:
            valid = tensors["valid"]
            memory = cls(valid.shape[0], int(metadata["layers"]), device, capacity=valid.shape[1])
            memory.agent_names = json.loads(metadata["agent_names"])
            memory.slots = valid.shape[1]
            memory.next_position = tensors["next_position"]
            memory.made = tensors.get("made", memory.next_position)
            # Older files do not say who spoke when; their positions belong to nobody else's.
            known = json.loads(metadata.get("turns", "null")) or [[(None, 0)]] * valid.shape[0]
            memory.turns = [tuple(Begun(agent, start) for agent, start in turns) for turns in known]
            memory._valid = valid
            memory._positions, memory._agents, memory._kinds = (
                labels if (labels := tensors[name]).dim() == 4 else labels[None, :, None]
                for name in ("positions", "agents", "kinds")
            )
            for name, buffers in (("keys", memory._keys), ("values", memory._values)):
                for layer in range(memory.layers):
                    if metadata.get("storage") == Storage.INT8.value:
                        dtype = getattr(torch, metadata["dtype"])
                        buffers[layer] = Packed.from_tensors(tensors, f"{name}.{layer}", dtype).unpack()
                    else:
                        buffers[layer] = tensors[f"{name}.{layer}"]
        except (AttributeError, KeyError, ValueError) as error:
            raise MemoryMismatchError(f"{str(path)!r} is damaged: {error} is missing or broken") from error
        return memory

    def _gather(self, order: Tensor, kept: Tensor, *, release: bool = False, room: int = 0) -> LatentMemory:
        """Return the slots that `order` names, ``[P, B, Q, S']``; `kept` says which of them are real, ``[B, S']``."""
        sets = max(order.shape[0], self._positions.shape[0])
        heads = max(order.shape[2], self._positions.shape[2])
        width = kept.shape[1]
        # Room is gathered as well, from anywhere, where there is anything: it is overwritten before it is used.
        room = room if self.slots else 0
        order, kept = pad(order, (0, room)), pad(kept, (0, room))
        result = LatentMemory(self.rows, self.layers, self.device, capacity=width + room)
        result.agent_names = list(self.agent_names)
        result.slots = width
        result.next_position, result.made = self.next_position.clone(), self.made.clone()
        result.turns = list(self.turns)
        result._valid = kept
        full = order.expand(sets, -1, heads, -1)
        result._positions, result._agents, result._kinds = (
            label[..., : self.slots].expand(sets, -1, heads, -1).gather(3, full)
            for label in (self._positions, self._agents, self._kinds)
        )
        result._positions *= kept[None, :, None]
        for source, target in ((self._keys, result._keys), (self._values, result._values)):
            for layer, buffer in enumerate(source):
                if buffer is not None:
                    target[layer] = _take(buffer, order[layer if len(order) > 1 else 0].to(buffer.device))
                    if release:
                        source[layer] = None
        return result

    def _by_position(self, order: Tensor, real: Tensor) -> Tensor:
        """Return the slots that `order` names as they lie one behind the other, padding first; see `_places`.

        Whose turn comes first may be held by a later memory alone: then its slots come first as well.
        """
        sets, heads = (max(order.shape[axis], self._positions.shape[axis]) for axis in (0, 2))
        order = order.expand(sets, -1, heads, -1)
        positions = self._positions[..., : self.slots].expand(sets, -1, heads, -1).gather(3, order)
        places = torch.where(real[None, :, None], positions, -1).argsort(dim=-1, stable=True)
        return order.gather(3, places)

    def _label(self, label: Tensor) -> Tensor:
        used = label[..., : self.slots]
        return used[0, :, 0] if self.uniform else used

    def _buffers(self) -> Iterator[Tensor]:
        return (buffer for buffer in (*self._keys, *self._values) if buffer is not None)

    def _used(self, buffer: Tensor | None, layer: int) -> Tensor:
        if buffer is None:
            raise MemoryMismatchError(f"layer {layer} of this memory is empty: nothing was read yet")
        return buffer[:, :, : self.slots]

    def _grow(self, capacity: int) -> None:
        """Lengthen the labels; keys and values follow layer by layer in `write`, so one layer at a time is copied."""
        for name in ("_valid", "_positions", "_agents", "_kinds"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(*old.shape[:-1], capacity)
            new[..., : self.slots] = old[..., : self.slots]
            setattr(self, name, new)
        self._capacity = capacity


def _sizes(sets: Tensor) -> Tensor:
    """Return how many slots each row keeps, ``[B]``, where each of ``[P, B, Q, S]`` keeps as many.

    Raises:
        MemoryMismatchError: They do not.
    """
    counts = sets.sum(dim=-1)  # [P, B, Q]
    sizes = counts[0, :, 0]
    if bool((counts != sizes[None, :, None]).any()):
        raise MemoryMismatchError(
            "layers or heads would keep different numbers of slots in one row; choose sets of equal size"
        )
    return sizes


def _places(sets: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the chosen slots are, and which of these places are real.

    Args:
        sets: ``[P, B, Q, S]`` bool.
        kept: ``[B]`` how many each row keeps.

    Returns:
        ``[P, B, Q, S']`` slots in ascending order at the right end of each row, and ``[B, S']`` bool.
    """
    width = int(kept.max()) if len(kept) else 0
    real = torch.arange(width, device=sets.device) >= width - kept[:, None]
    order = torch.zeros(*sets.shape[:3], width, dtype=torch.long, device=sets.device)
    # As many places are real as slots were chosen, set by set; so the next slot goes to the next of them.
    slots = sets.flatten().nonzero()[:, 0] % max(1, sets.shape[-1])
    return order.masked_scatter(real[None, :, None], slots), real


def _take(buffer: Tensor, order: Tensor) -> Tensor:
    """Return ``[B, H, S', D]``: the slots of each row, ``[B, Q, S']``. Whole slots are copied, not elements."""
    rows, heads, capacity, width = buffer.shape
    first = torch.arange(rows * heads, device=buffer.device).view(rows, heads, 1) * capacity
    places = (first + order).flatten()
    taken = buffer.reshape(rows * heads * capacity, width).index_select(0, places)
    return taken.view(rows, heads, order.shape[2], width)


def _begun(turns: Sequence[Turn]) -> tuple[Begun, ...]:
    ends = accumulate(turn.length for turn in turns)
    return tuple(Begun(turn.agent, end - turn.length) for turn, end in zip(turns, ends, strict=True))


def _agents_of_rows(seen: Sequence[Tensor], rows: int) -> list[set[int]]:
    """Return which agents each row has in any of the parts, ``[P, B, Q, S]`` each with -1 for padding."""
    return [
        {agent for part in seen for agent in torch.unique(part[:, row]).tolist() if agent >= 0} for row in range(rows)
    ]
