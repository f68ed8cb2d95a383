"""What the start-up probe measures on a model, as it is and with faults planted in our side of it.

    python benchmarks/probe.py MODEL_FOLDER [MODEL_FOLDER ...] --dtype bfloat16

A fault is told from rounding where some figure of its line is above the tolerance in the last line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from latentmas.backends.hf import probe, verify
from latentmas.backends.hf.load import LoadedModel, LoadOptions, load_model, load_tokenizer
from latentmas.memory import LatentMemory

extend, logits = LatentMemory.extend, LoadedModel.logits


def by_slots(memory: LatentMemory, valid: torch.Tensor, agents: Any, kind: Any) -> torch.Tensor:
    first = memory.slots
    positions = extend(memory, valid, agents, kind)
    return torch.arange(first, first + valid.shape[1]).expand_as(positions)


def one_early(memory: LatentMemory, valid: torch.Tensor, agents: Any, kind: Any) -> torch.Tensor:
    positions = extend(memory, valid, agents, kind)
    return positions - 1 if memory.slots > valid.shape[1] else positions


def one_late(memory: LatentMemory, valid: torch.Tensor, agents: Any, kind: Any) -> torch.Tensor:
    positions = extend(memory, valid, agents, kind)
    return positions + 1 if memory.slots > valid.shape[1] else positions


def stretched(model: LoadedModel, hidden: torch.Tensor) -> torch.Tensor:
    return logits(model, hidden) * 1.1


FAULTS: dict[str, tuple[type, str, Callable[..., torch.Tensor]]] = {
    "positions by slot count": (LatentMemory, "extend", by_slots),
    "one position early": (LatentMemory, "extend", one_early),
    "one position late": (LatentMemory, "extend", one_late),
    "logits 10 % too large": (LoadedModel, "logits", stretched),
}


@contextmanager
def planted(owner: type, name: str, fault: Callable[..., torch.Tensor]) -> Iterator[None]:
    honest = getattr(owner, name)
    setattr(owner, name, fault)
    try:
        yield
    finally:
        setattr(owner, name, honest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    print(f"{'':<26}{'head':>9}{'first':>9}{'inner':>9}{'logits':>9}")
    for name in given.models:
        options = LoadOptions(model_name=name, dtype=given.dtype)
        model = load_model(options, load_tokenizer(options))
        print(f"{model.kind}, {model.layers} layers, {given.dtype}")
        show("as it is", probe.measure(model))
        for fault, (owner, attribute, broken) in FAULTS.items():
            with planted(owner, attribute, broken):
                show(fault, probe.measure(model))
    show("tolerance", verify.TOLERANCE[getattr(torch, given.dtype)])


def show(name: str, found: probe.Differences) -> None:
    print(f"  {name:<24}{found.head:9.4f}{found.first:9.4f}{found.inner:9.4f}{found.logits:9.4f}")


if __name__ == "__main__":
    main()
