"""Train the embedded model: ``python -m latentmas.tiny.train --output DIR``, one core, resumable.

Everything follows from the seed: a run that was interrupted continues from its last checkpoint to the same
end, up to the arithmetic of the machine. The result is a folder for transformers.

The model is trained for the noise control: see `schedule`.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from latentmas.tiny.curriculum import AGENTS, Curriculum, sample_texts, tiny_prompts
from latentmas.tiny.evaluate import Cell, Evaluator, cells
from latentmas.tiny.muon import Muon
from latentmas.tiny.network import Network, Size, pad_left, remember
from latentmas.tiny.schedule import ROUND, Batch, Recipe, draw_round
from latentmas.tiny.tokenizer import (
    CONTEXT_LENGTH,
    END_OF_TURN,
    PAD,
    save_tokenizer,
    token_id,
    train_tokenizer,
)

CHECKPOINT_EVERY = 1000


@dataclass(slots=True)
class Trainer:
    """The network, its optimizers and how far they are."""

    recipe: Recipe
    network: Network
    curriculum: Curriculum
    pad: int
    done: int = 0
    optimizers: list[torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        """Give matrices inside the layers to Muon, all else to Adam."""
        inner = list(self.network.model.layers.parameters())
        matrices = [weight for weight in inner if weight.ndim == 2]
        chosen = {id(weight) for weight in matrices}
        rest = [weight for weight in self.network.parameters() if id(weight) not in chosen]
        self.optimizers = [
            Muon(matrices, lr=self.recipe.matrix_rate),
            torch.optim.Adam(rest, lr=self.recipe.vector_rate, betas=(0.9, 0.98)),
        ]

    def batches(self) -> Iterator[Batch]:
        """Yield the batches from the next one on. Each round is a function of the seed and its number."""
        for number in range(self.done // ROUND, self.recipe.steps // ROUND):
            rng = random.Random(f"{self.recipe.seed}:{number}")
            yield from draw_round(rng, self.recipe, self.curriculum, number * ROUND / self.recipe.steps)

    def step(self, batch: Batch) -> float:
        """Train on one batch and return its loss."""
        progress = self.done / self.recipe.steps
        rising = min(1.0, (progress + 1e-9) / self.recipe.warm_up)
        falling = min(1.0, (1.02 - progress) / (1.02 - self.recipe.decay_from))
        for optimizer, rate in zip(self.optimizers, (self.recipe.matrix_rate, self.recipe.vector_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * rising * falling
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.done += 1
        return float(loss.detach())

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross entropy of the replies' tokens."""
        lessons = batch.lessons
        memory = None
        if batch.steps:
            earlier = [[lesson.prompts[agent] for lesson in lessons] for agent in range(len(AGENTS) - 1)]
            memory, _ = remember(
                self.network,
                earlier,
                batch.steps,
                self.pad,
                aligner=self.network.ridge() if batch.realign else None,
                given=self._noise(batch),
                only_thoughts=batch.only_thoughts,
            )
            prompts = [lesson.prompts[-1] for lesson in lessons]
        else:
            prompts = [tuple(token for prompt in lesson.prompts for token in prompt) for lesson in lessons]
        prompt_ids, prompt_real = pad_left(prompts, self.pad)
        longest = max(len(lesson.reply) for lesson in lessons)
        reply_ids = torch.tensor([[*x.reply, *[self.pad] * (longest - len(x.reply))] for x in lessons])
        reply_real = reply_ids != self.pad
        ids = torch.cat((prompt_ids, reply_ids[:, :-1]), 1)
        real = torch.cat((prompt_real, reply_real[:, :-1]), 1)
        hidden, _ = self.network.extend(ids, real, memory)
        logits = self.network.lm_head(hidden[:, -longest:])  # [B, longest, V]
        return functional.cross_entropy(logits[reply_real], reply_ids[reply_real])

    def _noise(self, batch: Batch) -> list[Tensor] | None:
        if batch.noise_seed is None:
            return None
        size = (len(AGENTS) - 1, len(batch.lessons), batch.steps, self.network.size.hidden_size)
        noise = torch.randn(size, generator=torch.Generator().manual_seed(batch.noise_seed))
        return list(self.network.rescale(noise))

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        unfinished = path.with_suffix(".part")
        torch.save({"network": self.network.state_dict(), "optimizers": optimizers, "done": self.done}, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path)
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done = state["done"]


def save_model(network: Network, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that transformers loads."""
    size = network.size
    config = Qwen3Config(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        num_key_value_heads=size.num_key_value_heads,
        head_dim=size.head_dim,
        rms_norm_eps=size.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": size.rope_theta},
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, END_OF_TURN),
        pad_token_id=token_id(tokenizer, PAD),
    )
    model = Qwen3ForCausalLM(config)
    model.load_state_dict(network.state_dict())
    model.bfloat16().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    (folder / "latentmas.json").write_text(json.dumps({"prompt": "tiny", "latent_steps": 5}) + "\n")


def load_network(folder: Path) -> Network:
    """Return the network of a stored model, in float32."""
    weights = load_file(folder / "model.safetensors")
    network = Network(Size(vocab_size=weights["lm_head.weight"].shape[0]))
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network


def evaluator(network: Network, tokenizer: PreTrainedTokenizerBase) -> Evaluator:
    """Return what measures this network."""
    return Evaluator(
        network=network,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
        prompts=tiny_prompts(),
        pad=token_id(tokenizer, PAD),
        end=token_id(tokenizer, END_OF_TURN),
    )


def report(measure: Evaluator, count: int, chosen: list[Cell]) -> None:
    """Print one line per cell."""
    for cell in chosen:
        print(measure.measure(cell, count), flush=True)


def train(recipe: Recipe, folder: Path) -> None:
    """Train, or continue, and leave the model in `folder`."""
    torch.manual_seed(recipe.seed)
    prompts = tiny_prompts()
    tokenizer = train_tokenizer(sample_texts(2000, 0, prompts))
    network = Network(Size(vocab_size=len(tokenizer)))
    curriculum = Curriculum(lambda text: tokenizer.encode(text, add_special_tokens=False), prompts)
    trainer = Trainer(recipe=recipe, network=network, curriculum=curriculum, pad=token_id(tokenizer, PAD))
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    watched = [c for c in cells() if c.steps == 5 and not c.donor and not c.realign and c.method != "none"]
    started, before = time.time(), trainer.done
    losses: dict[str, list[float]] = {}
    for batch in trainer.batches():
        losses.setdefault(batch.kind, []).append(trainer.step(batch))
        if trainer.done % 100 == 0:
            spent = time.time() - started
            left = spent / (trainer.done - before) * (recipe.steps - trainer.done)
            means = "  ".join(f"{kind} {sum(x) / len(x):.3f}" for kind, x in sorted(losses.items()))
            print(f"{trainer.done:6d}  {spent:5.0f} s, {left:5.0f} s left  {means}", flush=True)
            losses = {}
        if trainer.done % CHECKPOINT_EVERY == 0:
            trainer.save(checkpoint)
            report(evaluator(network, tokenizer), 100, watched)
    save_model(network, tokenizer, folder)


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description="Train and measure the embedded model.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model and its checkpoints")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--problems", type=int, default=300, help="held-out problems per cell")
    parser.add_argument("--measure-only", action="store_true", help="measure the model in the folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.time()
    if not options.measure_only:
        train(Recipe(steps=options.steps, seed=options.seed), options.output)
        print(f"trained in {time.time() - started:.0f} s, {time.process_time():.0f} CPU s")
    tokenizer = AutoTokenizer.from_pretrained(options.output)
    report(evaluator(load_network(options.output), tokenizer), options.problems, list(cells()))


if __name__ == "__main__":
    main()
