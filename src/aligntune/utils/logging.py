"""AlignTune's log output: one logger tree, silent until the command line (or the user) turns it on.

>>> log = get_logger(__name__)
>>> log.info("claimed %s", folder)

Source: the standard library's advice for libraries (a NullHandler, no set-up at import). It does not write
metrics; `RunFolder.append_metrics` does.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ROOT = "aligntune"
LIBRARIES = ("transformers", "datasets", "trl", "peft", "accelerate", "huggingface_hub", "bitsandbytes")


def get_logger(name: str) -> logging.Logger:
    """The logger `name` under `aligntune`; it prints nothing until `configure` is called."""
    full = name if name == ROOT or name.startswith(f"{ROOT}.") else f"{ROOT}.{name}"
    root = logging.getLogger(ROOT)
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    return logging.getLogger(full)


def configure(level: str = "info") -> None:
    """Send AlignTune's messages to standard error, once. Processes of rank above 0 print warnings only.

    Args:
        level: debug, info, warning or error.
    """
    root = logging.getLogger(ROOT)
    wanted = logging.WARNING if int(os.environ.get("RANK", "0")) > 0 else logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(wanted)
    root.propagate = False
    if not any(getattr(handler, "aligntune", False) for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        handler.aligntune = True  # type: ignore[attr-defined]
        root.addHandler(handler)


@contextmanager
def quiet_libraries(level: int = logging.ERROR) -> Iterator[None]:
    """Hold the libraries' progress bars, and their log messages below `level`, back while the block runs."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    bars = _bars()
    for _, hide, _ in bars:
        hide()
    try:
        yield
    finally:
        for shown, _, show in bars:
            if shown:
                show()
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)


def _bars() -> list[tuple[bool, Callable[[], None], Callable[[], None]]]:
    """For each library that is loaded: whether its bars show now, how to hide them, how to show them again."""
    found = []
    if "transformers" in sys.modules:
        from transformers.utils import logging as hf

        found.append((hf.is_progress_bar_enabled(), hf.disable_progress_bar, hf.enable_progress_bar))
    if "datasets" in sys.modules:
        import datasets

        shown = datasets.are_progress_bars_disabled()
        found.append((not shown, datasets.disable_progress_bars, datasets.enable_progress_bars))
    return found
