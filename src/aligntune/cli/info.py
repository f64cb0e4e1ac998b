"""`aligntune info`: what this machine has: versions, device, backends, algorithms and rewards."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import click

import aligntune
from aligntune.cli.console import Output, Settings, shared

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "peft",
    "accelerate",
    "math-verify",
    "unsloth",
    "unsloth_zoo",
    "bitsandbytes",
)


@click.command(short_help="Show versions, device, backends, algorithms and rewards.")
@click.option("--issue", is_flag=True, help="Print a block of text to paste into an issue.")
@shared
def command(settings: Settings, issue: bool) -> Output:
    """Show versions, device, backends, algorithms and rewards."""
    from aligntune.core.backend_factory import list_algorithms, list_backends, list_rewards
    from aligntune.core.versions import untested

    backends = list_backends()
    from aligntune.utils.manifest import environment, system

    data: dict[str, Any] = {
        "aligntune": aligntune.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": _device(),
        "untested": {name: untested(name) for name, row in backends.items() if row["available"]},
        "backends": backends,
        "algorithms": list_algorithms(),
        "rewards": list_rewards(),
    }
    if issue:
        data |= {"system": system(), "environment": environment()}
    return Output(data, _issue(data) if issue else _text(data))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    """The device as PyTorch sees it; without PyTorch an entry that says so."""
    if _version("torch") is None:
        return {"device": None, "problem": "PyTorch is not installed"}
    from aligntune.utils.device import DeviceManager

    manager = DeviceManager("auto")
    return {"name": manager.name, **manager.summary()}


def _issue(data: dict[str, Any]) -> str:
    """Versions, machine and settings as a block of Markdown; no paths of the user, no secrets."""
    machine = data["system"]
    device = ", ".join(f"{k} {v}" for k, v in data["device"].items() if v is not None)
    settings = ", ".join(f"{k}={v}" for k, v in data["environment"].items() if "/" not in v)
    packages = "\n".join(f"{name} {version}" for name, version in data["packages"].items() if version)
    return (
        f"```\naligntune {data['aligntune']}\nPython {data['python']} on {data['platform']}\n"
        f"{machine['processor']}, {machine['usable_processors']} usable, {machine['memory_bytes'] / 1e9:.1f} GB\n"
        f"device: {device}\n{packages}\nenvironment: {settings or 'nothing set'}\n```"
    )


def _text(data: dict[str, Any]) -> str:
    device = ", ".join(f"{k} {v}" for k, v in data["device"].items() if v is not None and k != "torch")
    lines = [f"aligntune {data['aligntune']}, Python {data['python']}, {data['platform']}", f"device: {device}", ""]
    lines += [f"  {name:<14}{version or 'not installed'}" for name, version in data["packages"].items()]
    lines += ["", "backends"]
    for name, backend in data["backends"].items():
        state = "available" if backend["available"] else f"not installed: {backend['install']}"
        lines.append(f"  {name:<14}{state}")
        if problem := data["untested"].get(name):
            lines.append(f"  {'':<14}{problem}")
        lines += [f"  {'':<14}{problem}" for problem in backend["conflicts"]]
        lines += [f"  {'':<14}{key}: {note}" for key, note in backend["notes"].items()]
    lines += ["", "algorithms and tasks"]
    lines += [f"  {name:<22}{entry['kind']:<5}{entry['summary']}" for name, entry in data["algorithms"].items()]
    lines += ["", f"rewards: {', '.join(data['rewards'])}"]
    return "\n".join(lines)
