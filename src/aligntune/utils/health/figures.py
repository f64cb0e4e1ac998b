"""What the monitor reads beside the log: memory, disk, GPU, and how much completions repeat themselves.

>>> DiagnosticsCollector("runs/a").system()
{'system/memory': 0.41, 'system/disk_free_gb': 212.4}
>>> repeated("the cat the cat the cat the cat the cat")
0.57

Source: a control group's limits (cgroup v2) where they are below the machine's; seq-rep-n of Welleck et al. 2020
(arXiv:1908.04319, section 5.1): 1 - different n-grams / n-grams.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

WORDS, CHARACTERS = 4, 8
"""n of the n-grams: words where a text has twice as many, else characters."""
CGROUP = Path("/sys/fs/cgroup")
EVERY = 30.0
"""Seconds between two looks at the system."""


def repeated(text: str) -> float:
    """Share of a text's n-grams that are repetitions, from 0 to 1; 0 for a text too short to have any."""
    words = text.split()
    if len(words) >= 2 * WORDS:
        return _share(words, WORDS)
    return _share(text, CHARACTERS) if len(text) >= 2 * CHARACTERS else 0.0


def _share(parts: Sequence[str], n: int) -> float:
    grams = [tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def mean_repetition(texts: Iterable[str]) -> float | None:
    """Mean of `repeated` over texts; None without any."""
    found = [repeated(text) for text in texts]
    return sum(found) / len(found) if found else None


class DiagnosticsCollector:
    """Looks at the machine that a run is on.

    Args:
        folder: where the run writes.
        every: seconds between two looks of `due`.
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: float = EVERY) -> None:
        self.folder, self.every = Path(folder), every
        self._next = 0.0

    def due(self) -> dict[str, float]:
        """`system()`, at most every `every` seconds; else nothing."""
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + self.every
        return self.system()

    def system(self) -> dict[str, float]:
        """`system/memory` (share in use of what this process may use), `system/disk_free_gb`, and on CUDA
        `system/gpu_memory` (share in use, by all processes) and `system/gpu_peak_gb` (PyTorch's allocator)."""
        found = {"system/memory": memory_share()}
        existing = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        found["system/disk_free_gb"] = shutil.disk_usage(existing).free / 1e9
        return {**found, **gpu_figures()}


def memory_share(group: Path = CGROUP) -> float:
    """Share of the memory that is in use: the machine's, or the control group's where that is nearer its limit."""
    import psutil

    machine = psutil.virtual_memory()
    share = 1 - machine.available / machine.total
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return float(share)
    if not limit.isdigit() or not 0 < int(limit) < machine.total:
        return float(share)
    free_at_will = int(stat.get("inactive_file", 0))  # file pages that the kernel drops first
    return max(float(share), (used - free_at_will) / int(limit))


def gpu_figures() -> dict[str, float]:
    """The GPU's memory, where PyTorch is loaded and uses one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"system/gpu_memory": 1 - free / total, "system/gpu_peak_gb": torch.cuda.max_memory_allocated() / 1e9}
