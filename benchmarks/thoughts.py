"""How much a model's thoughts change, for each way to make them, and what they say under its own LM head.

    python benchmarks/thoughts.py .models/smollm2-135m path/to/gsm8k/test.jsonl

The planner of the default team reads the first questions and thinks, alone, in float32; every way starts from the same
memory. Means over questions: the cosine of thoughts 2, 3, 6, 11 and the last to the one before, their effective rank,
for how many questions they collapsed and after which thought (median), and of the next-token distribution at the hidden
states that thoughts are made from its entropy in nats, its largest probability, and how many tokens are the likeliest.

With ``--cost`` it says instead what measuring all this costs of a Think, in CPU time, in batches of 1 and of 8.
"""

from __future__ import annotations

import argparse
import time
from statistics import fmean, median_low
from typing import Any

import torch

import latentmas.backends.hf.rollout as rollout_module
from latentmas import collapse
from latentmas.alignment import Alignment, AlignmentKind, build_alignment
from latentmas.backends.hf.chat import ChatCodec
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.experiment import compose, models
from latentmas.experiment.config import RunConfig
from latentmas.memory import LatentMemory
from latentmas.program import Program, Read, Think, ThoughtSource

SHOWN = (1, 2, 5, 10, 19)


class Heard:
    """An alignment that keeps what the LM head says of the hidden states it is given."""

    def __init__(self, alignment: Alignment, model: LoadedModel, vocabulary: int) -> None:
        self.norm = alignment.norm
        self.entropy: list[torch.Tensor] = []
        self.largest: list[torch.Tensor] = []
        self.likeliest: list[torch.Tensor] = []
        self._alignment, self._model, self._vocabulary = alignment, model, vocabulary

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        chances = self._model.logits(hidden)[:, : self._vocabulary].float().softmax(dim=-1)
        self.entropy.append(torch.special.entr(chances).sum(dim=-1))
        self.largest.append(chances.amax(dim=-1))
        self.likeliest.append(chances.argmax(dim=-1))
        return self._alignment(hidden)


@torch.inference_mode()
def read(model: LoadedModel, alignment: Alignment, programs: list[Program]) -> tuple[LatentMemory, torch.Tensor]:
    rollout = Rollout(model, alignment, [Row(program=program, seed=0) for program in programs])
    rollout.step(0, last=False)
    assert rollout.hidden is not None
    return rollout.memory, rollout.hidden


@torch.inference_mode()
def think(
    model: LoadedModel, alignment: Alignment, programs: list[Program], memory: LatentMemory, hidden: torch.Tensor
) -> list[Row]:
    rows = [Row(program=program, seed=number) for number, program in enumerate(programs)]
    rollout = Rollout(model, alignment, rows, memory.clone())
    rollout.hidden = hidden
    rollout.step(1, last=True)
    return rows


def cost(
    model: LoadedModel, alignment: Alignment, programs: list[Program], memory: LatentMemory, hidden: torch.Tensor
) -> str:
    """Return the CPU time of a step of thinking, and the share of it that is spent in `collapse.measure`."""
    inside = 0.0

    def timed(*args: Any) -> Any:
        nonlocal inside
        began = time.process_time()
        accounts = collapse.measure(*args)
        inside += time.process_time() - began
        return accounts

    rollout_module.measure = timed
    began, rounds = 0.0, 10
    for number in range(rounds + 1):
        if number == 1:  # the first one warms up
            began, inside = time.process_time(), 0.0
        think(model, alignment, programs, memory, hidden)
    rollout_module.measure = collapse.measure
    whole = time.process_time() - began
    [step] = {step.steps for program in programs for step in program if isinstance(step, Think)}
    share = f"{100 * inside / whole:.2f} % measuring"
    return f"batch of {len(programs)}: {1000 * whole / rounds / step:7.2f} ms a step, {share}"


def line(rows: list[Row], heard: Heard) -> str:
    accounts = [account for row in rows if (account := row.accounts[-1].thinking) is not None]
    cosines = [
        fmean(account.cosines[step - 1] for account in accounts) for step in SHOWN if step <= len(accounts[0].cosines)
    ]
    after = [account.collapsed_after for account in accounts if account.collapsed_after is not None]
    collapsed = f"{len(after)} of {len(accounts)}" + (f", {median_low(after)}" if after else "")
    told = "".join(f"{cosine:7.3f}" for cosine in cosines)
    told += f"{fmean(account.effective_rank for account in accounts):7.1f}{collapsed:>13}"
    if not heard.entropy:
        return told
    likeliest = torch.stack(heard.likeliest, dim=1).tolist()
    return told + (
        f"{torch.stack(heard.entropy).mean():9.2f}{torch.stack(heard.largest).mean():6.2f}"
        f"{fmean(len(set(row)) for row in likeliest):7.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_name", help="a transformers folder, a .gguf file or a hub id")
    parser.add_argument("dataset", help="a file with the columns of GSM8K")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cost", action="store_true", help="say what measuring costs, and nothing else")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.1, 0.3, 0.5, 0.6, 0.8, 1.0, 2.0])
    options = parser.parse_args()
    config = RunConfig.from_options(
        {
            "method": "latent_mas",
            "model_name": options.model_name,
            "task": "gsm8k",
            "dataset": options.dataset,
            "max_samples": options.questions,
            "dtype": "float32",
            "temperature": 0.0,
        }
    )
    plan = compose.check(config)
    backend = models.open_transformers(plan.config, plan.codec)
    assert isinstance(backend.codec, ChatCodec)
    model, vocabulary = backend.model, len(backend.codec.tokenizer)
    space = model.space(vocabulary)
    first = [next(plan.method.solve(sample)).steps[0] for sample in plan.samples]
    reads = [step for step in first if isinstance(step, Read)]

    def programs(source: ThoughtSource = ThoughtSource.OWN) -> list[Program]:
        return [Program((step, Think(agent=step.agent, steps=options.steps, source=source))) for step in reads]

    norm = build_alignment(AlignmentKind.NORM, space)
    memory, hidden = read(model, norm, programs())
    ways = {"norm": norm}
    if not space.tied:
        ways["ridge"] = build_alignment(AlignmentKind.RIDGE, space)
    for temperature in options.temperatures:
        ways[f"soft {temperature}"] = build_alignment(AlignmentKind.SOFT, space, soft_temperature=temperature)
    if options.cost:
        for rows in (1, 8):
            batch = [programs()[0]] * rows
            memory, hidden = read(model, norm, batch)
            print(cost(model, norm, batch, memory, hidden), flush=True)
        return
    heads = "".join(f"{step:>7}" for step in SHOWN if step < options.steps)
    print(f"{'thought':<9}{heads}{'rank':>7}{'collapsed':>13}{'entropy':>9}{'top':>6}{'tokens':>7}")
    said = []
    for name, alignment in ways.items():
        heard = Heard(alignment, model, vocabulary)
        print(f"{name:<9}{line(think(model, heard, programs(), memory, hidden), heard)}", flush=True)
        said.append(f"{name:<9}{plan.codec.decode([int(step[0]) for step in heard.likeliest])!r}")
    heard = Heard(norm, model, vocabulary)
    print(f"{'noise':<9}{line(think(model, heard, programs(ThoughtSource.NOISE), memory, hidden), heard)}")
    print("\nlikeliest tokens at the thoughts on the first question\n" + "\n".join(said))


if __name__ == "__main__":
    main()
