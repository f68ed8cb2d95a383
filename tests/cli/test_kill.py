"""kill -9 at random instants of a whole process: nothing is lost, doubled or torn."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

KILLS = 15
SAMPLES = 400
WORDS = ["--method", "text_mas", "--model_name", "scripted", "--task", "tiny", "--max_samples", str(SAMPLES)]
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


def lines(folder):
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_records_of_an_undisturbed_one(tmp_path):
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    rng = random.Random(7)
    for number in range(1, KILLS + 1):
        process = subprocess.Popen(
            command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        # Most kills hit a run that is writing records, some one that is starting.
        enough = SAMPLES * number // (KILLS + 2)
        latest = time.monotonic() + (rng.uniform(0.1, 0.6) if rng.random() < 0.2 else 60)
        while process.poll() is None and lines(tmp_path / "killed") < enough and time.monotonic() < latest:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        assert process.poll() is None, "the run ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
