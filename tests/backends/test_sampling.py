"""Penalties and limits of sampling, against what transformers itself does."""

import pytest
import torch

from latentmas.backends.hf.sampling import _candidates, penalized
from latentmas.program import Program, Read, Sampling, Think, Write

PROMPT = (72, 101, 108, 108, 111, 32, 119)
PENALTY = 1.4


def logits(rows=3, width=40):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 3


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_the_penalty_is_that_of_transformers(penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    seen = torch.tensor([[1, 5, 5, 9], [0, 39, 2, 2], [7, 7, 7, 7]])
    known = torch.zeros(3, 40, dtype=torch.bool).scatter(1, seen, True)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits())
    torch.testing.assert_close(penalized(logits(), known, penalty), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("min_p", [0.001, 0.05, 0.6])
@pytest.mark.parametrize("limits", [{}, {"top_k": 7}, {"top_p": 0.8}, {"top_k": 30, "top_p": 0.9}])
def test_min_p_leaves_the_tokens_that_transformers_leaves(min_p, limits):
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scaled = logits() / 0.8
    left = scaled
    if "top_k" in limits:
        left = TopKLogitsWarper(limits["top_k"])(None, left)
    if "top_p" in limits:
        left = TopPLogitsWarper(limits["top_p"])(None, left)
    left = MinPLogitsWarper(min_p)(None, left)
    values, tokens = _candidates(scaled, Sampling(temperature=0.8, min_p=min_p, **limits))
    ours = torch.full_like(scaled, -torch.inf).scatter(1, tokens, values)
    assert torch.equal(ours.isfinite(), left.isfinite())


def write(**changes):
    return Write(agent="b", max_new_tokens=24, sampling=Sampling(repetition_penalty=PENALTY, **changes))


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_one_agent_alone_writes_what_generate_writes(tiny, kind):
    backend = tiny.backend(kind)
    [ours] = backend.run([Program((Read(agent="b", tokens=PROMPT), write()))])
    ids = torch.tensor([PROMPT])
    made = (
        tiny.causal(kind)
        .generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            repetition_penalty=PENALTY,
            pad_token_id=259,
        )[0, len(PROMPT) :]
        .tolist()
    )
    written = [token for token in made if token not in tiny.ends]
    assert list(ours.steps[-1].written) == written
    plain = backend.run([Program((Read(agent="b", tokens=PROMPT), Write(agent="b", max_new_tokens=24)))])[0]
    assert plain.steps[-1].written != ours.steps[-1].written


def test_what_other_agents_left_in_memory_is_not_penalized(tiny):
    """Against a loop of its own: the penalty sees the last agent's prompt and text, the attention everything."""
    model, alignment = tiny.model("qwen3"), tiny.alignment(tiny.model("qwen3"))
    first, second = tuple(range(97, 123)), PROMPT
    program = Program(
        (Read(agent="a", tokens=first), Think(agent="a", steps=2), Read(agent="b", tokens=second), write())
    )
    [ours] = tiny.backend("qwen3").run([program])
    causal, embed = tiny.causal("qwen3"), tiny.causal("qwen3").get_input_embeddings()
    inputs = embed(torch.tensor([first]))
    for _ in range(2):
        hidden = causal.model(inputs_embeds=inputs).last_hidden_state[:, -1]
        inputs = torch.cat([inputs, alignment(hidden)[:, None]], dim=1)
    inputs = torch.cat([inputs, embed(torch.tensor([second]))], dim=1)
    seen, written = set(second), []
    while len(written) < 24:
        scores = causal(inputs_embeds=inputs).logits[0, -1].clone()
        for token in seen:
            scores[token] = scores[token] * PENALTY if scores[token] < 0 else scores[token] / PENALTY
        token = int(scores.argmax())
        if token in tiny.ends:
            break
        written.append(token)
        seen.add(token)
        inputs = torch.cat([inputs, embed(torch.tensor([[token]]))], dim=1)
    assert list(ours.steps[-1].written) == written
    assert model.causal is causal


@pytest.mark.parametrize("temperature", [0.0, 1.1])
def test_a_penalized_row_does_not_depend_on_the_rows_beside_it(tiny, temperature):
    backend = tiny.backend("qwen3", batch_size=4)
    prompts = [PROMPT, PROMPT[:3], tuple(range(40, 60)), PROMPT[::-1]]
    programs = [
        Program((Read(agent="b", tokens=tokens), write(temperature=temperature, min_p=0.02))) for tokens in prompts
    ]
    together = backend.run(programs, seeds=[1, 2, 3, 4])
    alone = [backend.run([program], seeds=[seed])[0] for seed, program in enumerate(programs, start=1)]
    assert [row.steps[-1].written for row in together] == [row.steps[-1].written for row in alone]


def test_a_second_text_of_the_same_agent_remembers_the_first(tiny):
    """Read, Write, Read, Write penalizes what was read and written before, as generate does on the whole chat."""
    backend = tiny.backend("qwen3")
    short = Write(agent="b", max_new_tokens=5, sampling=Sampling(repetition_penalty=PENALTY))
    read, again = Read(agent="b", tokens=PROMPT), Read(agent="b", tokens=(33, 34))
    [twice] = backend.run([Program((read, short, again, write()))])
    first = twice.steps[1].written
    whole = Read(agent="b", tokens=(*PROMPT, *first, 33, 34))
    [once] = backend.run([Program((whole, write()))])
    assert twice.steps[-1].written == once.steps[-1].written
