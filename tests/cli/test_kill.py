"""kill -9 at random instants of a whole process: nothing is lost, doubled or torn."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

KILLS = 20
WORDS = ["--method", "text_mas", "--model_name", "scripted", "--task", "tiny", "--max_samples", "100"]
OPTIONS = [*WORDS, "--temperature", "0.7", "--max_new_tokens", "20", "--generate_bs", "7", "--save_ids"]


def command(folder):
    return [sys.executable, "-m", "latentmas", "run", *OPTIONS, "--output_dir", str(folder)]


def records(folder):
    """Return the records of a run, in their order, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        for agent in line["agents"]:
            del agent["seconds"]
    return lines


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_records_of_an_undisturbed_one(tmp_path):
    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    whole = time.monotonic() - began
    rng = random.Random(7)
    killed = 0
    for _ in range(10 * KILLS):
        process = subprocess.Popen(
            command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.3, 0.5) * whole)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        if killed == KILLS:
            break
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)
    assert killed > 3
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
