"""How each layer rotates its keys is found on the model, and what cannot be told is said."""

from copy import deepcopy

import pytest
import torch

from latentmas.backends.hf.load import describe_model
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.backends.hf.verify import verified
from latentmas.program import Join, Program, Read

MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
KINDS = {
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "cohere2": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "exaone4": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3_text": {"sliding_window": 24, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "olmo3": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "stablelm": {"partial_rotary_factor": 0.25},
    "glm": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "cohere": {},
    "nanochat": {},
    "phi": {"partial_rotary_factor": 0.5},
    "deepseek_v2": {**MLA, "topk_method": "greedy"},
    "deepseek_v3": MLA,
}


@pytest.mark.parametrize("kind", KINDS)
def test_branches_that_are_joined_lie_where_the_model_itself_would_have_written_them(tiny, kind):
    model = verified(describe_model(tiny.small(kind, **KINDS[kind]), None), joins=True)
    assert model.ropes is not None, model.unmovable
    first, second = tuple(range(5, 15)), tuple(range(40, 52))
    branches = tuple(
        Program((Read(agent=name, tokens=part),)) for name, part in zip("ab", (first, second), strict=True)
    )
    program = Program((Join(branches=branches), Read(agent="j", tokens=(9, 8))))
    rollout = Rollout(model, None, [Row(program=program, seed=0)])
    rollout.run()
    from transformers import DynamicCache

    cache = DynamicCache()
    places = torch.arange(10, 22)[None]
    with torch.inference_mode():
        model.causal(input_ids=torch.tensor([second]), position_ids=places, past_key_values=cache, use_cache=True)
    for layer in range(model.layers):
        for ours, theirs in (
            (rollout.memory.keys(layer), cache.layers[layer].keys),
            (rollout.memory.values(layer), cache.layers[layer].values),
        ):
            torch.testing.assert_close(ours[:, :, 10:22], theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_layers_without_rotation_are_told_from_those_with_it(tiny):
    model = verified(describe_model(tiny.small("smollm3", no_rope_layers=[1, 0, 1, 1]), None))
    assert [rope.width for rope in model.ropes] == [16, 0, 16, 16]


def test_each_layer_has_its_own_frequencies(tiny):
    kinds = ["sliding_attention", "full_attention"] * 2
    model = verified(describe_model(tiny.small("gemma3_text", head_dim=16, sliding_window=24, layer_types=kinds), None))
    local, world = (model.ropes[layer].inverse_frequencies for layer in (0, 1))
    assert not torch.allclose(local, world)
    assert torch.equal(local, model.ropes[2].inverse_frequencies)


def test_what_latent_attention_keeps_beside_keys_is_rotated(tiny):
    model = verified(describe_model(tiny.small("deepseek_v3", **MLA), None))
    assert all(rope.in_values and rope.width == 8 for rope in model.ropes)


def test_rows_of_zeros_in_the_embedding_do_not_blind_the_probe(tiny):
    causal = deepcopy(tiny.causal("llama"))
    causal.model.embed_tokens.weight[::2] = 0
    model = verified(describe_model(causal, tiny.tokenizer))
    assert all(rope.width and not rope.interleaved for rope in model.ropes)


def test_keys_that_look_alike_under_every_layout_cannot_be_moved(tiny):
    causal = deepcopy(tiny.causal("llama"))
    causal.model.layers[1].self_attn.k_proj.weight[:] = 0
    model = verified(describe_model(causal, tiny.tokenizer))
    assert model.ropes is None
    assert "layer 1 of llama" in model.unmovable


def test_a_norm_after_rotation_is_not_taken_for_a_rotation(tiny):
    causal = tiny.small("hunyuan_v1_dense", head_dim=16)
    for layer in causal.model.layers:
        layer.self_attn.key_layernorm.weight.data += torch.randn(16)
    model = verified(describe_model(causal, None))
    assert model.ropes is None
    assert "not known" in model.unmovable


@pytest.mark.parametrize("seed", range(2))
def test_rounding_that_grows_from_layer_to_layer_hides_no_rotation(tiny, seed):
    # Beside a sink a slot alone weighs less than 1, and how much less is rounded otherwise at every position.
    sizes = {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}
    causal = tiny.small("gpt_oss", attention="eager", num_hidden_layers=24, **sizes)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in causal.named_parameters():
        if weight.dim() > 1 and "embed" not in name:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 / weight.shape[-1] ** 0.5)
    model = verified(describe_model(causal.to(torch.bfloat16), None, "eager"))
    assert model.ropes is not None, model.unmovable


def test_a_large_bias_in_channels_that_hardly_turn_hides_no_rotation(tiny):
    # As in Qwen 2.5, whose keys are nothing but bias to the eye of bfloat16.
    causal = tiny.small("qwen2", head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    for layer in causal.model.layers:
        layer.self_attn.k_proj.bias.copy_(torch.tensor([0.0] * 7 + [200.0] + [0.0] * 8).repeat(2))
    model = verified(describe_model(causal.to(torch.bfloat16), None), joins=True)
    assert model.ropes is not None, model.unmovable
