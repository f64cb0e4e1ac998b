"""Python's cyclic garbage collector while a run is prepared.

Loading the libraries makes some 400,000 objects that live as long as the process. With Python's thresholds the collector
walks all of them about ten times before the first step (0.9 s of CPU of a start of 7 s, measured with `gc.callbacks`),
and again in every full collection of the training loop.

>>> with patient_collector():
...     import transformers
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

PATIENT = (50_000, 20, 100)
"""Thresholds inside the block: garbage of a few hundred thousand objects may wait, so memory stays bounded."""


@contextmanager
def patient_collector() -> Iterator[None]:
    """Collect seldom inside the block, and afterwards leave the objects that are alive out of later collections.

    The process's own thresholds come back. A process that has switched its collector off keeps it off.
    """
    before = gc.get_threshold()
    gc.set_threshold(*PATIENT)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.freeze()
