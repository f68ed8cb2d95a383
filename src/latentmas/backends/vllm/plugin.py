"""The entry point ``vllm.general_plugins``: makes our model classes known, and nothing else.

vLLM calls `register` in every process it starts, also in those of people who never heard of latent thoughts. So it adds
names and replaces none, imports no torch, and cannot fail.
"""

from __future__ import annotations

from latentmas.backends.vllm.settings import ARCHITECTURES


def register() -> None:
    """Register one class per architecture, under a name of its own, to be imported when it is asked for."""
    from vllm.model_executor.models import ModelRegistry

    for name in ARCHITECTURES.values():
        ModelRegistry.register_model(name, f"latentmas.backends.vllm.models:{name}")
