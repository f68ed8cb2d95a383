"""What an engine must be told to run latent thoughts, and how its processes read it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from latentmas.errors import CapabilityError, ConfigError

KEY: Final = "latentmas"
"""Our entry in vLLM's ``additional_config``. Without it every class of ours refuses to start."""

ARCHITECTURES: Final[Mapping[str, str]] = {
    name: f"Latent{name}"
    for name in (
        "Qwen3ForCausalLM",
        "Qwen2ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "GemmaForCausalLM",
    )
}
"""Architectures that can think, and the names under which our classes for them are registered."""

SCHEDULER: Final = "latentmas.backends.vllm.scheduler.latent_scheduler"
WORKER: Final = "latentmas.backends.vllm.worker.LatentWorker"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSettings:
    """Settings of one engine; part of the hash of vLLM's configuration.

    Attributes:
        placeholder: Token id that means "my input is the aligned hidden state of the position before me".
        alignment: Name of an `AlignmentKind`. It holds for the whole engine, so equal tokens have equal memory and
            vLLM's prefix cache stays right.
        soft_temperature: Of the alignment ``soft``.
        tokens: Length of the tokenizer: what alignments take for the vocabulary. None takes all rows of the embedding.
        measures: Keep thoughts until somebody asks how they changed, as the backend does; clients of a server do not.
    """

    placeholder: int
    alignment: str = "norm"
    soft_temperature: float = 0.5
    tokens: int | None = None
    measures: bool = False

    @classmethod
    def of(cls, vllm_config: Any) -> LatentSettings:
        """Read the settings back from a `VllmConfig`.

        Raises:
            ConfigError: They are not there, or are not ours.
        """
        given = (vllm_config.additional_config or {}).get(KEY)
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"this vLLM engine uses a class of latentmas without its settings; give --additional-config with an "
                f"entry {KEY!r}, as `latentmas vllm` prints it"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(given.keys() - known):
            raise ConfigError(f"additional_config[{KEY!r}] has no {unknown[0]!r}; choose from: {', '.join(known)}")
        return cls(**given)

    def engine_options(self, architecture: str) -> dict[str, Any]:
        """Return what `EngineArgs` needs beside the model, for a model of this architecture.

        Raises:
            CapabilityError: No class of ours can run it.
        """
        return {
            "hf_overrides": {"architectures": [latent_name(architecture)]},
            "scheduler_cls": SCHEDULER,
            "worker_cls": WORKER,
            "additional_config": {KEY: asdict(self) if self.measures else _without_measures(self)},
        }


def _without_measures(settings: LatentSettings) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name != "measures"}


def latent_name(architecture: str) -> str:
    """Return the name of our class for an architecture.

    Raises:
        CapabilityError: There is none.
    """
    if architecture not in ARCHITECTURES:
        raise CapabilityError(
            f"the vllm backend cannot think with {architecture}; it can with {', '.join(ARCHITECTURES)}. "
            "Leave --use_vllm out: the transformers backend runs any model with rotary positions"
        )
    return ARCHITECTURES[architecture]
