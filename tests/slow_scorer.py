"""A scorer that other processes can import."""

import os
import time
from dataclasses import dataclass

from latentmas.errors import DataError
from latentmas.samples import Score, Verdict


@dataclass(frozen=True)
class Slow:
    """Grades as right after the seconds that the answer names; ``die`` ends the process, ``bad`` blames the target."""

    def __call__(self, answer, sample):
        if answer.text == "die":
            os._exit(9)
        if answer.text == "bad":
            raise DataError(f"target {sample.target!r} is no number")
        time.sleep(float(answer.text))
        return Score(verdict=Verdict.CORRECT, prediction=f"{os.getpid()}")
