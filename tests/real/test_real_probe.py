"""On real weights in bfloat16: the probe lets the model in, and refuses every planted fault, whatever text it reads."""

from __future__ import annotations

import pytest
import torch

from latentmas.backends.hf import probe, verify
from latentmas.backends.hf.load import LoadedModel
from latentmas.errors import CapabilityError
from latentmas.memory import LatentMemory

pytestmark = pytest.mark.real

extend, logits = LatentMemory.extend, LoadedModel.logits


def by_slots(memory, valid, agents, kind):
    first = memory.slots
    positions = extend(memory, valid, agents, kind)
    return torch.arange(first, first + valid.shape[1])[None].expand_as(positions)


def one_early(memory, valid, agents, kind):
    positions = extend(memory, valid, agents, kind)
    return positions - 1 if memory.slots > valid.shape[1] else positions


FAULTS = {
    "positions by slot count": (LatentMemory, "extend", by_slots),
    "one position early": (LatentMemory, "extend", one_early),
    "logits a tenth too large": (LoadedModel, "logits", lambda model, hidden: logits(model, hidden) * 1.1),
}


def test_a_right_model_passes_and_a_planted_fault_is_refused_on_every_text(real, monkeypatch, report):
    model = real.backend("bfloat16").model
    verify.verified(model, thinks=True, joins=True)
    seen = dict.fromkeys(FAULTS, 0)
    for question in real.questions[:8]:
        text = real.codec.encode_text(question.question)
        # All eight rows of the probe read parts of one question.
        monkeypatch.setattr(probe, "tokens", lambda model, row, length, text=text: (text[row:] + text)[:length])
        assert verify._fault(model) is None
        for name, fault in FAULTS.items():
            with monkeypatch.context() as planted:
                planted.setattr(*fault)
                with pytest.raises(CapabilityError, match="cannot be run exactly"):
                    verify.verified(model)
            seen[name] += 1
    report("; ".join(f"{name}: refused on {count} of 8 texts" for name, count in seen.items()))
    assert set(seen.values()) == {8}
