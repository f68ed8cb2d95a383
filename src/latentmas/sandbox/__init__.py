"""The sandbox: a trusted driver runs in a confined process, and runs there what a model wrote.

It knows nothing of tests, answers or grading: program text and bytes go in, bytes and an `Outcome` come out. What each
level covers, and what it does not, is in docs/sandbox.md.
"""

from __future__ import annotations

from latentmas.sandbox.execute import execute
from latentmas.sandbox.levels import Level, LevelReport, choose, probe, reports
from latentmas.sandbox.outcome import Ending, Limits, Outcome, SandboxError

__all__ = [
    "Ending",
    "Level",
    "LevelReport",
    "Limits",
    "Outcome",
    "SandboxError",
    "choose",
    "execute",
    "probe",
    "reports",
]
