"""One side of the parity probe, measured in the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aligntune.compare.probe import prepared_config
from aligntune.compare.probe_verdict import Side
from aligntune.compare.probe_worker import measure
from aligntune.core.config import load_config

Measured = Callable[..., Side]


def sides(plain: Callable[..., dict[str, Any]], model: Path, root: Path) -> Measured:
    """`sides(...)(name, kind, ...)` measures one side of a small run, whose configuration `plain` gives."""
    sizes = iter(range(1000))

    def make(name: str, kind: str, *, bare: bool = False, **changes: Any) -> Side:
        folder = root / f"{next(sizes)}"
        folder.mkdir()
        config, _ = prepared_config(load_config(plain(kind, model, folder, **changes)))
        return Side(name, measure(config, folder / "measured", bare=bare), folder / "measured")

    return make
