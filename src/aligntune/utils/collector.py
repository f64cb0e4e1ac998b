"""Python's cyclic garbage collector around a run.

Loading the libraries makes some 400,000 objects that live as long as the process. With Python's thresholds the
collector walks all of them about ten times before the first step (0.9 s of CPU of a start of 7 s, measured with
`gc.callbacks`), and again in every full collection of the training loop.

>>> with patient_collector():
...     import transformers
>>> with settled_objects():
...     trainer.train()
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

PATIENT = (50_000, 20, 100)
"""Thresholds inside the block: garbage of a few hundred thousand objects may wait, so memory stays bounded."""


@contextmanager
def patient_collector() -> Iterator[None]:
    """Collect seldom inside the block; the process's own thresholds come back after it."""
    before = gc.get_threshold()
    gc.set_threshold(*PATIENT)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def settled_objects() -> Iterator[None]:
    """Leave what is alive now out of the collections inside the block, and free to be collected after it.

    After it, because a model that the process has done with often hangs in a cycle, and must not stay for ever.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
