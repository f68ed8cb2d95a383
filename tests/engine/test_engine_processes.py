"""vLLM as people run it: from the command line, in processes of its own, on several devices, as a server."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from engine.conftest import NEW_TOKENS, RUNNER, Bench, Model, Row
from engine.faulty_run import is_given_up
from latentmas.cli import main
from latentmas.program import Read, Think

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

HERE = Path(__file__).parent
ENGINE = json.dumps({"kv_cache_memory_bytes": 60_000_000, "enforce_eager": True, "distributed_executor_backend": "uni"})
EVERYWHERE = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def run(folder: Path, *words: str, method: str = "latent_mas", samples: int = 12, task: str = "tiny_split") -> int:
    return main(
        [
            "run",
            *("--method", method, "--model_name", "tiny", "--task", task, "--max_samples", str(samples)),
            *("--temperature", "0", "--save_ids", "--output_dir", str(folder), *words),
        ]
    )


# The command line


@pytest.mark.parametrize("method", ["baseline", "text_mas", "latent_mas"])
def test_every_method_gives_the_records_it_gives_on_transformers(
    tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "ours", "--use_vllm", "--enable_prefix_caching", "--vllm_options", ENGINE, method=method) == 0
    line = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert line["max_samples"] == 12
    assert run(tmp_path / "theirs", method=method) == 0
    ours = {record["id"]: record for record in records(tmp_path / "ours")}
    theirs = {record["id"]: record for record in records(tmp_path / "theirs")}
    for each in (*ours.values(), *theirs.values()):
        for agent in each["agents"]:
            agent.pop("seconds")
            agent.pop("reused_slots", None)
    assert ours == theirs
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("ours", "theirs")]
    environments = [manifest["environment"] for manifest in manifests]
    assert [environment["backend"] for environment in environments] == ["vllm", "transformers"]
    if method == "latent_mas":
        assert len({environment["model_fingerprint"] for environment in environments}) == 1


def test_a_run_with_another_model_is_not_continued(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from latentmas import tiny

    copy = tmp_path / "model"
    shutil.copytree(tiny.model_folder(), copy)
    words = ["--use_vllm", "--vllm_options", ENGINE, "--model_name", str(copy)]
    folder = tmp_path / "run"
    base = ["run", "--method", "latent_mas", "--task", "tiny", "--temperature", "0", "--output_dir", str(folder)]
    assert main([*base, *words, "--max_samples", "4"]) == 0
    # As after a kill: one record less.
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "records.jsonl").write_bytes(b"".join(lines[:-1]))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert main([*base, *words, "--max_samples", "4"]) == 2
    assert "model_fingerprint" in capfd.readouterr().err


def test_the_published_hybrid_runs_from_the_command_line(tmp_path: Path) -> None:
    words = ["--use_vllm", "--use_second_HF_model", "--device2", "cpu", "--enable_prefix_caching"]
    assert run(tmp_path / "hybrid", *words, "--vllm_options", ENGINE) == 0
    assert run(tmp_path / "plain") == 0
    answers = [{record["id"]: record["text"] for record in records(tmp_path / name)} for name in ("hybrid", "plain")]
    assert answers[0] == answers[1]
    environment = json.loads((tmp_path / "hybrid" / "manifest.json").read_text())["environment"]
    assert environment["thoughts"] == "transformers"


def test_an_engine_that_cannot_start_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    little = json.dumps({"kv_cache_memory_bytes": 1000, "enforce_eager": True, "distributed_executor_backend": "uni"})
    assert run(tmp_path / "a", "--use_vllm", "--vllm_options", little) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: vLLM did not start:")
    assert run(tmp_path / "b", "--use_vllm", "--vllm_options", '{"no_such_option": 1}') == 2
    assert "no_such_option" in capfd.readouterr().err


# What goes wrong


def test_five_hundred_questions_with_failures_deaths_and_a_kill_leave_each_record_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, str(HERE / "faulty_run.py"), str(folder), "500"]
    store = folder / "records.jsonl"

    def start() -> subprocess.Popen[bytes]:
        log = (tmp_path / "log").open("ab")
        return subprocess.Popen(command, env=EVERYWHERE, stdout=log, stderr=log, start_new_session=True)

    process = start()
    while process.poll() is None and (not store.exists() or store.read_bytes().count(b"\n") < 200):
        time.sleep(0.05)
    assert process.poll() is None, (tmp_path / "log").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = records(folder)[:-1]  # the last line may be torn
    assert len(before) >= 199
    assert start().wait() == 0, (tmp_path / "log").read_text()
    found = records(folder)
    ids = [record["id"] for record in found]
    assert len(ids) == len(set(ids)) == 500
    assert [record["id"] for record in before] == ids[: len(before)], "what was stored before the kill is still there"
    failed = {record["id"] for record in found if record["error"]}
    assert 5 <= len(failed) <= 30
    assert {record["error"] for record in found if record["error"]} == {"SampleError: vLLM gave the request up (error)"}
    log = (tmp_path / "log").read_text()
    assert log.count("the vLLM engine died") >= 2
    # Answered again by an engine that is well, they are all there.
    assert (
        main(
            [
                *(
                    "run",
                    "--method",
                    "latent_mas",
                    "--model_name",
                    "tiny",
                    "--task",
                    "tiny_split",
                    "--temperature",
                    "0",
                ),
                *("--use_vllm", "--max_samples", "500", "--output_dir", str(folder), "--vllm_options", ENGINE),
                "--retry_errors",
            ]
        )
        == 0
    )
    again = records(folder)
    assert len({record["id"] for record in again}) == 500
    latest = {record["id"]: record for record in again}
    assert not any(record["error"] for record in latest.values())
    assert sum(record["verdict"] == "correct" for record in latest.values()) >= 495


def test_which_samples_are_given_up_depends_on_the_prompt_alone() -> None:
    share = sum(is_given_up([number]) for number in range(5000)) / 5000
    assert 0.02 < share < 0.04


def test_an_engine_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    import psutil

    folder, log = tmp_path / "run", tmp_path / "log"
    engine = json.dumps({"kv_cache_memory_bytes": 60_000_000, "enforce_eager": True})
    words = ["--method", "latent_mas", "--model_name", "tiny", "--task", "tiny_split", "--max_samples", "240"]
    # Few at once, so that most of the run is still ahead when the process is killed.
    words += ["--generate_bs", "4", "--temperature", "0", "--use_vllm"]
    command = [sys.executable, "-m", "latentmas", "run", *words]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--vllm_options", engine, "--output_dir", str(folder)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        store = folder / "records.jsonl"
        while process.poll() is None and (not store.exists() or store.read_bytes().count(b"\n") < 20):
            time.sleep(0.05)
        assert process.poll() is None, log.read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        cores = [child for child in children if "EngineCore" in "".join(child.cmdline())]
        assert cores, [child.cmdline() for child in children]
        os.kill(cores[0].pid, signal.SIGKILL)
        assert process.wait(timeout=240) == 0, log.read_text()
    finally:
        process.kill()
    assert "the vLLM engine died" in log.read_text()
    found = records(folder)
    assert len({record["id"] for record in found}) == len(found) == 240
    assert not any(record["error"] for record in found)
    left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert left == [], "no process of an engine is left behind"


# Spread over processes, compiled, served


def spread(bench: Bench, model: Model, rows: list[Row], **changes: Any) -> list[tuple[int, ...]]:
    """Return the tokens of an engine in processes of its own."""
    options = bench.options(model, **changes)
    sent = {field.name: getattr(options, field.name) for field in fields(options)}
    latent = sent.pop("latent")
    del sent["stop_tokens"]
    asked = {
        "options": sent,
        "latent": {field.name: getattr(latent, field.name) for field in fields(latent)},
        "stop_tokens": sorted(options.stop_tokens),
        "new_tokens": NEW_TOKENS,
        "programs": [
            [
                list(step.tokens) if isinstance(step, Read) else step.steps
                for step in row.program
                if isinstance(step, Read | Think)
            ]
            for row in rows
        ],
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "spread_model.py")],
        input=json.dumps(asked),
        env={**EVERYWHERE, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["environment"]["model_runner"] == RUNNER
    return [tuple(tokens) for tokens in answer["written"]]


@pytest.mark.parametrize("model", [Model(realign=True), Model(tied=True)], ids=str)
def test_a_model_spread_over_two_workers_writes_the_same(bench: Bench, model: Model) -> None:
    rows = [*bench.rows(model, 5), *bench.rows(model, 20, 4)]
    got = spread(bench, model, rows, tensor_parallel_size=2, distributed_executor_backend="mp")
    assert [number for number, row in enumerate(rows) if row.sane and got[number] != row.oracle] == []


def test_a_compiled_model_writes_the_same(bench: Bench) -> None:
    model = Model(realign=True)
    rows = [*bench.rows(model, 5), *bench.rows(model, 20, 4)]
    from torch._dynamo.utils import counters

    counters.clear()
    with bench.engine(model, enforce_eager=False) as backend:
        got = [completion.steps[-1].written for completion in backend.run([row.program for row in rows])]
    assert counters["stats"]["unique_graphs"] > 0, "something was compiled"
    assert [number for number, row in enumerate(rows) if row.sane and got[number] != row.oracle] == []


PORT = 18431


@pytest.fixture
def server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[str]:
    """vLLM's own server, started with the words that `latentmas vllm` prints."""
    assert main(["vllm", "--model_name", "tiny"]) == 0
    words = shlex.split(capfd.readouterr().out)
    assert words[0] == "python"
    more = ["--host", "127.0.0.1", "--port", str(PORT), "--kv-cache-memory-bytes", "60000000", "--enforce-eager"]
    log = tmp_path / "server.log"
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words[1:], *more], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{PORT}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def test_the_server_of_vllm_answers_whole_teams_at_once(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    from latentmas import Team

    questions = [
        f"Ida owns {number} pins. Ida finds 6 more pins. How many pins does Ida have?" for number in range(20, 30)
    ]
    bodies = []
    for question in questions:
        assert main(["vllm", "--model_name", "tiny", "--question", question]) == 0
        bodies.append(json.loads(capfd.readouterr().out))

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{server}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))

    with ThreadPoolExecutor(10) as clients:
        answers = [answer["choices"][0]["text"] for answer in clients.map(ask, bodies)]
    expected = [record.text for record in Team("tiny").ask_all(questions)]
    assert answers == expected
    # As text: the placeholder has one here.
    body = {**bodies[0], "prompt": "<|user|>What?<|end|><|assistant|><|pad|><|pad|><|user|>1+1?<|end|><|assistant|>"}
    assert ask(body)["usage"]["prompt_tokens"] > 2
    # A placeholder in front is an ordinary token, and nothing that a client sends ends the engine.
    placeholder = bodies[0]["prompt"][-1]
    assert ask({**body, "prompt": [0, 5, 6]})["choices"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask({**body, "prompt": [5] * 9000})
    assert refused.value.code == 400
    assert ask(bodies[1])["choices"][0]["text"] == expected[1]
    assert placeholder != 0
