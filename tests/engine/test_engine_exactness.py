"""Greedy tokens of stock vLLM with thoughts equal those of the transformers backend and of the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from contracts.laws import chain, prompts
from engine.conftest import BLOCK, PLACEHOLDER, Bench, Model, Row, Watch
from latentmas.program import Program, Read

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

THOUGHTS = [0, 1, 5, 20, 40]
MODELS = [
    Model(),
    Model(realign=True),
    Model(tied=True, realign=True),
    Model(kind="qwen2"),
    Model(kind="llama", realign=True),
    Model(kind="mistral"),
    Model(kind="gemma", tied=True),
]


def written(backend: Any, rows: Sequence[Row]) -> list[tuple[int, ...]]:
    return [completion.steps[-1].written for completion in backend.run([row.program for row in rows])]


def check(backend: Any, rows: Sequence[Row], *, alone: int = 2) -> int:
    """Compare a batch, and some rows alone, with both references; return how many rows rounding decides."""
    assert len({row.oracle for row in rows}) > 1, "prompts must lead to different answers"
    wrong = [
        number
        for number, (row, got) in enumerate(zip(rows, written(backend, rows), strict=True))
        if row.sane and not got == row.transformers == row.oracle
    ]
    assert not wrong, f"in a batch, rows {wrong} differ"
    for number, row in enumerate(rows[:alone]):
        [got] = written(backend, [row])
        assert not row.sane or got == row.transformers == row.oracle, f"alone, row {number} differs"
    return sum(not row.sane for row in rows)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_number_of_thoughts_equals_both_references(bench: Bench, report: Any, model: Model) -> None:
    with bench.engine(model) as backend:
        chaotic = sum(check(backend, bench.rows(model, thoughts)) for thoughts in THOUGHTS)
    report(f"{chaotic} of {6 * len(THOUGHTS)} rows decided by rounding")
    assert chaotic == 0, "these models were made tame, so that no row has to be left out"


@pytest.mark.v2
@pytest.mark.parametrize("model", [Model(realign=True), Model(kind="gemma", tied=True)], ids=str)
def test_a_few_thoughts_equal_both_references(bench: Bench, model: Model) -> None:
    with bench.engine(model) as backend:
        for thoughts in (0, 1, 5):
            assert check(backend, bench.rows(model, thoughts, 3), alone=1) == 0


@pytest.mark.v2
@pytest.mark.parametrize("asynchronous", [False, True])
def test_long_thinking_with_and_without_asynchronous_scheduling(
    bench: Bench, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.platforms.cpu import CpuPlatform

    settle = CpuPlatform.check_and_update_config

    def settled(config: Any) -> None:  # it turns asynchronous scheduling off, which GPUs have on
        settle(config)
        config.scheduler_config.async_scheduling = asynchronous

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", staticmethod(settled))
    model = Model(realign=True)
    with bench.engine(model, enable_prefix_caching=True) as backend:
        watch = Watch(backend)
        assert watch.name == ("_LatentAsyncScheduler" if asynchronous else "_LatentScheduler")
        for thoughts in (1, 20):
            check(backend, bench.rows(model, thoughts, 4), alone=1)


@pytest.mark.v2
@pytest.mark.parametrize("budget", [64, 8192])
def test_the_budget_of_a_step_changes_nothing(bench: Bench, budget: int) -> None:
    model = Model(realign=True)
    with bench.engine(model, max_num_batched_tokens=budget) as backend:
        check(backend, bench.rows(model, 20, 4), alone=1)
        check(backend, long_rows(bench, model), alone=1)


def long_rows(bench: Bench, model: Model) -> list[Row]:
    """Prompts that are longer than the small budget."""
    return bench._expect(model, 3, [prompts(seed, shortest=60, longest=90, agents=3) for seed in range(3)])


def test_rows_that_come_while_others_run_equal_their_own_single_runs(bench: Bench) -> None:
    from latentmas.protocols import Job

    model = Model(realign=True)
    rows = [*bench.rows(model, 5), *bench.rows(model, 20), *bench.rows(model, 0)]
    with bench.engine(model, max_num_seqs=4) as backend:
        waiting, found = list(enumerate(rows)), {}
        while len(found) < len(rows):
            for number, row in waiting[:3]:
                backend.submit(Job(key=str(number), program=row.program))
            del waiting[:3]
            found |= {outcome.key: outcome.steps[-1].written for outcome in backend.collect()}
    assert [number for number, row in enumerate(rows) if row.sane and found[str(number)] != row.oracle] == []


# The prefix cache


def hit(tokens: Sequence[int]) -> int:
    """Return how much of a repeated prompt can come out of the cache."""
    whole = (len(tokens) - 1) // BLOCK * BLOCK
    while whole and tokens[whole] == PLACEHOLDER:
        whole -= BLOCK
    return whole


def tokens_of(program: Program) -> list[int]:
    from latentmas.backends.vllm.requests import Passage

    return list(Passage(program, 0, PLACEHOLDER).request().tokens)


@pytest.mark.v2
@pytest.mark.parametrize("model", [Model(realign=True), Model(kind="mistral")], ids=str)
def test_a_cold_and_a_warm_cache_give_the_same_tokens_and_every_whole_block_is_hit(bench: Bench, model: Model) -> None:
    inside = kept = 0
    with bench.engine(model, enable_prefix_caching=True) as backend:
        for thoughts in (5, 40):
            rows = bench.rows(model, thoughts, 4)
            cold = backend.run([row.program for row in rows])
            warm = backend.run([row.program for row in rows])
            for row, first, again in zip(rows, cold, warm, strict=True):
                assert not row.sane or first.steps[-1].written == again.steps[-1].written == row.oracle
                tokens = tokens_of(row.program)
                inside += tokens[(len(tokens) - 1) // BLOCK * BLOCK] == PLACEHOLDER
                reused = sum(account.reused_slots for account in again.steps)
                if model.kind == "mistral":  # a window forgets; what it kept must still be right
                    assert reused <= hit(tokens)
                    kept += reused
                else:
                    assert reused == hit(tokens)
    assert inside, "some hits must end inside of a thought run"
    assert model.kind != "mistral" or kept, "and some must be hits at all"


@pytest.mark.v2
def test_a_hit_that_ends_inside_a_thought_run_steps_back(bench: Bench) -> None:
    """Two questions with the same first agent: 20 tokens and 60 thoughts, so blocks end at thoughts 12 and 44."""
    model = Model(realign=True)
    first = prompts(1, agents=1, shortest=20, longest=20)
    said = [first + prompts(seed, agents=2, shortest=8) for seed in range(4)]
    rows = bench._expect(model, 60, said)
    with bench.engine(model, enable_prefix_caching=True) as backend:
        reused = []
        for row in rows:
            [done] = backend.run([row.program])
            assert not row.sane or done.steps[-1].written == row.oracle
            reused.append(sum(account.reused_slots for account in done.steps))
    # Both blocks of the shared beginning end in front of a thought; nothing can be taken.
    assert reused == [0, 0, 0, 0]
    assert sum(row.sane for row in rows) >= 2


def test_thoughts_and_written_placeholders_are_kept_apart_in_the_cache(bench: Bench) -> None:
    """A request that wrote the placeholder leaves blocks with the same tokens as one that thought there."""
    from latentmas.backends.vllm.scheduler import _salted

    hasher = _salted(lambda request: [b"x" * 32, b"y" * 32], "some request")
    other = _salted(lambda request: [b"x" * 32, b"y" * 32], "another request")
    assert len({*hasher(None), *other(None), b"x" * 32, b"y" * 32}) == 6
    model = Model()
    read = tokens_of(bench.rows(model, 0)[0].program)
    with bench.engine(model, enable_prefix_caching=True) as backend:
        watch = Watch(backend)
        # As if the placeholder had been written first and read as a thought afterwards.
        request = _fake_request(watch.scheduler, read)
        before = list(request.block_hashes)
        watch.scheduler._update_request_with_output(request, [PLACEHOLDER] + [5] * (2 * BLOCK))
        plain = _fake_request(watch.scheduler, [*read, PLACEHOLDER] + [5] * (2 * BLOCK))
        assert request.block_hashes[: len(before)] == plain.block_hashes[: len(before)]
        assert not {*request.block_hashes[len(before) :]} & {*plain.block_hashes}


def _fake_request(scheduler: Any, tokens: Sequence[int]) -> Any:
    from vllm import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request, RequestStatus

    hash_function = get_hash_fn_by_name("sha256")
    init_none_hash(hash_function)
    request = Request(
        request_id="r",
        prompt_token_ids=list(tokens),
        sampling_params=SamplingParams(max_tokens=200),
        pooling_params=None,
        block_hasher=get_request_block_hasher(BLOCK, hash_function),
    )
    request.status = RequestStatus.WAITING
    request.num_output_placeholders = 1 + 2 * BLOCK
    return request


# Preemption, counting, and what must fail


@pytest.mark.v2
def test_preemptions_change_nothing(bench: Bench, report: Any) -> None:
    model = Model(realign=True)
    rows = [row for _ in range(3) for thoughts in (5, 20) for row in bench.rows(model, thoughts)]
    with bench.engine(model, kv_cache_memory_bytes=640 << 10, max_model_len=256, max_num_seqs=16) as backend:
        watch = Watch(backend)
        together = written(backend, rows)
        if watch.preemptions < 20:
            together = written(backend, rows)
    report(f"{watch.preemptions} preemptions")
    assert watch.preemptions >= 20
    assert [number for number, row in enumerate(rows) if row.sane and together[number] != row.oracle] == []


def test_only_requests_that_run_hold_a_slot(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the V1 runner: one that was preempted starts anew, and whoever takes its place needs the slot."""
    model = Model()
    rows = [row for _ in range(3) for row in bench.rows(model, 20)]
    with bench.engine(model, kv_cache_memory_bytes=640 << 10, max_model_len=256, async_scheduling=False) as backend:
        watch = Watch(backend)
        worker = backend._engine._engine.engine_core.engine_core.model_executor.driver_worker.worker
        store, held = worker._watch._thoughts, []
        begin = store.begin

        def looked_at(chunks: Any) -> None:
            held.append({*worker._watch._slots} - {request.request_id for request in watch.scheduler.running})
            begin(chunks)

        monkeypatch.setattr(store, "begin", looked_at)
        written(backend, rows)
    assert watch.preemptions > 0
    assert not any(held)


@pytest.mark.v2
def test_without_preemption_each_position_is_computed_once(bench: Bench) -> None:
    model = Model(realign=True)
    rows = [*bench.rows(model, 5, 4), *bench.rows(model, 20, 4)]
    with bench.engine(model, async_scheduling=False) as backend:
        watch = Watch(backend)
        done = backend.run([row.program for row in rows])
    assert watch.preemptions == 0
    prefilled = sum(len(tokens_of(row.program)) for row in rows)
    # The first token is written by the last position of the prompt, and the last one is never read.
    decoded = sum(completion.steps[-1].forward_passes for completion in done)
    assert watch.positions == prefilled + decoded == sum(completion.steps[-1].slots for completion in done)


@pytest.mark.v2
def test_the_stock_model_on_the_same_requests_gives_other_tokens(bench: Bench) -> None:
    """The control: it must fail, or these tests show nothing."""
    from latentmas.backends.vllm.engine import VLLMEngine
    from latentmas.backends.vllm.requests import Passage

    model = Model()
    rows = [row for row in bench.rows(model, 5) if row.sane]
    engine = VLLMEngine(bench.options(model, latent=False))
    try:
        for number, row in enumerate(rows):
            engine.add(str(number), Passage(row.program, 0, PLACEHOLDER).request())
        found = {}
        while len(found) < len(rows):
            found |= {item.name: item.written for item in engine.step()}
    finally:
        engine.close()
    same = [number for number, row in enumerate(rows) if found[str(number)] == row.oracle]
    assert len(rows) >= 5
    assert same == []


def test_an_engine_without_our_settings_has_none_of_our_classes(bench: Bench) -> None:
    model = Model()
    rows = bench.rows(model, 0)
    with bench.engine(model, latent=False) as backend:
        core = backend._engine._engine.engine_core.engine_core
        worker = core.model_executor.driver_worker.worker
        parts = [core.scheduler, worker, worker.model_runner, worker.get_model()]
        ours = [type(part).__module__ for part in parts if "latentmas" in type(part).__module__]
        assert ours == []
        assert "_model_forward" not in vars(worker.model_runner)
        # Without thoughts a team is a plain prompt, and stock vLLM writes the same.
        assert written(backend, [row for row in rows if row.sane]) == [row.oracle for row in rows if row.sane]


def test_a_question_alone_is_read_as_it_is(bench: Bench) -> None:
    """A program without thoughts on an engine that thinks."""
    model = Model()
    program = chain(prompts(3, agents=1), thoughts=0)
    import torch

    with bench.engine(model) as backend:
        [ours] = backend.run([program])
    [theirs] = bench.transformers(model, torch.float32).run([program])
    assert ours.steps[-1].written == theirs.steps[-1].written
    assert isinstance(program.steps[0], Read)
