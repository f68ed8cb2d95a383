"""``latentmas doctor``: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import latentmas
from latentmas.backends import gguf_file
from latentmas.errors import CapabilityError, ConfigError


def command() -> int:
    """Show what this machine can do: library versions, devices, vLLM, and how safely it can run model-written code.

    The sandbox levels are tried, not guessed: a program that attacks its confinement runs in each.
    """
    console = Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("")
    for name, text in (*_software(), *_plugins(), *_devices(), *_engines(), *_sandbox()):
        table.add_row(name, text)
    console.print(table, markup=False, highlight=False)
    return 0


def _software() -> list[tuple[str, str]]:
    rows = [
        ("latentmas", latentmas.__version__),
        ("python", f"{platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"),
    ]
    for package in ("torch", "transformers", "datasets", "numpy"):
        rows.append((package, _version(package) or "not installed"))
    rows.append(("math-verify", _version("math-verify") or "not installed: pip install 'latentmas[math]'"))
    rows.append(("gguf", _version("gguf") or f"not installed: {gguf_file.INSTALL}"))
    return rows


def _plugins() -> list[tuple[str, str]]:
    """Return a row for each filter and task of another package."""
    from latentmas import plugins

    rows = []
    for kind in ("filter", "task"):
        for entry in plugins.plugins(f"latentmas.{kind}s").values():
            try:
                plugins.load(kind, entry)
            except ConfigError as error:
                rows.append((f"{kind} {entry.name}", f"no: {error}"))
            else:
                rows.append((f"{kind} {entry.name}", f"works, of {plugins.package_of(entry)}"))
    return rows


def _devices() -> list[tuple[str, str]]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [("cores", str(os.cpu_count())), ("accelerators", ", ".join(names) or "none, models run on the CPU")]


def _engines() -> list[tuple[str, str]]:
    from latentmas.backends.vllm import compatibility
    from latentmas.experiment.config import calm_vllm

    found = compatibility.installed()
    if found is None:
        return [("vllm", f"not installed: {compatibility.INSTALL}")]
    calm_vllm()
    reason = compatibility.reason_unusable()
    return [("vllm", f"{found}, --use_vllm works" if reason is None else f"no: {reason}")]


def _sandbox() -> list[tuple[str, str]]:
    from latentmas import sandbox

    rows = [
        (f"sandbox {report.level.value}", "works" if report.works else f"no: {report.reason}")
        for report in sandbox.reports()
    ]
    try:
        chosen = f"--code_exec auto takes {sandbox.choose('auto', allow_unsafe=False).value}"
    except CapabilityError as error:
        chosen = str(error)
    return [*rows, ("model-written code", chosen)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
