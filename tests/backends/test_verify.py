"""The probe at the start: what it lets in, and the faults planted in our side or in a model that it must see."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import transformers

from latentmas.backends.hf import architecture, probe
from latentmas.backends.hf import rollout as rollouts
from latentmas.backends.hf.load import LoadedModel, LoadOptions, describe_model, load_config
from latentmas.backends.hf.verify import verified
from latentmas.errors import CapabilityError
from latentmas.memory import LatentMemory
from latentmas.program import Program, Read, SlotKind, Write
from latentmas.rope import STILL

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
extend, logits, visibility = LatentMemory.extend, LoadedModel.logits, rollouts.visibility


def by_slots(memory, valid, agents, kind):
    first = memory.slots
    positions = extend(memory, valid, agents, kind)
    return torch.arange(first, first + valid.shape[1])[None].expand_as(positions)


def shifted(by):
    def fault(memory, valid, agents, kind):
        positions = extend(memory, valid, agents, kind)
        return positions + by if memory.slots > valid.shape[1] else positions

    return fault


KERNELS = {"gpt_oss": "eager", "gemma2": "eager", "llama": "sdpa", "mixtral": "sdpa"}
FAULTS = {
    "positions by slot count": (LatentMemory, "extend", by_slots),
    "one position early": (LatentMemory, "extend", shifted(-1)),
    "one position late": (LatentMemory, "extend", shifted(1)),
    "logits a tenth too large": (LoadedModel, "logits", lambda model, hidden: logits(model, hidden) * 1.1),
    "pads are seen": (rollouts, "visibility", lambda memory, new, window: visibility(_no_pads(memory), new, window)),
}


def _no_pads(memory):
    seen = memory.clone()
    seen._valid = torch.ones_like(seen._valid)
    return seen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_fault_is_refused_whatever_the_texts(tiny, monkeypatch, fault, dtype, seed):
    model = tiny.model("llama", dtype=DTYPES[dtype])
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(0, model.vocabulary, (8, 40), generator=generator).tolist()
    monkeypatch.setattr(probe, "tokens", lambda model, row, length: tuple(texts[row][:length]))
    verified(model, thinks=True, joins=True)
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(CapabilityError, match="llama cannot be run exactly"):
        verified(model)


@pytest.mark.parametrize("width", [12, 700])
def test_a_window_that_we_forget_is_seen_however_wide_it_is(tiny, monkeypatch, width):
    model = tiny.model("mistral", sliding_window=width)
    assert model.windows == {None: width}
    monkeypatch.setattr(rollouts, "visibility", lambda memory, new, window: visibility(memory, new, None))
    with pytest.raises(CapabilityError, match="mistral cannot be run exactly"):
        verified(replace(model, windows={None: width, "other": None}))


def test_a_window_in_the_configuration_that_the_model_ignores_is_not_built(tiny):
    causal = deepcopy(tiny.causal("llama"))
    causal.config.sliding_window = 16
    model = verified(describe_model(causal, tiny.tokenizer))
    assert model.windows == {None: None}
    assert causal.config.sliding_window == 16, "the probe puts back what it shrinks"
    tokens = tuple(7 * place % 250 for place in range(60))
    written = tiny.open(model).run([Program((Read(agent="a", tokens=tokens), Write(agent="a", max_new_tokens=8)))])
    theirs = causal.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, 60, dtype=torch.long),
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=0,
        use_cache=False,  # the cache of transformers drops what the model itself would see
    )[0, 60:].tolist()
    kept = theirs[: next((at for at, token in enumerate(theirs) if token in model.stop_tokens), None)]
    assert list(written[0].steps[-1].written) == kept


def test_a_fault_that_begins_at_late_positions_is_seen(tiny, monkeypatch):
    model = tiny.model("llama")

    def coarse(memory, valid, agents, kind):
        positions = extend(memory, valid, agents, kind)
        return torch.where(positions > 500, positions // 2 * 2, positions)

    monkeypatch.setattr(LatentMemory, "extend", coarse)
    with pytest.raises(CapabilityError, match="cannot be run exactly"):
        verified(model)


def test_not_a_number_passes_no_probe(tiny):
    causal = deepcopy(tiny.causal("llama"))
    causal.model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    with pytest.raises(CapabilityError, match="llama cannot be run exactly"):
        verified(describe_model(causal, tiny.tokenizer))


def test_a_thought_that_is_read_in_another_way_is_refused_before_the_first_sample(tiny, monkeypatch):
    model = tiny.model("llama")
    think = rollouts.Rollout.think

    def stretched(self, number, step):
        honest = self.alignment
        self.alignment = lambda hidden: honest(hidden) * 1.3
        try:
            return think(self, number, step)
        finally:
            self.alignment = honest

    monkeypatch.setattr(rollouts.Rollout, "think", stretched)
    verified(model)
    with pytest.raises(CapabilityError, match="cannot think latent thoughts"):
        verified(model, thinks=True)


def test_a_join_that_moves_keys_to_a_wrong_place_is_refused_before_the_first_sample(tiny, monkeypatch):
    model = tiny.model("llama")
    join = LatentMemory.join.__func__

    def off_by_one(cls, parts, ropes):
        return join(cls, [parts[0], *(part.rotate(torch.ones(part.rows).long(), ropes) for part in parts[1:])], ropes)

    monkeypatch.setattr(LatentMemory, "join", classmethod(off_by_one))
    verified(model)
    with pytest.raises(CapabilityError, match="cannot be joined"):
        verified(model, joins=True)


def test_a_mixture_of_experts_runs_in_float64(tiny):
    causal = tiny.small("mixtral", num_local_experts=4, num_experts_per_tok=2)
    assert verified(describe_model(causal, None), thinks=True, joins=True).ropes is not None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.BloomConfig(), "bloom has no rotary position embedding but ALiBi"),
        (transformers.GPT2Config(), "gpt2 has no rotary position embedding"),
        (transformers.Mistral3Config(), "mistral3 is a model of text with images"),
        (transformers.Qwen2_5_VLConfig(), "qwen2_5_vl is a model of text with images"),
        (transformers.IdeficsConfig(), "idefics is a model of text with images"),
        (transformers.T5Config(), "t5 is no causal language model but an encoder with a decoder"),
        (transformers.Gemma3nTextConfig(), "gemma3n_text adds an embedding of the token's number in every layer"),
        (transformers.Llama4TextConfig(), "layers of type chunked_attention"),
        (transformers.DogeConfig(), "doge has keep_window_size = 2048"),
    ],
)
def test_a_refusal_names_the_type_in_the_folder_and_the_true_reason(tmp_path, config, reason):
    config.save_pretrained(tmp_path)
    with pytest.raises(CapabilityError, match=reason):
        load_config(LoadOptions(model_name=str(tmp_path)))


@pytest.mark.parametrize(("kind", "divides"), [("granite", True), ("hyperclovax", False)])
def test_logits_are_scaled_the_way_the_model_scales_them(tiny, kind, divides):
    model = verified(describe_model(tiny.small(kind, logits_scaling=3.0), None))
    assert model.divides is divides


def test_auto_attention_asks_the_model_class(tmp_path):
    auto = {kind: architecture.check_attention(transformers.AutoConfig.for_model(kind), "auto") for kind in KERNELS}
    assert auto == KERNELS
    transformers.GptOssConfig().save_pretrained(tmp_path)
    load_config(LoadOptions(model_name=str(tmp_path)))
    with pytest.raises(CapabilityError, match=r"gpt_oss has an attention of its own.*--attn_implementation eager"):
        load_config(LoadOptions(model_name=str(tmp_path), attn_implementation="sdpa"))


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 4.0}, 4096),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "linear", "factor": 3.0}, 3072),
        ({"rope_type": "dynamic", "factor": 4.0}, 1024),
        ({"rope_type": "default"}, 1024),
    ],
)
def test_the_context_of_a_scaled_folder_is_factor_times_the_original(tiny, rope, context):
    causal = tiny.causal("llama", rope_parameters={"rope_theta": 1e4, **rope}, max_position_embeddings=1024)
    assert describe_model(causal, tiny.tokenizer).context == context


def test_a_context_is_not_scaled_twice_where_layers_have_frequencies_of_their_own():
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = transformers.Gemma3TextConfig(max_position_embeddings=131072, rope_parameters=ropes)
    assert architecture.context(config) == 131072


def of_kind(kind, by):
    def fault(memory, valid, agents, given):
        positions = extend(memory, valid, agents, given)
        return positions + by if given is kind else positions

    return fault


def of_another_row(rollout, number, tokens, goes_on):
    return feed(rollout, number, tokens.roll(1, 0), goes_on)


def of_the_first_hidden_state(rollout, number, step):
    hidden, honest = rollout.hidden, rollout.alignment
    rollout.alignment = lambda _: honest(hidden)
    try:
        return think(rollout, number, step)
    finally:
        rollout.alignment = honest


feed, think = rollouts.Rollout._feed, rollouts.Rollout.think
FAULTS_OF_TURNS = {
    "a thought is one position early": (LatentMemory, "extend", of_kind(SlotKind.THOUGHT, -1)),
    "a thought is one position late": (LatentMemory, "extend", of_kind(SlotKind.THOUGHT, 1)),
    "a text is one position early": (LatentMemory, "extend", of_kind(SlotKind.TEXT, -1)),
    "a row reads what another wrote": (rollouts.Rollout, "_feed", of_another_row),
    "every thought is the first": (rollouts.Rollout, "think", of_the_first_hidden_state),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS_OF_TURNS)
def test_a_fault_of_thoughts_or_texts_alone_is_refused_before_the_first_sample(tiny, monkeypatch, fault, dtype):
    model = tiny.model("llama", dtype=DTYPES[dtype])
    monkeypatch.setattr(*FAULTS_OF_TURNS[fault])
    with pytest.raises(CapabilityError, match="llama cannot"):
        verified(model, thinks=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_after_a_join_at_a_wrong_place_is_refused_before_the_first_sample(tiny, monkeypatch, dtype):
    model = tiny.model("llama", dtype=DTYPES[dtype])
    join = LatentMemory.join.__func__

    def late(cls, parts, ropes):
        joined = join(cls, parts, ropes)
        joined.next_position += 1
        return joined

    monkeypatch.setattr(LatentMemory, "join", classmethod(late))
    verified(model)
    with pytest.raises(CapabilityError, match="read after a Join"):
        verified(model, joins=True)


def test_experts_hide_no_layer_whose_keys_are_not_moved(tiny, monkeypatch):
    causal = tiny.small("mixtral", num_local_experts=4, num_experts_per_tok=2).to(torch.bfloat16)
    model = verified(describe_model(causal, None), joins=True)
    join = LatentMemory.join.__func__
    monkeypatch.setattr(
        LatentMemory, "join", classmethod(lambda cls, parts, ropes: join(cls, parts, (*ropes[:-1], STILL)))
    )
    with pytest.raises(CapabilityError, match="keys or values that were moved"):
        verified(model, joins=True)


def test_a_window_of_a_configuration_of_its_own_is_built(tiny):
    causal = deepcopy(tiny.causal("mistral", sliding_window=40))
    causal.model.config = deepcopy(causal.config)
    assert verified(describe_model(causal, tiny.tokenizer)).windows == {None: 40}
    assert causal.model.config.sliding_window == 40


def test_a_window_that_nobody_can_shrink_is_refused(tiny):
    causal = deepcopy(tiny.causal("llama"))
    causal.config.sliding_window = 40
    decode = causal.model.forward

    def windowed(input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, **more):
        length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        if attention_mask is None:  # the model's own way
            place = torch.arange(length)
            attention_mask = ((place <= place[:, None]) & (place[:, None] - place < 40))[None, None]
        return decode(input_ids, attention_mask, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **more)

    causal.model.forward = windowed
    with pytest.raises(CapabilityError, match=r"llama cannot be run exactly: .*a sliding window of 40"):
        verified(describe_model(causal, tiny.tokenizer))


@pytest.mark.parametrize(("kind", "width"), [("mistral", 40), ("llama", None)])
def test_types_of_layers_that_the_model_ignores_are_ignored(tiny, kind, width):
    layers = ["full_attention", "sliding_attention"] * 2
    causal = tiny.small(kind, sliding_window=40, layer_types=layers)
    assert verified(describe_model(causal, tiny.tokenizer)).windows == {None: width}


def test_biases_hide_no_first_layer_whose_keys_are_not_moved(tiny, monkeypatch):
    causal = tiny.small("qwen2")
    causal.model.layers[0].self_attn.k_proj.bias.copy_(torch.tensor([0.0] * 7 + [40.0] + [0.0] * 8).repeat(2))
    model = verified(describe_model(causal.to(torch.bfloat16), None), joins=True)
    join = LatentMemory.join.__func__
    monkeypatch.setattr(
        LatentMemory, "join", classmethod(lambda cls, parts, ropes: join(cls, parts, (STILL, *ropes[1:])))
    )
    with pytest.raises(CapabilityError, match="keys or values that were moved"):
        verified(model, joins=True)
