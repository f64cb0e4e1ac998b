"""The garbage collector around the preparation of a run."""

from __future__ import annotations

import gc
import weakref

import pytest

from aligntune.utils.collector import PATIENT, patient_collector, settled_objects


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
