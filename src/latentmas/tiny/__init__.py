"""The embedded model: a small Qwen3 that ships with the package, its two tasks and its training.

It shows the whole mechanism without a download. Unlike any published model it was *trained* to use latent
memory, so its numbers say that the machinery works, not how well latent collaboration works.
"""

from pathlib import Path


def model_folder() -> Path:
    """Return the folder that transformers' `AutoModelForCausalLM` and `AutoTokenizer` load."""
    return Path(__file__).parent / "model"
