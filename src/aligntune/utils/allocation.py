"""Memory management around a run: Python's cyclic garbage collector, and the C library's heap.

Loading the libraries makes some 400,000 objects that live as long as the process. With Python's thresholds the
collector walks all of them about ten times before the first step (0.9 s of CPU of a start of 7 s, measured with
`gc.callbacks`), and again in every full collection of the training loop.

On the CPU every step frees and takes again buffers of some megabytes. Unless it is told to keep such memory, glibc
gives it back to the system and faults it in anew, page by page: 4,000 faults and 7 ms of a step of 90 ms (0.7 M
parameters, batch 32).

>>> steady_heap()
True
>>> with patient_collector():
...     import transformers
>>> with settled_objects():
...     trainer.train()
"""

from __future__ import annotations

import ctypes
import gc
import sys
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


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_BYTES = 512 << 20, 32 << 20
"""Free memory kept at the end of the heap, and the size above which a block is still mapped apart (glibc's most)."""


def steady_heap() -> bool:
    """Let glibc keep what tensors on the CPU free, for the life of the process; False where there is no glibc.

    Source: mallopt(3). The same as the variables MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ at start.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES))
