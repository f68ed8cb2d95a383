"""One small forward pass that decides whether an architecture is run exactly.

No list of architectures can be complete. So the backend runs a probe its own way - two ragged rows, padded, read in
two parts on top of a memory - and compares the logits with the model's own on the same tokens in one piece.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from latentmas.alignment import Alignment, NormOnly
from latentmas.backends.hf.load import LoadedModel
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.backends.hf.watch import Watch
from latentmas.errors import CapabilityError
from latentmas.program import Program, Read, SlotKind
from latentmas.rope import Rope

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest difference of two logits, as a share of the largest logit. Wrong masks or positions differ by its size."""

_READS = ((7, 5), (6, 2), (2, 9))
"""Lengths of the two Reads of each row. They differ in both, so that padding falls between real tokens."""
_PROBED_WINDOW = 256
"""Sliding windows up to this width are probed with a row that is longer."""


@torch.inference_mode()
def verified(model: LoadedModel) -> LoadedModel:
    """Return the model with its way of rotating keys settled.

    Raises:
        CapabilityError: The backend and the model disagree about the logits.
    """
    kind = model.causal.config.get_text_config().model_type
    beyond = max((window for window in model.windows.values() if window and window <= _PROBED_WINDOW), default=0)
    reads = [(beyond + 7, 5), *_READS[1:]]
    rows = [
        tuple((7 * index + 11 * row + 3) % model.vocabulary for index in range(sum(lengths)))
        for row, lengths in enumerate(reads)
    ]
    programs = [
        Program((Read(agent="a", tokens=row[:first]), Read(agent="b", tokens=row[first:])))
        for row, (first, _) in zip(rows, reads, strict=True)
    ]
    try:
        own = _final_logits(model, programs)
    except Exception as error:  # whatever a strange architecture makes of it
        raise CapabilityError(
            f"{kind} does not take masks, positions and a cache the way attention models of transformers do "
            f"({type(error).__name__}: {error}); use another model"
        ) from error
    for row, ours in zip(rows, own, strict=True):
        ids = torch.tensor([row], device=model.device)
        theirs = model.causal(input_ids=ids, use_cache=False).logits[0, -1].to(ours.device)
        scale = theirs.abs().max().clamp_min(1e-6)
        difference = float((ours - theirs).abs().max() / scale)
        # Written so that NaN does not pass.
        if not difference <= TOLERANCE[model.dtype]:
            raise CapabilityError(
                f"{kind} cannot be run exactly: logits of a prompt read in two parts differ by {difference:.2g} of the "
                "largest logit from the same prompt read at once; use another model"
            )
    return replace(model, rope=_turning_rope(model, rows[0][0]))


@torch.inference_mode()
def check_watch(model: LoadedModel) -> None:
    """Compare attention as it is watched with what the model makes of it, on one small forward pass.

    Raises:
        CapabilityError: They differ, or some layer cannot be watched.
    """
    tokens = [tuple((5 * index + 3 * row + 1) % model.vocabulary for index in range(6 + row)) for row in range(2)]
    nothing: Alignment = NormOnly(1.0, torch.float32)
    rows = [Row(program=Program((Read(agent="a", tokens=own),)), seed=0) for own in tokens]
    rollout = Rollout(model, nothing, rows)
    rollout.run()
    embeddings, valid = rollout.embed(0)
    watch = Watch(valid, rollout.memory, checks=True)
    rollout.forward(embeddings, valid, ["b", "b"], SlotKind.PROMPT, watch)
    watch.attention(model)
    # Written so that NaN does not pass.
    if not watch.error <= TOLERANCE[model.dtype]:
        kind = model.causal.config.get_text_config().model_type
        raise CapabilityError(
            f"the attention of {kind} cannot be watched: its output differs by {watch.error:.2g} of the largest value "
            "from what its queries, keys and values give; use a filter that does not look at attention"
        )


def _final_logits(model: LoadedModel, programs: list[Program]) -> Tensor:
    nothing: Alignment = NormOnly(1.0, torch.float32)
    rollout = Rollout(model, nothing, [Row(program=program, seed=0) for program in programs])
    rollout.run()
    assert rollout.hidden is not None
    return model.logits(rollout.hidden)


def _turning_rope(model: LoadedModel, token: int) -> Rope | None:
    """Return the layout under which a rotated key equals a key written later; None where neither does."""
    if model.rope is None:
        return None
    here, later = (_first_key(model, token, position) for position in (0, 9))
    for rope in (model.rope, replace(model.rope, interleaved=True)):
        turned = rope.rotate(here, torch.tensor([9]))
        if torch.allclose(turned.float(), later.float(), rtol=0, atol=0.02 * float(later.abs().max())):
            return rope
    return None


def _first_key(model: LoadedModel, token: int, position: int) -> Tensor:
    """Return the first layer's key of a token read alone at a position, ``[1, H, 1, D]``."""
    nothing: Alignment = NormOnly(1.0, torch.float32)
    program = Program((Read(agent="a", tokens=(token,)),))
    rollout = Rollout(model, nothing, [Row(program=program, seed=0)])
    rollout.memory.next_position += position
    rollout.run()
    return rollout.memory.keys(0)
