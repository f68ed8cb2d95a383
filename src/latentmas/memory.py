"""LatentMemory: the KV cache that agents leave behind, with what every slot is.

This module is the only place that appends, cuts, splits, rotates or counts slots. It knows nothing of models.

Shape letters: B rows in the batch, L layers, H key/value heads, S slots, D head width, T new slots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentmas.errors import MemoryMismatchError, StoreError
from latentmas.program import SlotKind

FILE_FORMAT: Final = "latentmas-memory-1"
GROWTH: Final = 1.5
"""A buffer that is too small grows to this many times its length, so that appending costs little on average."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding whose frequencies do not depend on length.

    Attributes:
        inverse_frequencies: ``[R/2]`` float32, radians per position.
        interleaved: Pairs are neighbours (GPT-J) instead of the two halves of the rotated part (Llama).
    """

    inverse_frequencies: Tensor
    interleaved: bool = False

    def rotate(self, keys: Tensor, offset: Tensor) -> Tensor:
        """Return keys written at position p as they would be at ``p + offset``.

        The keys' own length (YaRN scales it) is kept: a rotation by an offset has no scale.

        Args:
            keys: ``[B, H, S, D]``; the first R of D are rotated, the rest pass through.
            offset: ``[B]`` positions.
        """
        width = 2 * self.inverse_frequencies.numel()
        turning, passing = keys[..., :width].float(), keys[..., width:]
        angle = offset.to(keys.device)[:, None].float() * self.inverse_frequencies.to(keys.device)  # [B, R/2]
        cos, sin = (part[:, None, None, :] for part in (angle.cos(), angle.sin()))  # [B, 1, 1, R/2]
        if self.interleaved:
            first, second = turning[..., 0::2], turning[..., 1::2]
        else:
            first, second = turning.chunk(2, dim=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        joined = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        return torch.cat([joined.to(keys.dtype), passing], dim=-1)


class LatentMemory:
    """Keys and values of every layer, and for every slot: is it real, its true position, its agent and kind.

    Rows are padded on the left of every Read, so pads lie between the real slots; `valid` tells them apart.
    One rollout owns a memory and appends to it in place (`extend`, then `write` once per layer). Everything else
    (`keep`, `select_rows`, `split_rows`, `rotate`) leaves this memory as it is and returns a new one.

    Attributes:
        agent_names: What the numbers in `agents` mean.
        slots: S, the used width of every buffer.
        next_position: ``[B]`` the position of the next token: one past the largest true position ever used,
            never the number of slots (DESIGN law 4).
    """

    def __init__(self, rows: int, layers: int, device: torch.device | str = "cpu", capacity: int = 0) -> None:
        self.agent_names: list[str] = []
        self.slots = 0
        self.next_position = torch.zeros(rows, dtype=torch.long, device=device)
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._capacity = capacity
        self._valid = torch.zeros(rows, capacity, dtype=torch.bool, device=device)
        self._positions = torch.zeros(rows, capacity, dtype=torch.long, device=device)
        self._agents = torch.zeros(rows, capacity, dtype=torch.int16, device=device)
        self._kinds = torch.zeros(rows, capacity, dtype=torch.uint8, device=device)

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
    def valid(self) -> Tensor:
        """``[B, S]`` bool: False where a slot is padding."""
        return self._valid[:, : self.slots]

    @property
    def positions(self) -> Tensor:
        """``[B, S]`` true positions; 0 where a slot is padding."""
        return self._positions[:, : self.slots]

    @property
    def agents(self) -> Tensor:
        """``[B, S]`` index into `agent_names`."""
        return self._agents[:, : self.slots]

    @property
    def kinds(self) -> Tensor:
        """``[B, S]`` values of `SlotKind`."""
        return self._kinds[:, : self.slots]

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
        buffers = [buffer for buffer in (*self._keys, *self._values) if buffer is not None]
        return sum(buffer.shape[1] * buffer.shape[3] * buffer.element_size() for buffer in buffers)

    @property
    def storage_bytes(self) -> int:
        """Bytes of the buffers behind the keys and values, padding and reserve included."""
        buffers = [buffer for buffer in (*self._keys, *self._values) if buffer is not None]
        return sum(buffer.untyped_storage().nbytes() for buffer in buffers)

    def agent_number(self, name: str) -> int:
        """Return the number of an agent, and give it one when it is new."""
        if name not in self.agent_names:
            self.agent_names.append(name)
        return self.agent_names.index(name)

    def reserve(self, slots: int) -> None:
        """Make room for that many more slots, so that appending them moves nothing."""
        if self.slots + slots > self._capacity:
            self._grow(self.slots + slots)

    def extend(self, valid: Tensor, agent: str, kind: SlotKind) -> Tensor:
        """Append T slots of an agent and return their positions, ``[B, T]``; `write` then fills each layer.

        Args:
            valid: ``[B, T]`` bool; padding gets position 0 and takes none.
        """
        new = valid.shape[1]
        if self.slots + new > self._capacity:
            self._grow(max(self.slots + new, int(self._capacity * GROWTH)))
        span = slice(self.slots, self.slots + new)
        real = valid.long()
        positions = (self.next_position[:, None] + real.cumsum(dim=1) - 1) * real  # [B, T]
        self._valid[:, span] = valid
        self._positions[:, span] = positions
        self._agents[:, span] = self.agent_number(agent)
        self._kinds[:, span] = int(kind)
        self.next_position = self.next_position + real.sum(dim=1)
        self.slots += new
        return positions

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

    def keep(self, chosen: Tensor) -> LatentMemory:
        """Return the chosen slots of each row, in their old order and at their old positions.

        Rows may keep different numbers of slots; shorter rows are padded on the left. `next_position` stays.

        Args:
            chosen: ``[B, S]`` bool. Padding is dropped even where it is chosen.
        """
        if chosen.shape != self.valid.shape:
            raise MemoryMismatchError(
                f"the choice has shape {tuple(chosen.shape)}, the memory {tuple(self.valid.shape)} (rows, slots)"
            )
        chosen = chosen & self.valid
        width = int(chosen.sum(dim=1).max()) if self.rows else 0
        # Stable, so chosen slots move to the right end of the row without changing their order.
        order = chosen.long().argsort(dim=1, stable=True)[:, self.slots - width :]  # [B, width]
        kept = chosen.gather(1, order)
        result = LatentMemory(self.rows, self.layers, self.device, capacity=width)
        result.agent_names = list(self.agent_names)
        result.slots = width
        result.next_position = self.next_position.clone()
        result._valid = kept
        result._positions = self.positions.gather(1, order) * kept
        result._agents = self.agents.gather(1, order)
        result._kinds = self.kinds.gather(1, order)
        for source, target in ((self._keys, result._keys), (self._values, result._values)):
            for layer, buffer in enumerate(source):
                if buffer is not None:
                    index = order.to(buffer.device)[:, None, :, None]
                    target[layer] = buffer.gather(2, index.expand(-1, buffer.shape[1], -1, buffer.shape[3]))
        return result

    def select_rows(self, rows: Sequence[int]) -> LatentMemory:
        """Return these rows, in this order; a row may be named more than once."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.device)
        result = LatentMemory(0, self.layers, self.device)
        result.agent_names = list(self.agent_names)
        result.slots, result._capacity = self.slots, self._capacity
        result.next_position = self.next_position[index]
        result._valid, result._positions = self._valid[index], self._positions[index]
        result._agents, result._kinds = self._agents[index], self._kinds[index]
        for source, target in ((self._keys, result._keys), (self._values, result._values)):
            target[:] = [
                None if buffer is None else buffer.index_select(0, index.to(buffer.device)) for buffer in source
            ]
        return result

    def split_rows(self) -> list[LatentMemory]:
        """Return each row as a memory of its own, without padding."""
        singles = (self.select_rows([row]) for row in range(self.rows))
        return [single.keep(single.valid) for single in singles]

    def clone(self) -> LatentMemory:
        """Return a copy that shares nothing with this memory."""
        return self.select_rows(range(self.rows))

    def rotate(self, offset: Tensor, rope: Rope) -> LatentMemory:
        """Return the memory as if everything in it had been read `offset` positions later.

        Args:
            offset: ``[B]`` positions, may be negative as long as no position becomes so.
        """
        offset = offset.to(self.device)
        lowest = torch.where(self.valid, self.positions, self.next_position[:, None]) + offset[:, None]
        if bool((lowest < 0).any()):
            raise MemoryMismatchError(f"rotating by {offset.tolist()} moves a slot before position 0")
        result = self.clone()
        result._positions[:, : self.slots] = (self.positions + offset[:, None]) * self.valid
        result.next_position = self.next_position + offset
        result._keys = [None if buffer is None else rope.rotate(buffer, offset) for buffer in result._keys]
        return result

    def save(self, path: Path | str, fingerprint: str) -> None:
        """Write a safetensors file that only a model with this fingerprint will read back."""
        tensors = {
            "valid": self.valid,
            "positions": self.positions,
            "next_position": self.next_position,
            "agents": self.agents,
            "kinds": self.kinds,
        }
        for layer in range(self.layers):
            tensors[f"keys.{layer}"], tensors[f"values.{layer}"] = self.keys(layer), self.values(layer)
        metadata = {
            "format": FILE_FORMAT,
            "fingerprint": fingerprint,
            "agent_names": json.dumps(self.agent_names),
            "layers": str(self.layers),
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
        if metadata.get("format") != FILE_FORMAT:
            raise MemoryMismatchError(f"{str(path)!r} has format {metadata.get('format')!r}; expected {FILE_FORMAT!r}")
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
            memory._valid, memory._positions = valid, tensors["positions"]
            memory._agents, memory._kinds = tensors["agents"], tensors["kinds"]
            memory._keys = [tensors[f"keys.{layer}"] for layer in range(memory.layers)]
            memory._values = [tensors[f"values.{layer}"] for layer in range(memory.layers)]
        except (KeyError, ValueError) as error:
            raise MemoryMismatchError(f"{str(path)!r} is damaged: {error} is missing or broken") from error
        return memory

    def _used(self, buffer: Tensor | None, layer: int) -> Tensor:
        if buffer is None:
            raise MemoryMismatchError(f"layer {layer} of this memory is empty: nothing was read yet")
        return buffer[:, :, : self.slots]

    def _grow(self, capacity: int) -> None:
        """Lengthen the labels; keys and values follow layer by layer in `write`, so one layer at a time is copied."""
        for name in ("_valid", "_positions", "_agents", "_kinds"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(old.shape[0], capacity)
            new[:, : self.slots] = old[:, : self.slots]
            setattr(self, name, new)
        self._capacity = capacity
