"""Memory management around a run."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref

import pytest

from aligntune.utils.allocation import PATIENT, patient_collector, settled_objects


def test_it_is_patient_inside_and_as_before_outside() -> None:
    before = gc.get_threshold()
    with patient_collector():
        assert gc.get_threshold() == PATIENT
    assert gc.get_threshold() == before
    with pytest.raises(ValueError, match="no"), patient_collector():
        raise ValueError("no")
    assert gc.get_threshold() == before


def test_what_is_alive_is_out_of_collections_inside_and_garbage_again_after() -> None:
    class Node:
        pass

    node = Node()
    node.own = node  # type: ignore[attr-defined]
    gone = weakref.ref(node)
    with settled_objects():
        assert gc.get_freeze_count() > 0
        del node
        gc.collect()
        assert gone() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of another C library")
def test_a_steady_heap_faults_no_pages_in_again() -> None:
    program = """
import resource, sys, torch
from aligntune.utils.allocation import steady_heap
if sys.argv[1] == "steady":
    assert steady_heap()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        parts = [torch.ones(1 << 18) for _ in range(40)]
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    count = {}
    for mode in ("plain", "steady"):
        done = subprocess.run([sys.executable, "-c", program, mode], capture_output=True, text=True, check=True)
        count[mode] = int(done.stdout)
    assert count["steady"] < max(0.1 * count["plain"], 100)  # a plain heap may keep it by chance
