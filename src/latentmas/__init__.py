"""latentmas: agents that share one language model and hand over working memory instead of text.

Importing the package is cheap: names are loaded when they are first used, and torch only by what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from latentmas.agents import Agent, AgentGraph, chain, load_team
    from latentmas.backends.hf.session import Session
    from latentmas.backends.scripted import ScriptedBackend
    from latentmas.errors import LatentMASError
    from latentmas.experiment.team import Team
    from latentmas.memory import LatentMemory
    from latentmas.program import Handover, Join, Program, Read, Sampling, Think, Write

_HOMES = {
    "Agent": "agents",
    "AgentGraph": "agents",
    "Handover": "program",
    "Join": "program",
    "LatentMASError": "errors",
    "LatentMemory": "memory",
    "Program": "program",
    "Read": "program",
    "Sampling": "program",
    "ScriptedBackend": "backends.scripted",
    "Session": "backends.hf.session",
    "Team": "experiment.team",
    "Think": "program",
    "Write": "program",
    "chain": "agents",
    "load_team": "agents",
}

__all__ = [
    "Agent",
    "AgentGraph",
    "Handover",
    "Join",
    "LatentMASError",
    "LatentMemory",
    "Program",
    "Read",
    "Sampling",
    "ScriptedBackend",
    "Session",
    "Team",
    "Think",
    "Write",
    "__version__",
    "chain",
    "load_team",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latentmas' has no attribute {name!r}")
    return getattr(importlib.import_module(f"latentmas.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
