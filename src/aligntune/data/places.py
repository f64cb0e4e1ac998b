"""Where the data layer keeps things: one folder, the configured one or the user's."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(configured: str | None = None) -> Path:
    """`cache.dir`, else `ALIGNTUNE_CACHE`, else `aligntune` in `XDG_CACHE_HOME` or `~/.cache`."""
    if configured is not None:
        return Path(configured).expanduser()
    if os.environ.get("ALIGNTUNE_CACHE"):
        return Path(os.environ["ALIGNTUNE_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "aligntune"
