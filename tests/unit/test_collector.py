"""The garbage collector around the preparation of a run."""

from __future__ import annotations

import gc

import pytest
from aligntune.utils.collector import PATIENT, patient_collector


def test_it_is_patient_inside_and_as_before_outside() -> None:
    before = gc.get_threshold()
    with patient_collector():
        assert gc.get_threshold() == PATIENT
    assert gc.get_threshold() == before
    with pytest.raises(ValueError, match="no"), patient_collector():
        raise ValueError("no")
    assert gc.get_threshold() == before


def test_what_is_alive_is_left_out_of_later_collections() -> None:
    gc.unfreeze()
    kept = [[] for _ in range(1000)]
    with patient_collector():
        pass
    try:
        assert gc.get_freeze_count() > len(kept)
    finally:
        gc.unfreeze()
