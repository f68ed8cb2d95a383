"""How much a model's thoughts change: the cosine of each to the one before, for each way to make them.

    python benchmarks/thoughts.py .models/smollm2-135m

A planner's chat about one word problem, then 40 thoughts, alone, in float32. A cosine of 1 means that thinking has come
to a point where it stays.
"""

from __future__ import annotations

import argparse

import torch

from latentmas.alignment import Alignment, AlignmentKind, build_alignment
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.experiment import models
from latentmas.experiment.config import RunConfig
from latentmas.program import Program, Read, Think
from latentmas.samples import Message

QUESTION = "Nora bakes 6 trays of rolls with 14 rolls on each tray and keeps 9 rolls. How many rolls does she sell?"
WAYS = [(AlignmentKind.NORM, 1.0), (AlignmentKind.RIDGE, 1.0), *((AlignmentKind.SOFT, t) for t in (2.0, 0.6, 0.1))]


class Kept:
    """An alignment that keeps the thoughts it makes."""

    def __init__(self, alignment: Alignment) -> None:
        self.norm = alignment.norm
        self.thoughts: list[torch.Tensor] = []
        self._alignment = alignment

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.thoughts.append(self._alignment(hidden))
        return self.thoughts[-1]


def cosines(model: LoadedModel, alignment: Alignment, tokens: tuple[int, ...], steps: int) -> list[float]:
    """Return the cosine of thoughts 1, 2 ... to the one before each, counted from 0."""
    kept = Kept(alignment)
    program = Program((Read(agent="planner", tokens=tokens), Think(agent="planner", steps=steps)))
    Rollout(model, kept, [Row(program=program, seed=0)]).run()
    thoughts = torch.cat(kept.thoughts).double()
    return torch.nn.functional.cosine_similarity(thoughts[1:], thoughts[:-1], dim=1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_name", help="a transformers folder, a .gguf file or a hub id")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    config = RunConfig.from_options({"method": "latent_mas", "model_name": options.model_name, "dtype": "float32"})
    codec = models.open_codec(config)
    model = models.open_transformers(config, codec).model
    said = codec.encode_chat([Message("user", f"Plan how to solve this, in short.\n\n{QUESTION}")])
    shown = [step for step in (1, 2, 5, 10, 20, options.steps - 1) if step < options.steps]
    print(f"{'thought':<12}" + "".join(f"{step:>7}" for step in shown))
    for kind, temperature in WAYS:
        alignment = build_alignment(kind, model.space(), soft_temperature=temperature)
        found = cosines(model, alignment, said.tokens, options.steps)
        name = f"{kind} {temperature}" if kind is AlignmentKind.SOFT else str(kind)
        print(f"{name:<12}" + "".join(f"{found[step - 1]:7.3f}" for step in shown), flush=True)


if __name__ == "__main__":
    main()
