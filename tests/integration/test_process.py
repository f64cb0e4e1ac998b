"""`isolation: process`: the same trainer behind a process boundary."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune import errors
from aligntune.core.process import ProcessTrainer


@pytest.fixture
def made() -> Iterator[list[ProcessTrainer]]:
    """Trainers to close at the end."""
    trainers: list[ProcessTrainer] = []
    yield trainers
    for trainer in trainers:
        trainer.close()


def start(made: list[ProcessTrainer], kind: str, model: Path, folder: Path, **changes: Any) -> ProcessTrainer:
    trainer = runs.trainer(kind, model, folder, isolation="process", **changes)
    assert isinstance(trainer, ProcessTrainer)
    made.append(trainer)
    return trainer


def test_a_run_in_a_worker_equals_the_run_here(made: list[ProcessTrainer], tiny_model: Path, tmp_path: Path) -> None:
    here = runs.trainer("sft", tiny_model, tmp_path / "here")
    expected = here.train()
    there = start(made, "sft", tiny_model, tmp_path / "there")
    result = there.train()
    assert result.final_loss == expected.final_loss
    assert result["total_steps"] == 4
    assert runs.same_weights(there.config.output_dir, here.config.output_dir)
    assert there.state == here.state.__class__(**vars(there.state))
    assert there.state.step == 4
    assert there.state.status == "finished"
    assert there.notes[0].startswith("training data:")

    data = tmp_path / "here" / "sft.jsonl"
    assert there.evaluate(data) == here.evaluate(data)
    assert there.generate(["Say 1", "Say 2"], max_new_tokens=4) == here.generate(["Say 1", "Say 2"], max_new_tokens=4)
    saved = there.save_model(tmp_path / "saved")
    assert saved == tmp_path / "saved"
    assert runs.same_weights(saved, here.config.output_dir)

    # An error comes back as the class that it was, with its hint, and the worker lives on.
    pid = there._worker.pid  # type: ignore[union-attr]
    with pytest.raises(errors.ConfigurationError, match="holds a finished run") as caught:
        there.train()
    assert "new folder" in caught.value.hint
    with pytest.raises(errors.ConfigurationError, match="nothing to evaluate on"):
        there.evaluate()
    assert there.generate("Say 3", max_new_tokens=2)
    assert there._worker.pid == pid  # type: ignore[union-attr]

    for name in ("model", "tokenizer"):
        with pytest.raises(errors.ConfigurationError, match="another process") as caught:
            getattr(there, name)
        assert there.config.output_dir in caught.value.hint

    # A worker that was killed took the trained model with it: no other one stands in for it.
    os.kill(pid, signal.SIGKILL)
    there._worker.wait()  # type: ignore[union-attr]
    for _ in range(2):
        with pytest.raises(errors.TrainingError, match=r"worker process ended with code -9"):
            there.generate(["x"])
    there.close()
    with pytest.raises(errors.ConfigurationError, match="closed"):
        there.generate(["x"])


def test_a_worker_that_dies_in_a_call_is_an_error(made: list[ProcessTrainer], tiny_model: Path, tmp_path: Path) -> None:
    """The reward ends the process, as running out of memory does."""
    trainer = start(made, "grpo", tiny_model, tmp_path)
    (tmp_path / "share.py").write_text("import os\n\n\ndef share_of_a(text):\n    os._exit(9)\n")
    with pytest.raises(errors.TrainingError, match=r"ended with code 9 during train\(\)"):
        trainer.train()


def test_ctrl_c_stops_the_worker_and_leaves_a_checkpoint(
    made: list[ProcessTrainer], tiny_model: Path, tmp_path: Path
) -> None:
    trainer = start(made, "sft", tiny_model, tmp_path, train__max_steps=20000)
    metrics = tmp_path / "out" / "metrics.jsonl"

    def press() -> None:
        for _ in range(6000):  # a busy machine takes minutes to start
            if metrics.exists() and metrics.read_text().count("\n") > 2:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert trainer.state.status == "interrupted"
    assert "--resume" in trainer.resume_hint
    assert Path(trainer.state.checkpoint_path or "").is_dir()
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "interrupted"


def test_a_worker_gets_a_clean_environment(
    made: list[ProcessTrainer], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSLOTH_COMPILE_LOCATION", str(tmp_path / "cache"))
    monkeypatch.setenv("PURE_TRL_MODE", "1")
    trainer = start(made, "sft", tiny_model, tmp_path)
    worker = trainer._start()
    names = Path(f"/proc/{worker.pid}/environ")
    if not names.exists():
        pytest.skip("no /proc to read the worker's environment from")
    found: list[str] = []
    while len(found) < 2:  # empty for a moment, while the program is loaded
        found = names.read_bytes().decode().split("\0")
    assert not [n for n in found if n.startswith("PURE_TRL_MODE")]
    assert f"UNSLOTH_COMPILE_LOCATION={tmp_path / 'cache'}" in found  # the user's, since no Unsloth is imported here
    assert any(n.startswith("HF_HUB_OFFLINE=") for n in found)


def test_what_cannot_be_sent_is_an_error_before_a_worker_starts(
    made: list[ProcessTrainer], tiny_model: Path, tmp_path: Path
) -> None:
    trainer = start(made, "sft", tiny_model, tmp_path)
    ring: list[Any] = []
    ring.append(ring)
    for wrong in ([object()], {("a", "b"): 1}, ring):
        with pytest.raises(errors.ValidationError, match=r"an argument of generate\(\) cannot be sent") as caught:
            trainer.generate(wrong)
        assert "give text" in caught.value.hint
    assert trainer._worker is None


def test_a_configuration_that_the_other_environment_does_not_know_is_an_error(
    made: list[ProcessTrainer], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another release stands there: its fault comes back with its hint, and the worker lives on."""
    from aligntune.core import process

    known = process.effective
    monkeypatch.setattr(process, "effective", lambda config: {**known(config), "newer_key": 1})
    trainer = start(made, "sft", tiny_model, tmp_path, python=sys.executable)
    for _ in range(2):
        with pytest.raises(errors.ConfigurationError, match="newer_key"):
            trainer.train()
    assert trainer._worker is not None
    assert trainer._worker.poll() is None


def test_both_backends_from_one_process(made: list[ProcessTrainer], tiny_model: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("unsloth is not installed")
    losses = {}
    for backend in ("trl", "unsloth"):
        trainer = start(made, "sft", tiny_model, tmp_path / backend, backend=backend)
        losses[backend] = trainer.train().final_loss
    assert losses["trl"] == pytest.approx(losses["unsloth"], abs=1e-4)
