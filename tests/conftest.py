"""What all tests share: tiny random models with a byte tokenizer, built once, and backends on them."""

from __future__ import annotations

import os

# Before torch is imported anywhere: two threads make operations of this size many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from latentmas.memory import LatentMemory
    from latentmas.program import Program

# No deadline: a machine that is busy is no broken law. No database: tests leave nothing in the working tree.
settings.register_profile("latentmas", deadline=None, database=None)
settings.load_profile("latentmas")

END_OF_TEXT, START_OF_TURN, END_OF_TURN, PAD = 256, 257, 258, 259
VOCABULARY = 260
ENDS = (*range(240, 256), END_OF_TEXT, END_OF_TURN)
"""End-of-text ids of the models in memory: enough of them that a good part of the rows stops early."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen2": ("Qwen2", {}),
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"head_dim": 16, "sliding_window": 12}),
    "gemma": ("Gemma", {"head_dim": 16}),
}


@pytest.fixture(autouse=True, scope="session")
def a_slow_machine_gets_no_word_of_patience() -> Iterator[None]:
    """Tests count the lines of an error; how busy the machine is does not add one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentmas.cli._terminal.SECONDS_BEFORE_WORD", 600.0)
        yield


class Tiny:
    """Tiny random models, and everything opened on them; each is made once and must not be changed."""

    ends = frozenset(ENDS)

    def __init__(self) -> None:
        self._causal: dict[object, Any] = {}
        self._models: dict[object, Any] = {}
        self._alignments: dict[object, Any] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """A byte-level tokenizer: ids 0 to 255 are single bytes, the rest is special."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        bytes_only = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(alphabet)}, merges=[]))
        bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bytes_only.decoder = decoders.ByteLevel()
        bytes_only.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bytes_only, eos_token="<|im_end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        assert len(tokenizer) == VOCABULARY
        return tokenizer

    def causal(
        self,
        kind: str = "qwen3",
        *,
        tied: bool = False,
        dtype: Any = None,
        spread: float | None = None,
        **config: object,
    ) -> Any:
        """Return a transformers model with weights that are the same in every dtype; `spread` is that of its layers.

        They are tame (rounding is not amplified by thinking) and yet written tokens differ from prompt to prompt: the
        final norm turns the sign of half of the dimensions, so that a token does not simply repeat itself.
        """
        import torch
        import transformers

        torch.set_num_threads(1)
        dtype = dtype or torch.float64
        key = (kind, tied, dtype, spread, str(config))
        if key in self._causal:
            return self._causal[key]
        if dtype != torch.float64:
            self._causal[key] = deepcopy(self.causal(kind, tied=tied, spread=spread, **config)).to(dtype)
            return self._causal[key]
        name, extra = ARCHITECTURES[kind]
        settings = getattr(transformers, f"{name}Config")(
            **{**SIZE, **extra, **config}, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=END_OF_TEXT
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            causal = getattr(transformers, f"{name}ForCausalLM")(settings).double()
        _fill(causal, tied=tied, scales_embedding=kind == "gemma", spread=spread)
        causal.generation_config.eos_token_id = list(ENDS)
        self._causal[key] = causal.eval().requires_grad_(False)
        return causal

    def small(self, kind: str, *, attention: str = "sdpa", **config: object) -> Any:
        """Return a random float64 model of any type of transformers: four layers, attention that is not uniform."""
        import torch
        import transformers

        settings = {
            **SIZE,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "max_position_embeddings": 8192,
            "initializer_range": 0.15,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": 2,
            **config,
        }
        made = transformers.AutoConfig.for_model(kind, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            causal = transformers.AutoModelForCausalLM.from_config(made, attn_implementation=attention)
        return causal.double().eval().requires_grad_(False)

    def model(
        self,
        kind: str = "qwen3",
        *,
        tied: bool = False,
        dtype: Any = None,
        attention: str = "sdpa",
        device: str = "cpu",
        **config: object,
    ) -> Any:
        """Return a verified `LoadedModel`; float64 unless told otherwise."""
        from latentmas.backends.hf.load import describe_model
        from latentmas.backends.hf.verify import verified

        key = (kind, tied, dtype, attention, device, str(config))
        if key not in self._models:
            causal = self.causal(kind, tied=tied, dtype=dtype, **config)
            if (attention, device) != ("sdpa", "cpu"):
                causal = deepcopy(causal).to(device)  # both are states of the model
            causal.set_attn_implementation(attention)
            self._models[key] = verified(describe_model(causal, self.tokenizer, attention))
        return self._models[key]

    def alignment(self, model: Any, *, realign: bool = False) -> Any:
        from latentmas.alignment import AlignmentKind, build_alignment

        key = (id(model), realign)
        if key not in self._alignments:
            kind = AlignmentKind.RIDGE if realign else AlignmentKind.NORM
            self._alignments[key] = build_alignment(kind, model.space())
        return self._alignments[key]

    def open(self, model: Any, *, realign: bool = False, batch_size: int = 20) -> Any:
        """Return an `HFBackend` on a `LoadedModel`."""
        from latentmas.backends.hf.backend import HFBackend
        from latentmas.backends.hf.chat import ChatCodec

        alignment = self.alignment(model, realign=realign)
        return HFBackend(model, ChatCodec(self.tokenizer), alignment, batch_size=batch_size, model_id="tiny-random")

    def backend(self, kind: str = "qwen3", *, realign: bool = False, batch_size: int = 20, **options: Any) -> Any:
        """Return an `HFBackend` on the model that `model(kind, **options)` returns."""
        return self.open(self.model(kind, **options), realign=realign, batch_size=batch_size)

    def memories(self, programs: Sequence[Program], **options: Any) -> list[LatentMemory]:
        """Run programs without a Write in one batch and return what each leaves in memory, without padding."""
        from latentmas.backends.hf.rollout import Rollout, Row

        model = self.model(**options)
        rollout = Rollout(model, self.alignment(model), [Row(program=program, seed=0) for program in programs])
        rollout.run()
        return rollout.memory.split_rows()


def _fill(causal: Any, *, tied: bool, scales_embedding: bool, spread: float | None) -> None:
    """Overwrite every weight. Tied models need stronger layers to write anything but their last token."""
    import torch

    generator = torch.Generator().manual_seed(20251120)

    def normal(parameter: Any, width: float) -> Any:
        return torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * width

    layers, embedding = (0.12, 0.03) if tied else (0.06, 0.2)
    layers = spread or layers
    if scales_embedding:
        embedding /= causal.config.hidden_size**0.5
    spreads: Mapping[str, float] = {"embed_tokens": embedding, "lm_head": 0.2, "bias": 0.1}
    with torch.no_grad():
        for name, parameter in causal.named_parameters():
            if "norm" in name:
                parameter.add_(normal(parameter, 0.1))
            else:
                parameter.copy_(normal(parameter, next((s for part, s in spreads.items() if part in name), layers)))
        final = causal.model.norm.weight
        signs = torch.randint(0, 2, final.shape, generator=generator) * 2.0 - 1
        final.copy_((1 + final) * signs - 1 if scales_embedding else final * signs)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Tiny random models by name."""
    return Tiny()


@pytest.fixture(scope="session")
def model_folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub serves it: a tiny random Qwen3 in float32 with a byte tokenizer and a chat template."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny-random-qwen3"
    causal = deepcopy(tiny.causal("qwen3", dtype=torch.float32, max_position_embeddings=4096))
    causal.generation_config.eos_token_id = [END_OF_TURN, END_OF_TEXT]
    causal.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder
