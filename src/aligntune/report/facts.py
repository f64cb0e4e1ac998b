"""What a report says about where and with what a run was made, from its manifest.

>>> facts(manifest)[0]
('Model', 'out/sft')

It shows what the manifest has, and leaves out what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aligntune.report.numbers import compact, seconds, size

MAIN_PACKAGES = ("aligntune", "torch", "trl", "transformers", "datasets", "peft", "accelerate", "unsloth")


def facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, value) pairs: model, data, command, code, machine, time."""
    model = manifest.get("model") or {}
    system, device = manifest.get("system") or {}, manifest.get("device") or {}
    git = manifest.get("git") or {}
    found: list[tuple[str, str]] = []

    def add(label: str, value: Any) -> None:
        if value not in (None, "", []):
            found.append((label, str(value)))

    add("Model", model.get("path"))
    add("Weights (SHA-256)", model.get("weights_sha256"))
    for data in manifest.get("datasets") or []:
        rows = f", {compact(data['rows'])} rows" if isinstance(data.get("rows"), int) else ""
        add("Data", f"{data.get('source')}{rows}")
        add("Rows (SHA-256)", data.get("content_hash"))
    tokenizer = manifest.get("tokenizer") or {}
    add("Chat template (SHA-256)", tokenizer.get("chat_template_sha256"))
    seeds = manifest.get("seeds") or {}
    add("Seed", seeds.get("seed"))
    add("Command", " ".join(manifest.get("command") or []))
    if git:
        changed = " with uncommitted changes" if git.get("dirty") else ""
        add("Code", f"commit {git.get('commit', '')[:12]}{changed} in {git.get('root')}")
    add("Packages", ", ".join(f"{name} {version}" for name, version in _main_packages(manifest)))
    add("Python", f"{system.get('python')} on {system.get('platform')}" if system else None)
    if system:
        memory = f", {size(system['memory_bytes'])} of memory" if system.get("memory_bytes") else ""
        add("Processor", f"{system.get('processor')}, {system.get('usable_processors')} usable{memory}")
    for gpu in device.get("gpus") or []:
        add("GPU", f"{gpu.get('name')}, {size(gpu.get('memory_bytes') or 0)}")
    add("Device", device.get("device"))
    add("Started", manifest.get("started_at"))
    if isinstance(manifest.get("seconds"), (int, float)):
        add("Time", seconds(manifest["seconds"]))
    return found


def _main_packages(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    packages = manifest.get("packages") or {}
    return [(name, packages[name]) for name in MAIN_PACKAGES if name in packages]


def chips(manifest: Mapping[str, Any]) -> list[str]:
    """Short facts for the head of a page: algorithm, backend, device, seed, date."""
    device = manifest.get("device") or {}
    gpus = [gpu.get("name") for gpu in device.get("gpus") or []]
    seed = (manifest.get("seeds") or {}).get("seed")
    values = [
        manifest.get("algorithm"),
        f"{manifest['backend']} backend" if manifest.get("backend") else None,
        gpus[0] if gpus else ({"cpu": "CPU"}.get(str(device.get("device")), device.get("device"))),
        f"seed {seed}" if seed is not None else None,
        str(manifest["started_at"])[:10] if manifest.get("started_at") else None,
    ]
    return [str(value) for value in values if value]
