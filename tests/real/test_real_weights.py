"""On real weights: what transformers itself writes, and that company, filters, joins and pauses change nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from latentmas.backends.hf.load import LoadOptions, load_config, load_model, load_tokenizer
from latentmas.backends.hf.rollout import Rollout, Row
from latentmas.backends.hf.session import Session
from latentmas.cli import main
from latentmas.program import Program, Read, Think
from real.conftest import MADE, NEW_TOKENS, ROWS, differing, solve

pytestmark = pytest.mark.real

TEAM = {"method": "latent_mas"}
HALF = {"filter": "receiver", "keep": 0.5}


# The model's own way is the reference


def test_baseline_writes_token_for_token_what_generate_writes_on_twenty_questions(real, folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    backend, method = real.backend(), real.method()
    stops = backend.model.stop_tokens
    expected = []
    for sample in real.questions:
        [read] = [step for step in next(method.solve(sample)) if isinstance(step, Read)]
        ids = torch.tensor([read.tokens])
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=sorted(stops),
                pad_token_id=min(stops),
            )[0, ids.shape[1] :].tolist()
        expected.append((tuple(made[: next((n for n, token in enumerate(made) if token in stops), None)]),))
    assert len(set(expected)) > 10, "questions must lead to different answers"
    assert differing(real.tokens(20), expected) == []


# Company


@pytest.mark.parametrize(
    "options",
    [{"method": "baseline"}, TEAM, {**TEAM, **HALF}, {**TEAM, "topology": "parallel"}],
    ids=["baseline", "latent", "filtered", "joined"],
)
def test_rows_of_a_batch_write_in_float32_what_they_write_alone(real, report, options):
    batch, alone = real.tokens(**options), real.tokens(alone=True, **options)
    assert len(set(alone)) > 1, "rows must differ, or this shows nothing"
    report(f"{len(differing(batch, alone))} of {ROWS} rows differ")
    assert differing(batch, alone) == []


def test_rows_in_bfloat16_are_counted(real, report):
    """Rounding depends on the shape of a batch, so here a bound is all there is; equal shapes are another test."""
    batch, alone = real.tokens(dtype="bfloat16", **TEAM), real.tokens(dtype="bfloat16", alone=True, **TEAM)
    apart = differing(batch, alone)
    first = sum(left[0][:1] != right[0][:1] for left, right in zip(batch, alone, strict=True))
    report(f"{len(apart)} of {ROWS} rows differ within {NEW_TOKENS} tokens, {first} in the first")
    assert first <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_tokens_in_the_other_rows_leave_every_bit_of_a_row_as_it_was(real, dtype):
    import torch

    backend = real.backend(dtype)
    said = [real.codec.encode_text(sample.question)[:30] for sample in real.questions[:4]]
    assert {len(tokens) for tokens in said} == {30}

    def memory(prompts):
        rows = [
            Row(program=Program((Read(agent="a", tokens=tokens), Think(agent="a", steps=6))), seed=number)
            for number, tokens in enumerate(prompts)
        ]
        rollout = Rollout(backend.model, backend.alignment, rows)
        rollout.run()
        return rollout.memory

    others = [tokens if number == 1 else tokens[::-1] for number, tokens in enumerate(said)]
    before, after = memory(said), memory(others)
    for layer in range(before.layers):
        assert torch.equal(before.keys(layer)[1], after.keys(layer)[1])
        assert torch.equal(before.values(layer)[1], after.values(layer)[1])
    assert not torch.equal(before.keys(0)[0], after.keys(0)[0])


# Hand-overs


@pytest.mark.parametrize("name", ["receiver", "knn", "recency"])
def test_a_filter_that_keeps_everything_changes_nothing_and_one_that_keeps_half_frees_half(real, name):
    rows = 2
    assert real.tokens(rows, filter=name, keep=1.0, **TEAM) == real.tokens(**TEAM)[:rows]
    method = real.method(filter=name, keep=0.5, filter_at="final", **TEAM)
    for [(program, completion)] in solve(real.backend(), method, real.questions[:rows]):
        handed = [step.handover for step in completion.steps if step.handover is not None]
        before = sum(share.slots_before for account in handed for share in account.shares)
        after = sum(share.slots_after for account in handed for share in account.shares)
        assert len(handed) == 1
        assert 0.45 * before <= after <= 0.55 * before
        assert program.count().thoughts == sum(step.thoughts for step in completion.steps) == 12


def test_memory_that_is_moved_as_a_whole_says_the_same(real, report):
    """Rotary models see distances only: what is newest keeps its distances when it moves to the front."""
    newest = {**TEAM, "filter": "recency", "keep": 0.5, "filter_at": "final", "protect_sinks": 0}
    newest["protect_thoughts"] = False
    stayed, moved = real.tokens(**newest), real.tokens(positions="rerotate", **newest)
    full = real.tokens(**TEAM)
    report(f"{len(differing(stayed, moved))} of {ROWS} rows differ; {len(differing(stayed, full))} from full memory")
    assert differing(stayed, moved) == []
    assert differing(stayed, full), "half of the memory must matter for some row, or this shows nothing"


# Sessions


def test_a_session_says_what_its_program_says_and_its_forks_and_files_go_on_alike(real, tmp_path):
    backend = real.backend()
    session = Session(backend).read("planner", real.questions[0].question).think("planner", 4).hand_over("planner")
    session.save(tmp_path / "memory.safetensors")
    fork, loaded = session.fork(), Session.load(backend, tmp_path / "memory.safetensors")
    text = session.read("judger", "How many? Answer in one sentence.").write("judger", NEW_TOKENS)
    assert len(text) > 10
    for other in (fork, loaded):
        assert other.read("judger", "How many? Answer in one sentence.").write("judger", NEW_TOKENS) == text
    [completion] = backend.run([session.program])
    assert completion.text == text
    assert session.read("judger", "Why?").write("judger", 6), "what was written is a part of what is read on"


# Runs


def command(real, file, output, method, **options):
    usual = {
        "method": method,
        "model_name": str(real.folder),
        "task": "gsm8k",
        "dataset": str(file),
        "max_samples": 2,
        "temperature": 0,
        "max_new_tokens": NEW_TOKENS,
        "latent_steps": 4,
        "generate_bs": 2,
        "device": "cpu",
        "output_dir": str(output),
    }
    return ["run", *(word for name, value in {**usual, **options}.items() for word in (f"--{name}", str(value)))]


def records(folder):
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        for agent in line["agents"]:
            del agent["seconds"]
    return lines


@pytest.mark.parametrize(("method", "agents"), [("baseline", 1), ("text_mas", 4), ("latent_mas", 4)])
def test_a_run_of_each_method_leaves_complete_records(real, questions_file, tmp_path, method, agents):
    assert main(command(real, questions_file, tmp_path / "out", method)) == 0
    found = records(tmp_path / "out")
    assert [record["error"] for record in found] == [None] * 2
    assert len({record["id"] for record in found}) == 2
    for record in found:
        assert len(record["agents"]) == agents
        assert record["text"]
        assert record["verdict"] in ("correct", "wrong", "no_answer")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["environment"]["model_fingerprint"] == real.backend().model.fingerprint


def test_a_run_that_is_killed_goes_on_to_the_records_of_an_undisturbed_one(real, questions_file, tmp_path):
    words = [sys.executable, "-m", "latentmas"]
    killed = command(real, questions_file, tmp_path / "killed", "latent_mas", generate_bs=1, max_samples=3)
    process = subprocess.Popen([*words, *killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "records.jsonl"
    latest = time.monotonic() + 300
    while not (log.exists() and log.read_bytes().count(b"\n")) and time.monotonic() < latest:
        time.sleep(0.01)
        assert process.poll() is None, "the run ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(records(tmp_path / "killed")) < 3
    assert main(killed) == 0
    assert main(command(real, questions_file, tmp_path / "whole", "latent_mas", generate_bs=1, max_samples=3)) == 0
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


# The file the folder was made of


def test_the_file_and_the_folder_made_of_it_are_one_model(real, folder):
    files = sorted(MADE.parent.glob("*.gguf"))
    if folder != MADE or not files:
        pytest.skip("only the folder of `make real-model` has its file beside it")
    pytest.importorskip("gguf")
    options = LoadOptions(model_name=str(files[0]), dtype="float32", device="cpu")
    tokenizer = load_tokenizer(options)
    model = load_model(options, tokenizer)
    assert model.fingerprint == real.backend().model.fingerprint
    assert model.stop_tokens == real.backend().model.stop_tokens
    assert type(real.codec)(tokenizer).digest == real.codec.digest
    assert load_config(options).architectures == real.backend().model.causal.config.architectures
