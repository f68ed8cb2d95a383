"""latentmas: agents that share one language model and hand over working memory instead of text.

Importing the package is cheap: names are loaded when they are first used, and torch only by what needs it.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # the real one would load the module typing
if TYPE_CHECKING:
    from typing import Any

    from latentmas.agents import Agent, AgentGraph, chain, load_team, parallel
    from latentmas.backends.hf.session import Session
    from latentmas.backends.scripted import ScriptedBackend
    from latentmas.errors import LatentMASError
    from latentmas.experiment.team import Team
    from latentmas.memory import LatentMemory
    from latentmas.program import (
        Budget,
        Handover,
        Join,
        KeepSpec,
        Positions,
        Program,
        Protect,
        Read,
        Recall,
        Sampling,
        Storage,
        Think,
        Unit,
        Write,
    )
    from latentmas.samples import Message

_HOMES = {
    "Agent": "agents",
    "AgentGraph": "agents",
    "Budget": "program",
    "Handover": "program",
    "Join": "program",
    "KeepSpec": "program",
    "LatentMASError": "errors",
    "LatentMemory": "memory",
    "Message": "samples",
    "Positions": "program",
    "Program": "program",
    "Protect": "program",
    "Read": "program",
    "Recall": "program",
    "Sampling": "program",
    "ScriptedBackend": "backends.scripted",
    "Session": "backends.hf.session",
    "Storage": "program",
    "Team": "experiment.team",
    "Think": "program",
    "Unit": "program",
    "Write": "program",
    "chain": "agents",
    "load_team": "agents",
    "parallel": "agents",
}

__all__ = [
    "Agent",
    "AgentGraph",
    "Budget",
    "Handover",
    "Join",
    "KeepSpec",
    "LatentMASError",
    "LatentMemory",
    "Message",
    "Positions",
    "Program",
    "Protect",
    "Read",
    "Recall",
    "Sampling",
    "ScriptedBackend",
    "Session",
    "Storage",
    "Team",
    "Think",
    "Unit",
    "Write",
    "__version__",
    "chain",
    "load_team",
    "parallel",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latentmas' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"latentmas.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
