"""What goes wrong around a run: clocks that jump, signals in the middle of a checkpoint, a data process that is killed,
and what its model card says of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core import durable
from aligntune.errors import TrainingError
from aligntune.utils.checkpoints import CheckpointManager, fault


def test_a_clock_that_jumps_changes_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's clock goes back by a day at every look; time limits, times of rows and rotation do not follow it."""
    options = {"train__save_steps": 1, "train__save_total_limit": 2, "train__time_limit": "1h"}
    straight = runs.trainer("sft", tiny_model, tmp_path / "straight", **options)
    straight.train()
    real, jumps = time.time, [0.0]

    def jumping() -> float:
        jumps[0] += 86400.0
        return real() - jumps[0]

    monkeypatch.setattr(time, "time", jumping)
    trainer = runs.trainer("sft", tiny_model, tmp_path / "jumped", **options)
    trainer.train()
    out = tmp_path / "jumped" / "out"
    assert jumps[0] > 86400.0
    assert runs.logged(out) == runs.logged(straight.config.output_dir)
    times = runs.logged(out, "time")
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 600
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_two_signals_inside_a_checkpoint_leave_it_whole(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first asks to stop, the second to stop at once; both come while checkpoint-2 is written."""
    write = durable.window_of

    def interrupted(hf: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return write(hf)

    monkeypatch.setattr(durable, "window_of", interrupted)
    trainer = runs.trainer("sft", tiny_model, tmp_path, train__save_steps=2, train__max_steps=6)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    out = tmp_path / "out"
    found = CheckpointManager(out).latest()
    assert found is not None
    assert found.step == 2
    assert fault(Path(found.path)) is None
    assert not (out / ".saving").exists()
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(durable, "window_of", write)
    again = runs.trainer("sft", tiny_model, tmp_path, train__save_steps=2, train__max_steps=6)
    assert again.train(resume="latest").total_steps == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_data_process_that_is_killed_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really killed, as by the system where memory runs out; the run neither hangs nor shows a traceback."""
    trainer = runs.trainer("sft", tiny_model, tmp_path, train__dataloader_workers=1)
    build, parent = trainer._build, os.getpid()

    def built(*args: Any) -> Any:
        hf = build(*args)
        collate = hf.data_collator

        def dying(rows: Any) -> Any:
            if os.getpid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)
            return collate(rows)

        hf.data_collator = dying
        return hf

    monkeypatch.setattr(trainer, "_build", built)
    with pytest.raises(TrainingError, match="a process that loads data died in step 1") as caught:
        trainer.train()
    assert "train.dataloader_workers=0" in caught.value.hint
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "failed"


def test_the_card_says_what_the_numbers_do_not_show(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("grpo", tiny_model, tmp_path, train__max_steps=1, health__memory=1e-9)
    trainer.train()
    card = (tmp_path / "out" / "README.md").read_text()
    limits = card[card.index("## Limits") :]
    assert f"on the training data: reward {runs.logged(tmp_path / 'out', 'reward')[-1]:.4g}, loss " in card
    assert "No held-out data were measured" in limits
    assert "one run with seed 3" in limits
    assert "trained to raise `share_of_a`" in limits
    assert "The health rules told 1 event while it trained (memory)" in limits
    assert "| held-out measure |" not in card


def test_training_and_saving_ask_the_hub_for_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a hub that fails or hangs cannot stop a run whose model and data are here: no name is looked up, and no usage
    is sent, at the start, in a checkpoint, or when the adapter is saved."""
    from huggingface_hub import constants

    asked: list[Any] = []

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        raise OSError("the hub is gone")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    trainer = runs.trainer("sft", tiny_model, tmp_path, train__save_steps=2, model__peft={"r": 4})
    trainer.train()
    assert asked == []
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
