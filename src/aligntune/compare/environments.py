"""With what each arm was run, as rows of a table: backend, device, packages, and whose code trained.

>>> [(row["arm"], row["backend"], row["replaced"]) for row in environments(comparison.runs)]
[('backend=trl', 'trl', '0'), ('backend=unsloth', 'unsloth', '9')]

Read from the runs' manifests, failed runs too as far as they came. Runs of an arm with the same environment are one
row; where they differ, each row names its seeds. Packages are the ones that train, and every other one whose version is
not the same in all runs. The fingerprint is that of the loaded training code (`aligntune.core.fingerprint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aligntune.compare.measure import Measured

TRAINING = ("aligntune", "torch", "transformers", "trl", "peft", "accelerate")
"""Packages that are shown for every arm."""
OF_BACKEND = {"unsloth": ("unsloth", "unsloth_zoo")}
"""Packages that are shown for the arms of a backend."""
DIGITS = 12
"""Characters of a fingerprint that are shown; the manifest has it whole."""
UNKNOWN = "not known"


def environments(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """One row for each arm and environment, in the order of the runs; runs without a manifest are left out.

    Returns:
        rows with `arm`, `seeds` (text; empty where all of the arm's runs agree), `backend`, `device`, `packages`,
        `fingerprint`, `replaced` (their number as text) and `symbols` (their names).
    """
    known = [run for run in runs if run.facts]
    others = differing([run.facts.get("packages") or {} for run in known])
    found: dict[str, dict[tuple[Any, ...], list[int]]] = {}
    for run in known:
        found.setdefault(run.arm, {}).setdefault(_cells(run.facts, others), []).append(run.seed)
    return [
        {
            "arm": arm,
            "seeds": "" if len(kinds) == 1 else f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
            **dict(zip(("backend", "device", "packages", "fingerprint", "replaced", "symbols"), cells, strict=True)),
        }
        for arm, kinds in found.items()
        for cells, seeds in kinds.items()
    ]


def differing(packages: Sequence[Mapping[str, str]]) -> list[str]:
    """Names whose version is not the same in all of the environments that are known, or that some lack."""
    stated = [each for each in packages if each]
    names = dict.fromkeys(name for each in stated for name in each)
    return sorted(name for name in names if len({each.get(name) for each in stated}) > 1)


def _cells(facts: Mapping[str, Any], others: Sequence[str]) -> tuple[Any, ...]:
    packages, patches = facts.get("packages") or {}, facts.get("patch_fingerprint") or {}
    backend = str(facts.get("backend") or UNKNOWN)
    shown = dict.fromkeys([*(n for n in (*TRAINING, *OF_BACKEND.get(backend, ())) if n in packages), *others])
    versions = ", ".join(f"{name} {packages.get(name, '(not installed)')}" for name in shown)
    count = sum((patches.get("by") or {}).values()) or len(patches.get("replaced") or ())
    return (
        backend,
        _device(facts.get("device") or {}),
        versions if packages else UNKNOWN,
        str(patches.get("hash") or UNKNOWN)[:DIGITS],
        str(count) if patches else UNKNOWN,
        tuple(patches.get("replaced") or ()),
    )


def _device(device: Mapping[str, Any]) -> str:
    if not device:
        return UNKNOWN
    names = ", ".join(dict.fromkeys(str(gpu.get("name")) for gpu in device.get("gpus") or ()))
    return f"{device.get('device')}{f' ({names})' if names else ''}, {device.get('threads')} threads".replace(
        ", 1 threads", ", 1 thread"
    )
