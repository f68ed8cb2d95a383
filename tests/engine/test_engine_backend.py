"""The backend on real engines: the laws, sampling, accounts, and what one job breaks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from contracts import laws
from contracts.laws import GREEDY, STREAM_ONLY, WARM, Subject, chain, jobs, outcomes, prompts
from engine.conftest import CONTEXT, PLACEHOLDER, RUNNER, VOCABULARY, Bench, Model, Watch
from latentmas.errors import ContextLimitError, NumericalError, SampleError
from latentmas.program import Handover, Join, KeepSpec, Program, Read, Sampling, Think, Write
from latentmas.protocols import Completion, Job, JobError

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

MODEL = Model(realign=True)
# The interpreter of Triton cannot run vLLM's kernel for top-p, which is stock vLLM's own on every runner.
SAMPLED = WARM if RUNNER == "V1" else Sampling(temperature=0.8)
POISON = 199
"""A token that random prompts may hold; its embedding is NaN in a poisoned model."""


@pytest.fixture(scope="module")
def backend(bench: Bench) -> Iterator[Any]:
    with bench.engine(MODEL) as opened:
        yield opened


@pytest.fixture
def subject(backend: Any) -> Subject:
    """One engine is enough for all laws: what it runs at once is its own business."""
    return Subject(name="vllm", open=lambda capacity: backend, positions_matter=False, own_streams=False)


@pytest.mark.v2
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_neither_company_nor_order_changes_an_outcome(subject: Subject, sampling: Sampling) -> None:
    work = laws.mixed_work(sampling)
    alone = {job.key: outcomes(subject.open(1), [job])[job.key] for job in work[:5]}
    together = outcomes(subject.open(9), work)
    assert {key: together[key] for key in alone} == alone
    assert outcomes(subject.open(9), work[::-1]) == together


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_share_an_engine_do_not_matter_to_each_other(subject: Subject, threads: int) -> None:
    laws.check_threads_do_not_matter(subject, laws.mixed_work(SAMPLED), threads, pieces=40)


def test_a_job_that_is_taken_back_has_no_outcome(subject: Subject) -> None:
    laws.check_what_is_taken_back_has_no_outcome(subject, laws.mixed_work(GREEDY))


@pytest.mark.v2
def test_samples_are_those_of_their_seed(subject: Subject) -> None:
    laws.check_seeds_decide_samples_and_noise(subject)


def test_the_second_text_of_a_job_has_a_stream_of_its_own(backend: Any) -> None:
    hot = Sampling(temperature=2.0)
    read, write = Read(agent="a", tokens=(3, 1, 4)), Write(agent="a", max_new_tokens=24, sampling=hot)
    [done] = backend.run([Program((read, write, read, write))])
    [first] = backend.run([Program((read, write))])
    assert done.steps[1].written == first.steps[1].written, "what comes after a text does not change it"
    assert done.steps[1].written != done.steps[3].written


def test_what_vllm_does_not_take_is_an_error_of_that_sample(backend: Any) -> None:
    write = Write(agent="a", max_new_tokens=4, sampling=STREAM_ONLY)
    with pytest.raises(SampleError, match="temperature must be in"):
        backend.run([Program((Read(agent="a", tokens=(3, 1, 4)), write))])


def test_steps_compose(subject: Subject) -> None:
    laws.check_steps_compose(subject)


def test_keeping_everything_changes_nothing(subject: Subject) -> None:
    laws.check_keeping_everything_changes_nothing(subject)


def test_writing_leaves_no_end_of_text_in_memory(subject: Subject) -> None:
    laws.check_writing_leaves_no_end_of_text(subject)


def test_accounts_add_up(subject: Subject) -> None:
    laws.check_accounts_add_up(subject)


def test_what_an_engine_cannot_do_is_refused_by_name(subject: Subject) -> None:
    read = Read(agent="a", tokens=(1, 2, 3))
    last = (Read(agent="b", tokens=(4,)), Write(agent="b", max_new_tokens=4))
    laws.check_refusals(
        subject,
        too_long=Program((read, Write(agent="a", max_new_tokens=CONTEXT))),
        join=Program((Join(branches=(Program((read,)), Program((read,)))), *last)),
        filtered=Program((read, Handover(agent="a", keep=KeepSpec(name="magic")), *last)),
    )


@pytest.mark.parametrize(
    ("steps", "kind", "said"),
    [
        ([Read(agent="a", tokens=(1, PLACEHOLDER, 2))], SampleError, "stands for a thought"),
        ([Read(agent="a", tokens=(PLACEHOLDER,))], SampleError, "stands for a thought"),
        ([Read(agent="a", tokens=(1,) * (CONTEXT + 1))], ContextLimitError, "the engine has 1024"),
        ([Read(agent="a", tokens=(1,)), Think(agent="a", steps=2000)], ContextLimitError, "the engine has 1024"),
        ([Read(agent="a", tokens=(VOCABULARY + 7,))], SampleError, "the model knows 0 to 271"),
    ],
)
def test_a_sample_that_does_not_fit_gets_its_error_and_the_engine_lives(
    backend: Any, steps: list[Any], kind: type, said: str
) -> None:
    good = jobs(chain(prompts(row), thoughts=2) for row in range(3))
    expected = outcomes(backend, good)
    odd = Program((*steps, Read(agent="b", tokens=(4,)), Write(agent="b", max_new_tokens=4)))
    found = outcomes(backend, [*good[:2], Job(key="odd", program=odd), *good[2:]])
    error = found.pop("odd")
    assert isinstance(error, JobError)
    assert type(error.error) is kind
    assert said in str(error.error)
    assert found == expected


def test_a_placeholder_at_the_first_position_is_an_ordinary_token(backend: Any) -> None:
    """The backend refuses it; a plain client of the server may send it, and the engine lives."""
    from latentmas.backends.vllm.requests import Request

    backend._engine.add("x", Request(tokens=(PLACEHOLDER, 5, 6), max_tokens=4, sampling=GREEDY, seed=0))
    found: list[Any] = []
    while not found:
        found += backend._engine.step()
    assert found[0].error is None
    assert found[0].finish_reason is not None


def test_a_program_that_just_fits_the_context_runs(backend: Any) -> None:
    read, think = Read(agent="a", tokens=(1,) * (CONTEXT - 12)), Think(agent="a", steps=10)
    assert backend.run([Program((read, think, Write(agent="a", max_new_tokens=2)))])


def test_a_run_leaves_jobs_in_flight_alone(backend: Any) -> None:
    waiting = jobs([chain(prompts(0), thoughts=1)])
    backend.submit(waiting[0])
    assert len(backend.run([chain(prompts(1), thoughts=1)])) == 1
    assert [outcome.key for outcome in backend.collect()] == [waiting[0].key]


@pytest.mark.parametrize("thoughts", [0, 4])
def test_numbers_that_are_not_finite_end_their_own_job_only(bench: Bench, thoughts: int) -> None:
    import torch

    rows = [tuple(tuple(t % POISON for t in prompt) for prompt in prompts(row)) for row in range(4)]
    broken = ((*rows[2][0][:-1], POISON), *rows[2][1:])
    good = jobs(chain(row, thoughts=thoughts) for row in rows)
    bad = [*good[:2], Job(key=good[2].key, program=chain(broken, thoughts=thoughts), seed=2), *good[3:]]
    # Alignment looks at every embedding, so a poisoned one would spoil the norm; without a ridge it is the norm alone.
    with bench.engine(Model(), poison=POISON, enable_prefix_caching=True) as backend:
        if thoughts:
            worker = backend._engine._engine.engine_core.engine_core.model_executor.driver_worker.worker
            worker.get_model().thoughts._alignment = bench.transformers(Model(), torch.float32).alignment
        expected = outcomes(backend, good)
        found = outcomes(backend, bad)
        after = outcomes(backend, good)
    error = found.pop(good[2].key)
    assert isinstance(error, JobError)
    assert isinstance(error.error, NumericalError)
    assert after == expected
    del expected[good[2].key]
    assert found == expected
    assert all(isinstance(outcome, Completion) for outcome in found.values())


def test_an_engine_that_dies_is_started_again_and_its_jobs_give_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work = jobs(chain(prompts(row), thoughts=5, sampling=WARM) for row in range(6))
    with bench.engine(MODEL) as backend:
        undisturbed = outcomes(backend, work)
        dead = backend._engine
        steps = iter(range(100))
        step = dead._engine.engine_core.engine_core.model_executor.execute_model

        def fails(*args: Any, **options: Any) -> Any:
            if next(steps) == 9:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return step(*args, **options)

        monkeypatch.setattr(dead._engine.engine_core.engine_core.model_executor, "execute_model", fails)
        with caplog.at_level(logging.WARNING):
            assert outcomes(backend, work) == undisturbed
        assert backend._engine is not dead
    assert "the vLLM engine died" in caplog.text
    assert "6 samples in it run again" in caplog.text


def test_requests_that_the_engine_gives_up_are_asked_for_again(bench: Bench) -> None:
    work = jobs(chain(prompts(row), thoughts=5) for row in range(6))
    with bench.engine(MODEL) as backend:
        undisturbed = outcomes(backend, work)
        watch = Watch(backend)
        update, given_up = watch.scheduler.update_from_output, []

        def giving_up(*args: Any, **options: Any) -> Any:
            if len(given_up) < 2 and watch.scheduler.running:
                given_up.append(watch.scheduler.running[0].request_id)
                watch.scheduler.grammar_compile_error_reqs.add(given_up[-1])
            return update(*args, **options)

        watch.scheduler.update_from_output = giving_up
        assert outcomes(backend, work) == undisturbed
        assert len(given_up) == 2


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("vllm.v1.core.sched.scheduler:Scheduler", "_reserve_prefill_lookahead"),
        ("vllm.v1.worker.gpu_model_runner:GPUModelRunner", "_model_forward"),
        ("vllm.v1.core.kv_cache_manager:KVCacheManager", "create_kv_cache_blocks"),
    ],
)
def test_every_hook_is_there_and_one_that_is_not_is_named(
    place: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from latentmas.backends.vllm import compatibility
    from latentmas.errors import CapabilityError

    compatibility.check_hooks()
    module, _, owner = place.partition(":")
    monkeypatch.delattr(getattr(importlib.import_module(module), owner), name)
    with pytest.raises(CapabilityError, match=f"vLLM {compatibility.installed()} lacks .*{name}"):
        compatibility.check_hooks()


@pytest.mark.v2
def test_our_model_refuses_a_scheduler_that_is_not_ours(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server command without that one option would answer, and be wrong."""
    from latentmas.backends.vllm import settings
    from latentmas.errors import CapabilityError

    full = settings.LatentSettings.engine_options

    def without(self: Any, architecture: str) -> dict[str, Any]:
        return {name: value for name, value in full(self, architecture).items() if name != "scheduler_cls"}

    monkeypatch.setattr(settings.LatentSettings, "engine_options", without)
    with pytest.raises(CapabilityError, match="thoughts need the scheduler"), bench.engine(MODEL):
        pass


@pytest.mark.parametrize("method", ["ngram"])
def test_speculative_decoding_is_refused_by_name(bench: Bench, method: str) -> None:
    from latentmas.errors import CapabilityError

    drafting = {"method": method, "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    refusal = pytest.raises(CapabilityError, match="do not go together with speculative decoding")
    with refusal, bench.engine(MODEL, speculative_config=drafting):
        pass


@pytest.mark.v2
def test_the_model_has_the_fingerprint_it_has_on_transformers(bench: Bench) -> None:
    import torch

    from latentmas.backends.fingerprint import digest

    for model in (MODEL, Model(tied=True)):
        loaded = bench.transformers(model, torch.float32).model
        with bench.engine(model) as backend:
            weights = backend._facts.checkpoint
            slot_bytes = backend._facts.slot_bytes
        assert digest(loaded.causal.config.get_text_config().to_dict(), weights) == loaded.fingerprint
        assert slot_bytes == 2 * 2 * 2 * 32 * 4  # keys and values, layers, heads, width, bytes


def test_a_soft_alignment_equals_transformers(bench: Bench) -> None:
    import torch

    from latentmas.alignment import AlignmentKind, build_alignment
    from latentmas.backends.hf.backend import HFBackend
    from latentmas.backends.hf.chat import ChatCodec
    from latentmas.backends.vllm.settings import LatentSettings

    model = bench.transformers(Model(), torch.float32).model
    alignment = build_alignment(AlignmentKind.SOFT, model.space(), soft_temperature=0.7)
    theirs = HFBackend(model, ChatCodec(bench.tiny.tokenizer), alignment)
    programs = [chain(prompts(row), thoughts=5) for row in range(4)]
    settings = LatentSettings(placeholder=PLACEHOLDER, alignment="soft", soft_temperature=0.7)
    with bench.engine(Model(), latent=settings) as backend:
        ours = [completion.steps[-1].written for completion in backend.run(programs)]
    assert ours == [completion.steps[-1].written for completion in theirs.run(programs)]


def thinking(completion: Completion) -> list[Any]:
    return [account.thinking for account in completion.steps if account.thoughts]


def check_thinking(ours: Completion, theirs: Completion) -> None:
    """Compare how thoughts changed; rounding may differ."""
    for told, expected in zip(thinking(ours), thinking(theirs), strict=True):
        assert told.cosines == pytest.approx(expected.cosines, abs=1e-4)
        assert told.hidden_norms == pytest.approx(expected.hidden_norms, rel=1e-4)
        assert told.effective_rank == pytest.approx(expected.effective_rank, rel=1e-3)
        assert told.collapsed_after == expected.collapsed_after


@pytest.mark.v2
def test_an_engine_tells_how_thoughts_changed_as_transformers_does(backend: Any, bench: Bench) -> None:
    import torch

    read, write = (Read(agent="a", tokens=prompts(90)[0]), Write(agent="a", max_new_tokens=3))
    parts = (Think(agent="a", steps=3), Think(agent="a", steps=4))
    programs = [chain(prompts(80 + row), thoughts=3 + row % 2) for row in range(20)]  # more than run at once
    programs.append(Program((read, *parts, write, read, *parts, write)))
    theirs = bench.transformers(MODEL, torch.float32).run(programs)
    for ours, expected in zip(backend.run(programs), theirs, strict=True):
        check_thinking(ours, expected)
    held = backend._engine._engine.collective_rpc(
        lambda worker: len(worker.model_runner.get_model().thoughts.recorder._made)
    )
    assert held == [0], "what was told is forgotten"


def test_thoughts_out_of_the_prefix_cache_were_not_measured(bench: Bench) -> None:
    program = chain(prompts(70, shortest=40, longest=60), thoughts=4)
    with bench.engine(MODEL, enable_prefix_caching=True) as caching:
        [first], [second] = caching.run([program]), caching.run([program])
    assert None not in thinking(first)
    assert thinking(second)[0] is None


def test_the_published_hybrid_writes_the_same(bench: Bench) -> None:
    """transformers thinks, stock vLLM reads input embeddings: the same tokens, with every position computed twice."""
    import torch

    from latentmas.backends.vllm.backend import VLLMBackend
    from latentmas.backends.vllm.engine import VLLMEngine
    from latentmas.backends.vllm.hybrid import THOUGHT, HybridEngine

    options = bench.options(MODEL, latent=False, prompt_embeds=True)
    thinker = bench.transformers(MODEL, torch.float32, batch_size=3)
    rows = [*bench.rows(MODEL, 5), *bench.rows(MODEL, 20, 4)]
    backend = VLLMBackend(lambda: HybridEngine(thinker, VLLMEngine(options)), thinker.codec, placeholder=THOUGHT)
    try:
        core = backend._engine._writer._engine.engine_core.engine_core  # type: ignore[union-attr]
        assert "latentmas" not in type(core.scheduler).__module__
        done = backend.run([row.program for row in rows])
        got = [completion.steps[-1].written for completion in done]
        assert [number for number, row in enumerate(rows) if row.sane and got[number] != row.oracle] == []
        check_thinking(done[0], bench.transformers(MODEL, torch.float32).run([rows[0].program])[0])
        # A placeholder of the other engine means nothing here.
        odd = Program((Read(agent="a", tokens=(1, PLACEHOLDER)), Write(agent="a", max_new_tokens=2)))
        assert backend.run([odd])
    finally:
        backend.close()
