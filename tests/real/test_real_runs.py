"""On real weights: what transformers itself writes, sessions, runs and what is left of them when they are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from latentmas import Message, Team
from latentmas.backends.hf.load import LoadOptions, load_config, load_model, load_tokenizer
from latentmas.backends.hf.session import Session
from latentmas.cli import main
from latentmas.program import Read
from real.conftest import MADE, NEW_TOKENS, differing

pytestmark = pytest.mark.real


# The model's own way is the reference


def test_baseline_writes_token_for_token_what_generate_writes(real, folder):
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
    assert len(set(expected)) > len(expected) // 2, "questions must lead to different answers"
    assert differing(real.tokens(len(real.questions)), expected) == []


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


TURNS = ("Where is Paris?", "And Berlin? Name its country as well.", "Which of the two is larger?")


@pytest.mark.parametrize("system", [None, "You answer in one short sentence."])
def test_six_turns_of_a_session_and_of_a_team_are_one_chat(real, folder, system):
    """The replies of the session are given to the team as history, so that both are asked the same."""
    session = Session(real.backend(), system=system)
    chat = [] if system is None else [Message("system", system)]
    team = Team(folder, method="baseline", max_new_tokens=NEW_TOKENS, dtype="float32")
    for question in TURNS:
        chat.append(Message("user", question))
        text = session.read("a", question).write("a", NEW_TOKENS)
        record = team.ask(chat)
        expected = team.backend.codec.encode_chat(chat).tokens
        assert record.agents[0].prompt_ids == expected
        into_memory: tuple[int, ...] = ()
        for step, account in zip(session.program, session.accounts, strict=True):
            into_memory += step.tokens if isinstance(step, Read) else account.written
        assert into_memory == expected + session.accounts[-1].written
        assert record.text == text, "memory of the turns before does what reading them again does"
        chat.append(Message("assistant", text))
    assert session.messages("a") == tuple(chat)


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
