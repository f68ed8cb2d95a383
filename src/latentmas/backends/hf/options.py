"""How a model is loaded: what a person may say of it, and what `auto` comes to on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from latentmas.errors import CapabilityError, ConfigError

ATTENTIONS: Final = ("auto", "sdpa", "eager")
DTYPES: Final = ("auto", "float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is loaded; the names are those of the command line."""

    model_name: str
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    attn_implementation: str = "auto"
    trust_remote_code: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.attn_implementation not in ATTENTIONS:
            raise CapabilityError(
                f"attention {self.attn_implementation!r} takes no mask per row, which exact batches need; "
                f"choose from: {', '.join(ATTENTIONS)}"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; choose from: {', '.join(DTYPES)}")

    def resolved_device(self) -> torch.device:
        """Return the device; `auto` is CUDA, else MPS, else the CPU."""
        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(
                f"device is {self.device!r}, which torch cannot use here; give auto, cpu, cuda, cuda:0 ... or mps"
            ) from error
        return device

    def resolved_dtype(self, config: Any) -> torch.dtype:
        """Return the dtype; `auto` is float32 on the CPU and the checkpoint's own elsewhere."""
        if self.dtype != "auto":
            dtype = getattr(torch, self.dtype)
        elif self.resolved_device().type == "cpu":
            dtype = torch.float32
        else:
            dtype = config.dtype or torch.bfloat16
        assert isinstance(dtype, torch.dtype)
        return dtype
