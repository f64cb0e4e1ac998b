"""`backend: auto`: the backend by hardware, versions and algorithm, and a sentence that says why.

>>> config, why = settle_backend(config)
>>> why
'backend auto is trl: PyTorch finds no CUDA GPU, and only there has Unsloth its kernels'

Unsloth is taken where nothing speaks against it: a CUDA GPU, the package, versions that it declares to work with, an
algorithm that it trains with its own kernels, and no setting that it cannot keep. A backend that is named is never
replaced by another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from aligntune.core.backend import BACKENDS
from aligntune.core.config.io import changed_keys
from aligntune.core.config.root import RunConfig
from aligntune.core.isolation import FOREIGN, PATCHED_LIBRARIES, imported
from aligntune.core.versions import conflicts, installed

AUTO = "auto"
C = TypeVar("C", bound=RunConfig)


def settle_backend(config: C) -> tuple[C, str]:
    """The configuration with a named backend, and why it is that one; "" where it was named already."""
    if config.backend != AUTO:
        return config, ""
    name, reason = choose(config)
    return replace(config, backend=name), f"backend auto is {name}: {reason}"  # type: ignore[arg-type]


def choose(config: RunConfig) -> tuple[str, str]:
    """The backend for a configuration and the reason."""
    against = _against(config)
    if against is not None:
        return "trl", against
    return "unsloth", f"{gpu()}, Unsloth {installed('unsloth')}, which declares trl {installed('trl')} to fit"


def _against(config: RunConfig) -> str | None:
    """The first thing that speaks against Unsloth; what is cheap to find comes first."""
    info = BACKENDS["unsloth"]
    if not info.available:
        return f"Unsloth is not installed ({info.install})"
    if note := info.notes.get(config.algorithm.key):
        return f"on Unsloth {config.algorithm.key} {note}"
    if own := sorted(key for key in changed_keys(config) if key in info.inert):
        return f"{own[0]} is set, and {info.inert[own[0]]}"
    if getattr(config.algorithm, "use_adaptive_entropy", False):
        return "algo.use_adaptive_entropy has no effect in Unsloth's trainer"
    if config.isolation != "process" and not imported(FOREIGN) and (early := imported(PATCHED_LIBRARIES)):
        return f"'{early[0]}' is imported in this process already, and Unsloth must come before it"
    if problems := version_conflicts():
        return problems[0]
    if gpu() is None:
        return "PyTorch finds no CUDA GPU, and only there has Unsloth its kernels"
    return None


def version_conflicts() -> list[str]:
    """What Unsloth's metadata says against the installed versions."""
    return [line for package in FOREIGN if installed(package) for line in conflicts(package)]


def gpu() -> str | None:
    """The name of the first CUDA GPU that PyTorch finds; None without one."""
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
