"""Laws 1 to 6 of DESIGN section 2 on every backend, and what only tensors can show on the transformers backend."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.vllm.scripted_engine import engine_backend
from contracts import laws
from contracts.laws import GREEDY, WARM, Subject, chain, jobs, prompts
from latentmas.backends.hf.backend import HFBackend
from latentmas.backends.hf.chat import ChatCodec
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.backends.hf.sampling import CANDIDATES, choose, normal, stream_key, uniform
from latentmas.backends.hf.watch import Watch
from latentmas.backends.scripted import ScriptedBackend
from latentmas.errors import CapabilityError, NumericalError, SampleError
from latentmas.program import (
    Budget,
    Handover,
    Join,
    KeepSpec,
    Positions,
    Program,
    Protect,
    Read,
    Sampling,
    Storage,
    Think,
    ThoughtSource,
    Write,
)
from latentmas.protocols import Capability, Completion, Job, JobError

CONTEXT = 1024
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
POISON = 199
"""A token that random prompts may hold; its embedding is NaN in poisoned models only."""


def hf_subject(tiny: Any, **options: Any) -> Subject:
    return Subject(
        name="transformers",
        open=lambda capacity: tiny.backend(batch_size=capacity, realign=True, **options),
        positions_matter=False,
    )


@pytest.fixture(params=["scripted", "transformers", "engine", pytest.param("cuda", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest, tiny: Any) -> Subject:
    if request.param == "scripted":
        return Subject(
            name="scripted",
            open=lambda capacity: ScriptedBackend(capacity=capacity, context=CONTEXT),
            positions_matter=True,
        )
    if request.param == "engine":
        return Subject(
            name="vllm on a scripted engine",
            open=lambda capacity: engine_backend(running=capacity, context=CONTEXT),
            positions_matter=True,
        )
    if request.param == "cuda":
        return hf_subject(tiny, device="cuda")
    return hf_subject(tiny)


def roll(model: Any, alignment: Any, programs: Sequence[Program], seeds: Sequence[int] | None = None) -> Rollout:
    """Run programs in one batch and return the rollout, whose memory and hidden states can be looked at."""
    rows = [Row(program=program, seed=seed) for program, seed in zip(programs, seeds or range(99), strict=False)]
    rollout = Rollout(model, alignment, rows)
    rollout.run()
    return rollout


def unread(program: Program) -> Program:
    """Return the program without its Write, so that no row leaves the batch."""
    return Program(program.steps[:-1])


def row_tensors(rollout: Rollout, row: int) -> list[Tensor]:
    """Return everything the rollout knows of a row: hidden state, keys and values."""
    memory = rollout.memory
    assert rollout.hidden is not None
    layers = [buffer[row] for layer in range(memory.layers) for buffer in (memory.keys(layer), memory.values(layer))]
    return [rollout.hidden[row], memory.valid[row], memory.positions[row], *layers]


def all_equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


# Law 1: others do not matter


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_share_a_backend_do_not_matter_to_each_other(subject: Subject, threads: int) -> None:
    laws.check_threads_do_not_matter(subject, laws.mixed_work(WARM, rows=5), threads)


def test_a_job_that_is_taken_back_has_no_outcome(subject: Subject) -> None:
    laws.check_what_is_taken_back_has_no_outcome(subject, laws.mixed_work(GREEDY, rows=5))


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_neither_batch_nor_order_nor_company_changes_an_outcome(subject: Subject, sampling: Sampling) -> None:
    laws.check_others_do_not_matter(subject, laws.mixed_work(sampling))


def test_rows_that_write_in_the_middle_do_not_affect_each_other(subject: Subject) -> None:
    def program(row: int) -> Program:
        first, second = prompts(row, agents=2)
        return Program(
            (
                Read(agent="a", tokens=first),
                Write(agent="a", max_new_tokens=12),
                Think(agent="a", steps=2),
                Handover(agent="a"),
                Read(agent="b", tokens=second),
                Write(agent="b", max_new_tokens=12, sampling=WARM),
            )
        )

    laws.check_others_do_not_matter(subject, jobs(map(program, range(8))))


def test_other_tokens_in_other_rows_change_nothing(subject: Subject) -> None:
    laws.check_company_of_equal_shape(subject)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_tokens_in_other_rows_leave_a_row_bit_identical(tiny: Any, dtype: torch.dtype) -> None:
    laws.check_company_of_equal_shape(hf_subject(tiny, dtype=dtype))
    model = tiny.model(dtype=dtype)
    alignment = tiny.alignment(model, realign=True)
    said = [prompts(row) for row in range(4)]
    changed = [row if number == 2 else laws.other_tokens(row) for number, row in enumerate(said)]
    before, after = (
        roll(model, alignment, [unread(chain(row, thoughts=8)) for row in rows]) for rows in (said, changed)
    )
    assert all_equal(row_tensors(before, 2), row_tensors(after, 2))
    assert not all_equal(row_tensors(before, 0), row_tensors(after, 0)), "the other rows did change"


def test_float32_rows_equal_their_own_single_runs_unless_chaotic(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [prompts(seed, shortest=3) for seed in range(12)]
    thinking = [Program(chain(row, thoughts=20).steps[:-3]) for row in rows]
    hidden = []
    for dtype in (torch.float32, torch.float64):
        model = tiny.model(dtype=dtype)
        rollout = roll(model, tiny.alignment(model), thinking)
        assert rollout.hidden is not None
        hidden.append(rollout.hidden.double())
    apart = (hidden[0] - hidden[1]).norm(dim=1) / hidden[1].norm(dim=1)
    chaotic = {row for row in range(len(rows)) if not apart[row] <= 1e-4}
    with capsys.disabled():
        print(f" [{len(chaotic)} of {len(rows)} rows chaotic] ", end="")
    assert len(chaotic) <= len(rows) // 10
    backend = tiny.backend(dtype=torch.float32)
    work = [chain(row, thoughts=20) for row in rows]
    together = backend.run(work)
    differing = [row for row, program in enumerate(work) if together[row] != backend.run([program])[0]]
    assert set(differing) <= chaotic


# Law 2: sampling


def test_draws_are_a_function_of_seed_write_and_step(subject: Subject) -> None:
    laws.check_draws_are_a_function_of_seed_write_and_step(subject)


def test_seeds_decide_samples_and_noise(subject: Subject) -> None:
    laws.check_seeds_decide_samples_and_noise(subject)


def keys_of(count: int) -> Tensor:
    return torch.tensor([stream_key(seed, "write", 0) for seed in range(count)])


def surprise(observed: Tensor, expected: Tensor) -> float:
    """Return the G statistic as a standard normal number (Wilson and Hilferty's cube root)."""
    inside = expected > 0
    assert observed[~inside].sum() == 0, "something impossible was drawn"
    observed, expected = observed[inside].double(), expected[inside] * observed.sum()
    statistic = 2 * torch.special.xlogy(observed, observed / expected).sum()
    freedom = len(observed) - 1
    spread = 2 / (9 * freedom)
    return float((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_samples_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([3.0, 2.5, 2.5, 1.0, 0.0, -0.5, -1.0, 2.0, 0.3, -2.0, 1.7, 0.9])
    expected = torch.softmax(logits.double() / temperature, dim=0)
    keys = keys_of(20_000)
    for step in (0, 7):
        drawn = choose(logits.expand(len(keys), -1), Sampling(temperature=temperature), keys, step)
        assert abs(surprise(drawn.bincount(minlength=12), expected)) < 4
    one_key = keys[:1].expand(1)
    along = torch.cat([choose(logits[None], Sampling(temperature=temperature), one_key, step) for step in range(3000)])
    assert abs(surprise(along.bincount(minlength=12), expected)) < 4


def test_steps_of_one_stream_are_independent() -> None:
    keys = keys_of(8000)
    logits = torch.zeros(len(keys), 4)
    first, second = (choose(logits, Sampling(temperature=1.0), keys, step) for step in (0, 1))
    assert abs(surprise((first * 4 + second).bincount(minlength=16), torch.full((16,), 1 / 16).double())) < 4


def test_random_numbers_are_uniform_and_noise_is_normal() -> None:
    keys = keys_of(400)
    numbers = uniform(keys, 3, torch.arange(250)[None])
    assert 0 < float(numbers.min()) < float(numbers.max()) < 1
    assert abs(surprise((numbers.flatten() * 50).long().bincount(minlength=50), torch.full((50,), 0.02).double())) < 4
    noise = normal(keys, 3, 250)
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(float((noise**4).mean()) - 3) < 0.15
    assert len(noise.unique()) > 99_000


def nucleus(logits: list[float], sampling: Sampling) -> set[int]:
    """Return who may be drawn, from the definition: sorted by likelihood, ties all in or all out."""
    scaled = [logit / sampling.temperature for logit in logits]
    ranked = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    if sampling.top_k:
        least = scaled[ranked[min(sampling.top_k, len(ranked)) - 1]]
        ranked = [token for token in ranked if scaled[token] >= least]
    weights = [math.exp(scaled[token] - scaled[ranked[0]]) for token in ranked]
    reached, least = 0.0, -math.inf
    for token, weight in zip(ranked, weights, strict=True):
        reached += weight / math.fsum(weights)
        if sampling.top_p < 1 and reached >= sampling.top_p:
            least = scaled[token]
            break
    return {token for token in ranked if scaled[token] >= least}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_p=0.5),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=2.0, top_p=0.9),
        Sampling(temperature=1.0, top_p=1e-9),
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=1.0, top_k=3),
        Sampling(temperature=1.0, top_k=99),
        Sampling(temperature=1.5, top_k=5, top_p=0.8),
    ],
    ids=lambda sampling: f"t{sampling.temperature}-p{sampling.top_p}-k{sampling.top_k}",
)
@pytest.mark.parametrize(
    "logits",
    [
        [0.1, 2.0, 1.1, -0.4, 1.6, 0.7, 0.0],
        [1.0, 1.0, 0.5, 1.0, 0.5, 0.0, 0.5],  # ties at every threshold
        [0.5] * 7,
    ],
    ids=["distinct", "ties", "flat"],
)
def test_top_p_and_top_k_leave_exactly_the_nucleus(logits: list[float], sampling: Sampling) -> None:
    keys = keys_of(4000)
    drawn = choose(torch.tensor(logits).expand(len(keys), -1), sampling, keys, 0)
    allowed = nucleus(logits, sampling)
    assert set(drawn.tolist()) == allowed
    weights = torch.tensor([math.exp(x / sampling.temperature) if n in allowed else 0 for n, x in enumerate(logits)])
    if len(allowed) > 1:
        assert abs(surprise(drawn.bincount(minlength=7), (weights / weights.sum()).double())) < 4


def test_a_nucleus_wider_than_the_candidates_is_not_cut() -> None:
    keys = keys_of(256)
    flat = torch.linspace(0, 0.1, 3 * CANDIDATES).expand(len(keys), -1)
    drawn = choose(flat, Sampling(temperature=1.0, top_p=0.95), keys, 0)
    allowed = nucleus(flat[0].double().tolist(), Sampling(temperature=1.0, top_p=0.95))
    assert set(drawn.tolist()) <= allowed
    assert (drawn < 2 * CANDIDATES).sum() > 128, "the less likely half of the nucleus is drawn as well"


def test_the_draw_does_not_depend_on_the_path_that_found_the_nucleus() -> None:
    keys = keys_of(64)
    peaked = torch.full((64, 3 * CANDIDATES), -50.0)
    peaked[:, 5:4005:2000] = torch.tensor([1.0, 0.5])
    wide = torch.cat([peaked[:-1], torch.zeros(1, 3 * CANDIDATES)])  # its last row forces the slow path for all
    sampling = Sampling(temperature=1.0, top_p=0.9)
    assert torch.equal(choose(peaked, sampling, keys, 0)[:-1], choose(wide, sampling, keys, 0)[:-1])


def test_every_purpose_has_a_stream_of_its_own() -> None:
    keys = [stream_key(seed, domain, n) for seed in (-1, 0, 1, 2**70) for domain in ("write", "noise") for n in (0, 1)]
    assert len(set(keys)) == len(keys)


# Law 3: steps compose


def test_steps_compose(subject: Subject) -> None:
    laws.check_steps_compose(subject)


@pytest.mark.parametrize("source", list(ThoughtSource))
def test_thinking_in_two_steps_is_bit_identical(tiny: Any, source: ThoughtSource) -> None:
    model = tiny.model(dtype=torch.float32)

    def thinking(*steps: int) -> Rollout:
        programs = [
            Program((Read(agent="a", tokens=p), *(Think(agent="a", steps=n, source=source) for n in steps)))
            for (p,) in (prompts(row, agents=1) for row in range(3))
        ]
        return roll(model, tiny.alignment(model), programs)

    whole = row_tensors(thinking(7), 1)
    assert all_equal(whole, row_tensors(thinking(3, 4), 1))
    assert all_equal(whole, row_tensors(thinking(0, 7, 0), 1))
    assert not all_equal(whole, row_tensors(thinking(3, 4), 0)), "another row is another row"


# Laws 4 and 5: positions and hand-overs


def drops(subject: Subject) -> None:
    if not subject.can(Capability.PARTIAL_HANDOVER):
        pytest.skip(f"{subject.name} hands over everything")


def test_dropped_slots_are_dropped_for_every_later_step(subject: Subject) -> None:
    drops(subject)
    laws.check_dropped_slots_are_dropped(subject)


def test_dropping_frees_no_position(subject: Subject, tiny: Any) -> None:
    drops(subject)
    if subject.positions_matter:
        laws.check_dropping_frees_no_position(subject)
    else:
        laws.check_positions_after_dropping(tiny.memories)


def test_keeping_everything_changes_nothing(subject: Subject) -> None:
    laws.check_keeping_everything_changes_nothing(subject)


def run_with(model: Any, alignment: Any, programs: Sequence[Program], at: Callable[[Rollout], None]) -> Rollout:
    """Run programs step by step, and do something to the rollout before each step but the first."""
    rollout = Rollout(model, alignment, [Row(program=program, seed=0) for program in programs])
    with torch.inference_mode():
        for number in range(len(programs[0].steps)):
            if number:
                at(rollout)
            rollout.step(number, last=number + 1 == len(programs[0].steps))
    return rollout


def gather_everything(rollout: Rollout) -> None:
    rollout.memory = rollout.memory.keep(rollout.memory.valid)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keeping_everything_through_the_gather_path_is_bit_identical(tiny: Any, dtype: torch.dtype) -> None:
    model = tiny.model(dtype=dtype)
    programs = [unread(chain(prompts(4), thoughts=5))]
    plain = roll(model, tiny.alignment(model), programs)
    gathered = run_with(model, tiny.alignment(model), programs, gather_everything)
    assert all_equal(row_tensors(plain, 0), row_tensors(gathered, 0))


def test_keeping_everything_through_the_gather_path_keeps_the_tokens_of_ragged_rows(tiny: Any) -> None:
    model = tiny.model()
    programs = [chain(prompts(row), thoughts=5) for row in range(5)]
    expected = [completion.steps[-1].written for completion in tiny.open(model).run(programs)]
    rows = [Row(program=program, seed=0) for program in programs]
    rollout = Rollout(model, tiny.alignment(model), rows)
    with torch.inference_mode():
        for number in range(len(programs[0].steps)):
            if number:
                gather_everything(rollout)
            rollout.step(number, last=number + 1 == len(programs[0].steps))
    assert [row.accounts[-1].written for row in rows] == expected


def test_keys_and_values_of_a_dropped_slot_are_never_read_again(tiny: Any) -> None:
    model = tiny.model(dtype=torch.float32)
    programs = [unread(chain(prompts(row), thoughts=3, keep="thoughts")) for row in range(3)]

    def spoil(rollout: Rollout) -> None:
        step = rollout.rows[0].program.steps[len(rollout.rows[0].accounts)]
        if isinstance(step, Handover) and step.keep.name == "thoughts":
            memory = rollout.memory
            doomed = (memory.kinds != 1).nonzero().tolist()
            for row, slot in doomed:
                for layer in range(memory.layers):
                    memory.keys(layer)[row, :, slot] = 1e4
                    memory.values(layer)[row, :, slot] = 1e4

    plain = run_with(model, tiny.alignment(model), programs, lambda _: None)
    spoiled = run_with(model, tiny.alignment(model), programs, spoil)
    for row in range(3):
        assert all_equal(row_tensors(plain, row), row_tensors(spoiled, row))


# Joining


def joins(subject: Subject) -> None:
    if not subject.can(Capability.JOIN):
        pytest.skip(f"{subject.name} cannot join memories")


@pytest.mark.parametrize(
    "check",
    [
        laws.check_joined_rows_do_not_affect_each_other,
        laws.check_branches_are_read_alone_and_in_order,
        laws.check_joined_accounts_add_up,
        laws.check_an_agent_in_two_branches_is_laid_down_once,
        laws.check_going_on_from_a_branch_equals_computing_it_again,
        laws.check_what_several_hear_is_computed_once,
        laws.check_rows_that_recall_do_not_affect_each_other,
    ],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_joining(subject: Subject, check: Callable[[Subject], None]) -> None:
    joins(subject)
    check(subject)


def test_joined_positions_follow_each_other(subject: Subject, tiny: Any) -> None:
    joins(subject)
    if subject.positions_matter:
        laws.check_joined_positions_follow_each_other(subject)
        return
    [memory] = tiny.memories([unread(laws.team_of(1))])
    assert memory.positions[0].tolist() == list(range(memory.slots))
    dropping = Program(
        (
            Join(
                branches=(
                    Program((Read(agent="a", tokens=(1, 2, 3)), Handover(agent="a", keep=KeepSpec(name="thoughts")))),
                    Program((Read(agent="b", tokens=(5, 6)),)),
                )
            ),
            Read(agent="c", tokens=(4,)),
        )
    )
    [memory] = tiny.memories([dropping])
    assert memory.positions[0].tolist() == [3, 4, 5]


@pytest.mark.parametrize("source", list(ThoughtSource))
def test_branches_that_read_the_same_think_the_same_unless_they_draw(tiny: Any, source: ThoughtSource) -> None:
    model = tiny.model()
    said = [((3, 1, 4, 1, 5),), ((3, 1, 4, 1, 5),), ((9, 2),)]
    rollout = roll(model, tiny.alignment(model), [unread(laws.joined(said, thoughts=(2, 2), source=source))])
    values = rollout.memory.values(0)[0]  # not rotated, so that places do not matter
    first, second = values[:, 5:7], values[:, 12:14]
    assert torch.allclose(first, second) == (source is ThoughtSource.OWN)


def test_a_branch_that_breaks_ends_its_own_job_only(tiny: Any) -> None:
    model, alignment = poisoned(tiny, torch.float64)
    said = [
        [tuple(tuple(t % POISON for t in p) for p in prompts(9 * row + n, agents=1)) for n in range(3)]
        for row in range(3)
    ]
    good = [laws.joined(row, thoughts=(2, 2)) for row in said]
    broken = laws.joined([((*said[1][0][0], POISON),), *said[1][1:]], thoughts=(2, 2))
    expected = laws.outcomes(HFBackend(model, ChatCodec(tiny.tokenizer), alignment), jobs(good))
    found = laws.outcomes(HFBackend(model, ChatCodec(tiny.tokenizer), alignment), jobs([good[0], broken, good[2]]))
    error = found.pop("job-1")
    assert isinstance(error, JobError)
    assert isinstance(error.error, NumericalError)
    assert "expert 0" in str(error.error)
    del expected["job-1"]
    assert found == expected


@pytest.mark.parametrize("place", range(6))
def test_whoever_breaks_among_those_that_recall_ends_its_own_job_only(tiny: Any, place: int) -> None:
    model, alignment = poisoned(tiny, torch.float64)

    def poison(program: Program, which: int | None) -> Program:
        """Put the token into one branch, and take it out of all others."""
        join, *rest = program
        assert isinstance(join, Join)

        def cleaned(step: Any, bad: bool) -> Any:
            if not isinstance(step, Read):
                return step
            return replace(step, tokens=(*(token % POISON for token in step.tokens), *(POISON,) * bad))

        branches = [
            Program(tuple(cleaned(step, number == which) for step in branch))
            for number, branch in enumerate(join.branches)
        ]
        return Program((replace(join, branches=tuple(branches)), *(cleaned(step, False) for step in rest)))

    good = [poison(laws.ladder(row), None) for row in range(3)]
    expected = laws.outcomes(HFBackend(model, ChatCodec(tiny.tokenizer), alignment), jobs(good))
    batch = jobs([good[0], poison(laws.ladder(1), place), good[2]])
    found = laws.outcomes(HFBackend(model, ChatCodec(tiny.tokenizer), alignment), batch)
    error = found.pop("job-1")
    assert isinstance(error, JobError)
    assert isinstance(error.error, NumericalError)
    assert f"agent {'abcdef'[place]!r}" in str(error.error)
    del expected["job-1"]
    assert found == expected


# Filters

FILTERS = [
    ("receiver", {"grain": "head"}),
    ("receiver", {"grain": "token"}),
    ("sender", {"grain": "layer"}),
    ("knn", {"strategy": "bottom"}),
    ("random", {}),
    ("key_norm", {"grain": "head"}),
    ("key_difference", {"grain": "layer"}),
    ("recency", {}),
]


def half(name: str, parameters: dict[str, str], **options: Any) -> KeepSpec:
    return KeepSpec(name=name, parameters=tuple(parameters.items()), budget=Budget(amount=0.5), **options)


def filtered(row: int, keep: KeepSpec, *, sampling: Sampling = GREEDY, **how: Any) -> Program:
    """Return a chain of four in which every hand-over filters."""
    program = chain(prompts(row, shortest=3), thoughts=3, sampling=sampling)
    return Program(tuple(replace(step, keep=keep, **how) if isinstance(step, Handover) else step for step in program))


@pytest.mark.parametrize(
    ("name", "parameters", "positions"),
    [
        *((name, parameters, Positions.TRUE) for name, parameters in FILTERS),
        ("receiver", {"grain": "head"}, Positions.REROTATE),
        ("knn", {"strategy": "top"}, Positions.PUBLISHED),
    ],
    ids=str,
)
def test_filtered_rows_do_not_affect_each_other(
    tiny: Any, name: str, parameters: dict[str, str], positions: Positions
) -> None:
    keep = half(name, parameters, protect=Protect(sinks=1))
    work = jobs(filtered(row, keep, sampling=WARM, positions=positions) for row in range(5))
    laws.check_others_do_not_matter(hf_subject(tiny), work)


def test_a_hand_over_through_int8_is_the_same_in_any_batch(tiny: Any) -> None:
    keep = half("random", {})
    work = jobs(filtered(row, keep, storage=Storage.INT8) for row in range(5))
    laws.check_others_do_not_matter(hf_subject(tiny), work)
    accounts = [step.handover for step in laws.completions(tiny.backend(), work)["job-0"].steps if step.handover]
    assert len(accounts) == 3
    assert all(account.key_error and 0 < account.key_error < 0.05 for account in accounts)


def test_a_joined_and_filtered_team_is_the_same_in_any_batch(tiny: Any) -> None:
    work = jobs(laws.team_of(row, keep=half("receiver", {"grain": "head"})) for row in range(5))
    laws.check_others_do_not_matter(hf_subject(tiny), work)


def test_a_random_filter_takes_nothing_from_the_stream_of_sampling(tiny: Any) -> None:
    """With the logits out of play only the random numbers of the Write decide."""
    for seed in range(4):
        whole = filtered(1, KeepSpec(), sampling=laws.STREAM_ONLY)
        plain = Program(tuple(step for step in whole if not isinstance(step, Handover)))
        cut = filtered(1, half("random", {}), sampling=laws.STREAM_ONLY)
        one, other = laws.written(tiny.backend(), plain, cut, seed=seed)
        assert one == other


def test_a_random_filter_chooses_by_seed_and_by_hand_over(tiny: Any) -> None:
    program = unread(filtered(1, half("random", {})))
    sets = [roll(tiny.model(), tiny.alignment(tiny.model()), [program], [seed]).memory.positions for seed in range(6)]
    assert len({tuple(positions[0].tolist()) for positions in sets}) == 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["receiver", "recency", "random", "knn"])
def test_a_filter_that_keeps_everything_is_bit_identical_to_none(tiny: Any, dtype: torch.dtype, name: str) -> None:
    model = tiny.model(dtype=dtype)
    everything = KeepSpec(name=name, budget=Budget(amount=1.0))
    plain, kept = (
        roll(model, tiny.alignment(model), [unread(filtered(row, keep)) for row in range(3)])
        for keep in (KeepSpec(), everything)
    )
    for row in range(3):
        assert all_equal(row_tensors(plain, row), row_tensors(kept, row))


def test_what_a_filter_cannot_look_at_is_refused_when_it_is_submitted(tiny: Any) -> None:
    read = Read(agent="a", tokens=(1, 2, 3))
    handover = Handover(agent="a", keep=half("receiver", {}))
    backend = tiny.backend()
    with pytest.raises(CapabilityError, match="nobody reads after"):
        backend.submit(Job(key="x", program=Program((read, handover, Write(agent="a", max_new_tokens=2)))))
    fine = Program((read, handover, read))
    with pytest.raises(CapabilityError, match=r"mistral has sliding windows.*--grain token"):
        tiny.backend("mistral").submit(Job(key="x", program=fine))
    turned = replace(handover, keep=KeepSpec(name="thoughts"), positions=Positions.REROTATE)
    without = replace(tiny.model(), ropes=None, unmovable="its keys lie")
    with pytest.raises(CapabilityError, match="--positions rerotate moves keys, and its keys lie"):
        tiny.open(without).submit(Job(key="x", program=Program((read, turned, read))))
    join = Program((Join(branches=(Program((read,)), Program((read,)))), read))
    with pytest.raises(CapabilityError, match="--topology chain"):
        tiny.open(without).submit(Job(key="x", program=join))


def test_a_sender_that_joined_or_was_cut_before_is_refused_and_one_that_wrote_is_watched(tiny: Any) -> None:
    read, last = (
        Read(agent="a", tokens=(1, 2, 3, 4)),
        (Read(agent="b", tokens=(5,)), Write(agent="b", max_new_tokens=4)),
    )
    cut = Handover(agent="a", keep=half("sender", {}))
    join = Join(branches=(Program((read,)), Program((Read(agent="c", tokens=(7, 8)),))))
    for before in ((join,), (read, cut)):
        with pytest.raises(CapabilityError, match="looks at one agent's turn"):
            tiny.backend().submit(Job(key="x", program=Program((*before, cut, *last))))
    wrote = Program((read, Write(agent="a", max_new_tokens=3), cut, *last))
    steps = laws.completions(tiny.backend(), jobs([wrote]))["job-0"].steps
    assert steps[2].slots == steps[1].slots // 2


def test_heads_that_choose_among_shared_and_other_slots_are_refused_before_a_join(tiny: Any) -> None:
    shared, cut = Read(agent="a", tokens=(1, 2, 3, 4)), Handover(agent="z", keep=half("key_norm", {"grain": "head"}))
    longer = (shared, Read(agent="z", tokens=(5, 6, 7)), cut, Read(agent="d", tokens=(8,)))
    plain, pruned = Program((shared, Read(agent="b", tokens=(9,)))), Program(longer)
    end = (Read(agent="e", tokens=(1, 2)), Write(agent="e", max_new_tokens=3))
    with pytest.raises(CapabilityError, match="'a' is heard through two branches"):
        tiny.backend().submit(Job(key="x", program=Program((Join(branches=(plain, pruned)), *end))))
    assert laws.completions(tiny.backend(), jobs([Program((Join(branches=(pruned, plain)), *end))]))


def test_a_model_whose_attention_cannot_be_watched_is_refused_by_name(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "see", lambda *_, **__: None)
    program = Program(
        (Read(agent="a", tokens=(1,)), Handover(agent="a", keep=half("receiver", {})), Read(agent="b", tokens=(2,)))
    )
    with pytest.raises(CapabilityError, match="the attention of qwen3 cannot be watched: 0 of its 2 layers"):
        tiny.backend().submit(Job(key="x", program=program))


def test_writing_leaves_no_end_of_text_in_memory(subject: Subject) -> None:
    laws.check_writing_leaves_no_end_of_text(subject)


def test_accounts_add_up(subject: Subject) -> None:
    laws.check_accounts_add_up(subject)


# Law 6: refusals, and what one job breaks


def test_what_a_backend_cannot_do_is_refused_by_name(subject: Subject) -> None:
    read = Read(agent="a", tokens=(1, 2, 3))
    last = (Read(agent="b", tokens=(4,)), Write(agent="b", max_new_tokens=4))
    laws.check_refusals(
        subject,
        too_long=Program((read, Write(agent="a", max_new_tokens=CONTEXT))),
        join=Program((Join(branches=(Program((read,)), Program((read,)))), *last)),
        filtered=Program((read, Handover(agent="a", keep=KeepSpec(name="magic")), *last)),
    )


def test_a_program_that_just_fits_the_context_runs(subject: Subject) -> None:
    program = Program((Read(agent="a", tokens=(1,) * (CONTEXT - 2)), Write(agent="a", max_new_tokens=2)))
    assert laws.completions(subject.open(1), jobs([program]))


def poisoned(tiny: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a model in which reading one token gives NaN, and the alignment it had before."""
    clean = tiny.model(dtype=dtype)
    causal = deepcopy(clean.causal)
    causal.get_input_embeddings().weight[POISON] = math.nan
    return replace(clean, causal=causal), tiny.alignment(clean)


@pytest.mark.parametrize("thoughts", [0, 4])
def test_a_thought_that_is_not_finite_ends_its_own_job_only(tiny: Any, thoughts: int) -> None:
    model, alignment = poisoned(tiny, torch.float64)
    rows = [tuple(tuple(t % POISON for t in prompt) for prompt in prompts(row)) for row in range(5)]
    broken = ((*rows[2][0][:-1], POISON), *rows[2][1:])
    good = jobs(chain(row, thoughts=thoughts) for row in rows)
    bad = [*good[:2], replace(good[2], program=chain(broken, thoughts=thoughts)), *good[3:]]
    open_backend = lambda: HFBackend(model, ChatCodec(tiny.tokenizer), alignment)  # noqa: E731
    expected = laws.outcomes(open_backend(), good)
    found = laws.outcomes(open_backend(), bad)
    error = found.pop(good[2].key)
    assert isinstance(error, JobError)
    assert isinstance(error.error, NumericalError)
    assert ("thought" if thoughts else "logit") in str(error.error)
    del expected[good[2].key]
    assert found == expected
    assert all(isinstance(outcome, Completion) for outcome in found.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_thought_that_is_not_finite_leaves_the_others_bit_identical(tiny: Any, dtype: torch.dtype) -> None:
    model, alignment = poisoned(tiny, dtype)

    def thinking(second: int) -> Rollout:
        steps = [(Read(agent="a", tokens=(5, token, 7)), Think(agent="a", steps=4)) for token in (9, second, 11)]
        return roll(model, alignment, [Program(pair) for pair in steps])

    plain, broken = thinking(10), thinking(POISON)
    assert [row.program.steps[0].tokens[1] for row in broken.rows] == [9, 11]  # type: ignore[union-attr]
    for before, after in ((0, 0), (2, 1)):
        assert all_equal(row_tensors(plain, before), row_tensors(broken, after))


def test_a_token_the_model_does_not_have_ends_its_own_job_only(tiny: Any) -> None:
    good = jobs(chain(prompts(row), thoughts=2) for row in range(3))
    strange = Program((Read(agent="a", tokens=(1, 260, 2)), *good[1].program.steps[1:]))
    found = laws.outcomes(tiny.backend(), [good[0], replace(good[1], program=strange), good[2]])
    expected = laws.outcomes(tiny.backend(), good)
    error = found[good[1].key]
    assert isinstance(error, JobError)
    assert "260" in str(error.error)
    assert [found[good[row].key] for row in (0, 2)] == [expected[good[row].key] for row in (0, 2)]


def test_a_run_that_fails_leaves_nothing_behind(subject: Subject) -> None:
    long = Program((Read(agent="a", tokens=(1,)), Write(agent="a", max_new_tokens=CONTEXT)))
    programs = [chain(prompts(row), thoughts=1) for row in range(6)]
    backend: Any = subject.open(1)
    with pytest.raises(SampleError):
        backend.run([long, *programs[:3]])
    expected: Any = subject.open(1)
    assert backend.run(programs[3:]) == expected.run(programs[3:])


def test_a_run_leaves_jobs_in_flight_alone(subject: Subject) -> None:
    backend: Any = subject.open(4)
    waiting = jobs([chain(prompts(0), thoughts=1)])
    backend.submit(waiting[0])
    assert len(backend.run([chain(prompts(1), thoughts=1)])) == 1
    assert [outcome.key for outcome in backend.collect()] == [waiting[0].key]


def starve(monkeypatch: pytest.MonkeyPatch, rows: int, error: Exception | None = None) -> Counter[int]:
    """Let every batch of more rows than that run out of memory; count the batches that ran, by size."""
    run, ran = Rollout.run, Counter[int]()

    def starved(self: Rollout) -> None:
        if len(self.rows) > rows:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        ran[len(self.rows)] += 1
        run(self)

    monkeypatch.setattr(Rollout, "run", starved)
    return ran


def test_out_of_memory_halves_the_batch_and_changes_no_outcome(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work = jobs(chain(prompts(row), thoughts=2, sampling=WARM) for row in range(8))
    expected = laws.outcomes(tiny.backend(batch_size=7), work)
    ran = starve(monkeypatch, rows=2)
    backend = tiny.backend(batch_size=7)
    with caplog.at_level(logging.WARNING):
        assert laws.outcomes(backend, work) == expected
    assert backend.batch_size == backend.capacity == 2
    assert sum(size * times for size, times in ran.items()) == len(work), "no job ran twice"
    assert "out of memory with 7 samples in a batch; going on with 4" in caplog.text


def test_out_of_memory_with_one_row_ends_that_job_only(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Rollout.run

    def starved(self: Rollout) -> None:
        if any(len(row.program.steps[0].tokens) > 50 for row in self.rows):  # type: ignore[union-attr]
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: ...")
        run(self)

    monkeypatch.setattr(Rollout, "run", starved)
    work = jobs(chain(((1,) * length, (2,)), thoughts=1) for length in (4, 60, 5))
    found = laws.outcomes(tiny.backend(), work)
    assert isinstance(found["job-1"], JobError)
    assert isinstance(found["job-1"].error, SampleError)
    assert "out of memory" in str(found["job-1"].error)
    assert all(isinstance(found[key], Completion) for key in ("job-0", "job-2"))


def test_an_error_that_is_not_about_memory_ends_the_job_with_its_message(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starve(monkeypatch, rows=0, error=RuntimeError("expected scalar type Half"))
    backend = tiny.backend()
    backend.submit(jobs([chain(prompts(0), thoughts=1)])[0])
    [outcome] = backend.collect()
    assert isinstance(outcome, JobError)
    assert "RuntimeError: expected scalar type Half" in str(outcome.error)
    assert "broke the rollout" in caplog.text


def test_what_one_job_breaks_the_others_of_its_batch_do_not_feel(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work = jobs([chain(prompts(seed), thoughts=1) for seed in range(4)])
    undisturbed = laws.completions(tiny.backend(), work)
    honest = Rollout.run

    def breaks_on_the_third(rollout: Rollout) -> None:
        if any(row.program == work[2].program for row in rollout.rows):
            raise RuntimeError("unheard of")
        honest(rollout)

    monkeypatch.setattr(Rollout, "run", breaks_on_the_third)
    found = laws.outcomes(tiny.backend(), work)
    assert isinstance(found.pop("job-2"), JobError)
    assert found == {key: done for key, done in undisturbed.items() if key != "job-2"}
