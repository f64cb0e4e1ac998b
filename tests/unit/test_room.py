"""A GPU without enough memory: the estimate is told before anything is loaded, and what cannot fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.errors import EnvironmentError
from aligntune.utils import device


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`gpu(bytes)` puts a faked GPU of so much memory into this machine."""

    def install(size: int) -> None:
        class Small:
            device, name = "cuda", "a small GPU"

            def __init__(self, wanted: str = "auto") -> None: ...

            def precision(self, wanted: str = "auto") -> str:
                return "bf16"

            def summary(self) -> dict[str, Any]:
                return {"gpus": [{"memory_bytes": size}]}

        monkeypatch.setattr(device, "DeviceManager", Small)

    return install


def check_room(trainer: Any) -> None:
    from aligntune.core.room import check_room as check  # after the trainer, which imports it

    check(trainer)


def test_an_estimate_that_fits_is_told(
    gpu: Any, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = runs.trainer("sft", tiny_model, tmp_path)
    gpu(16_000_000_000)
    check_room(trainer)
    assert any("of the 16.0 GB of a small GPU at its peak" in note for note in trainer.notes)
    assert not any("may run out" in note for note in trainer.notes)


def test_an_estimate_that_does_not_fit_is_a_warning_with_what_to_change(
    gpu: Any, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = runs.trainer("dpo", tiny_model, tmp_path, train__per_device_batch_size=256, model__max_seq_length=2048)
    gpu(1_000_000_000)
    check_room(trainer)
    (note,) = [note for note in trainer.notes if "memory may run out: about" in note]
    assert "set train.per_device_batch_size=128" in note


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    gpu: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.utils.model_loader import ModelLoader

    trainer = runs.trainer("sft", tiny_model, tmp_path)
    gpu(50_000_000)
    monkeypatch.setattr(ModelLoader, "load", lambda self: pytest.fail("the weights were loaded"))
    with pytest.raises(EnvironmentError, match=r"alone take about 0\.1 GB, and a small GPU has 0\.1 GB") as caught:
        trainer.train()
    assert "model.peft" in caught.value.hint
    assert caught.value.context["capacity"] == 50_000_000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("size", "said"), [(16_000_000_000, "of the 16.0 GB"), (50_000_000, "alone take about 0.1 GB")]
)
def test_unsloth_tells_and_refuses_as_trl_does(
    gpu: Any, size: int, said: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its loader is called; the process is prepared in name only, since Unsloth cannot be undone."""
    from aligntune.backends.unsloth.backend import UnslothBackend
    from aligntune.core.backend import BackendInfo

    class Reached(Exception):
        """The weights were asked for."""

    def load(self: Any, config: Any) -> None:
        raise Reached

    monkeypatch.setattr(BackendInfo, "available", True)
    monkeypatch.setattr(UnslothBackend, "prepare", lambda self, config: None)
    monkeypatch.setattr(UnslothBackend, "load_model", load)
    trainer = runs.trainer("sft", tiny_model, tmp_path, backend="unsloth")
    gpu(size)
    if size > 10**9:
        check_room(trainer)
        assert any(said in note for note in trainer.notes)
        return
    with pytest.raises(EnvironmentError) as caught:
        trainer.train()
    assert said in caught.value.message
    assert "model.peft" in caught.value.hint


def test_nothing_is_said_without_a_gpu(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("sft", tiny_model, tmp_path, model__device="cpu")
    check_room(trainer)
    assert trainer.notes == []
