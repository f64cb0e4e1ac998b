"""Runs that are asked to save or stop, that run out of time or memory, or are killed while they write."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs
from aligntune.core.stopping import StopRequest
from aligntune.errors import ConfigurationError, TrainingError
from aligntune.utils.checkpoints import MARKER, CheckpointManager, fault
from kill import KINDS

HERE = Path(__file__).resolve().parents[1]


def at_step(trainer: Any, step: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something when the optimizer has taken `step` steps, before the library looks at what is to be done."""
    build = trainer._build

    def built(*args: Any) -> Any:
        from transformers import TrainerCallback

        class Act(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == step - 1:
                    act()

        hf = build(*args)
        hf.callback_handler.callbacks.insert(0, Act())
        return hf

    monkeypatch.setattr(trainer, "_build", built)


def manifest(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return loaded


def test_a_stop_between_two_lines_of_the_log_changes_no_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines at steps 1, 4 and 7; stopped after step 5, and asked for a checkpoint at step 2 and at step 6."""
    options = {"train__max_steps": 7, "logging__steps": 4, "train__gradient_accumulation_steps": 2}
    straight = runs.trainer("sft", tiny_model, tmp_path / "straight", **options)
    expected = straight.train()
    stopped = runs.trainer("sft", tiny_model, tmp_path / "stopped", **options)
    out = tmp_path / "stopped" / "out"
    at_step(stopped, 2, lambda: os.kill(os.getpid(), signal.SIGUSR1), monkeypatch)
    at_step(stopped, 5, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-5"]
    assert "SIGTERM was received" in stopped.resume_hint
    assert manifest(out)["status"] == "interrupted"
    window = json.loads((out / "checkpoint-5" / "window-0.json").read_text())
    assert window["logged_step"] == 4
    assert window["loss"] > 0
    resumed = runs.trainer("sft", tiny_model, tmp_path / "stopped", **options)
    at_step(resumed, 6, lambda: (out / "SAVE").touch(), monkeypatch)
    result = resumed.train(resume="latest")
    assert (out / "checkpoint-6").is_dir()
    assert not (out / "SAVE").exists()
    assert runs.logged(out, "step") == [1, 4, 7] == runs.logged(straight.config.output_dir, "step")
    for name in ("loss", "grad_norm", "num_tokens", "entropy", "mean_token_accuracy"):
        assert runs.logged(out, name) == runs.logged(straight.config.output_dir, name), name
    assert result.final_loss == expected.final_loss
    assert runs.same_weights(out, straight.config.output_dir)


def test_a_damaged_checkpoint_is_left_for_the_older_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"train__max_steps": 6, "train__save_steps": 2}
    straight = runs.trainer("sft", tiny_model, tmp_path / "straight", **options)
    straight.train()
    out = tmp_path / "straight" / "out"
    for number, (name, damage) in enumerate(
        [
            ("model.safetensors", lambda raw: raw[:-9]),
            (MARKER, None),
        ]
    ):
        folder = tmp_path / f"damaged-{number}"
        shutil.copytree(out, folder / "out")
        shutil.rmtree(folder / "out" / "checkpoint-6")
        (folder / "out" / "model.safetensors").unlink()
        entries = {**manifest(folder / "out"), "status": "failed"}
        (folder / "out" / "manifest.json").write_text(json.dumps(entries))
        file = folder / "out" / "checkpoint-4" / name
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage(file.read_bytes()))
        resumed = runs.trainer("sft", tiny_model, folder, **options)
        resumed.train(resume="latest")
        (told,) = [note for note in resumed.notes if "checkpoint-4 is skipped" in note]
        assert name in told
        assert any("resuming from" in note and "(step 2)" in note for note in resumed.notes)
        assert runs.same_weights(folder / "out", out)
        assert runs.logged(folder / "out") == runs.logged(out)
        assert fault(folder / "out" / "checkpoint-4") is None  # written anew
    again = runs.trainer("sft", tiny_model, tmp_path / "damaged-0", **options)
    with pytest.raises(ConfigurationError, match="finished run"):
        again.train(resume="latest")


def test_the_time_limit_leaves_room_for_a_step_and_a_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock of 10 seconds a step, of which the fourth would end after the limit of 35."""
    now = [1000.0]
    monkeypatch.setattr("aligntune.core.stopping.time.monotonic", lambda: now[0])
    trainer = runs.trainer("sft", tiny_model, tmp_path, train__time_limit="35s", train__max_steps=9)
    trainer._began = now[0]
    for step in range(1, 9):
        at_step(trainer, step, lambda: now.__setitem__(0, now[0] + 10), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.checkpoint_path.endswith("checkpoint-3")
    assert "train.time_limit is reached" in trainer.resume_hint


def test_requests_to_stop_at_once_wait_for_a_checkpoint() -> None:
    stop = StopRequest(grace=0.02)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        with pytest.raises(KeyboardInterrupt), stop.saving():  # noqa: PT012
            for _ in range(500):  # the grace ends meanwhile
                if stop._at_once:
                    break
                time.sleep(0.01)
            finished = True
        assert finished
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runs.trainer("grpo", tiny_model, tmp_path, train__save_steps=3)

    def die() -> None:
        raise RuntimeError("power cut")

    at_step(first, 3, die, monkeypatch)
    with pytest.raises(RuntimeError, match="power cut"):
        first.train()
    again = runs.trainer("grpo", tiny_model, tmp_path, train__save_steps=3)
    again.train(resume="latest")
    assert any("stopped before its first checkpoint" in note for note in again.notes)
    assert runs.logged(tmp_path / "out", "step")[:4] == [1, 2, 3, 4]
    straight = runs.trainer("grpo", tiny_model, tmp_path / "straight", train__save_steps=3)
    straight.train()
    assert runs.same_weights(tmp_path / "out", straight.config.output_dir)


def fail_at(trainer: Any, step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch, *, size: int = 0) -> None:
    """Raise in the given step, as long as the batch is larger than `size`."""

    def fail() -> None:
        if trainer.config.train.per_device_batch_size > size:
            raise error

    at_step(trainer, step, fail, monkeypatch)


def test_memory_that_runs_out_is_told_with_what_to_change(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    trainer = runs.trainer("sft", tiny_model, tmp_path)
    fail_at(trainer, 2, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), monkeypatch)
    with pytest.raises(TrainingError, match=r"memory ran out in step 2 \(CUDA out of memory") as caught:
        trainer.train()
    peaks = caught.value.context["estimates"]
    assert list(peaks) == [4, 2, 1]
    assert peaks[4] > peaks[2] > peaks[1] > 0
    assert "train.per_device_batch_size=2 train.gradient_accumulation_steps=2 (the same update" in caught.value.hint
    assert "train.auto_batch=true" in caught.value.hint
    assert "model.max_seq_length (it is 64)" in caught.value.hint
    other = runs.trainer("sft", tiny_model, tmp_path / "other", train__dataloader_workers=0)
    fail_at(other, 1, RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), monkeypatch)
    with pytest.raises(TrainingError, match="a process that loads data died in step 1") as caught:
        other.train()
    assert "train.dataloader_workers=0" in caught.value.hint


@pytest.mark.parametrize("kind", ["sft", pytest.param("grpo", marks=pytest.mark.slow)])
def test_auto_batch_halves_and_keeps_the_update(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in step 3: from checkpoint-2 on with 2 sequences at once, twice accumulated."""
    options = {"train__save_steps": 2, "train__max_steps": 4, "train__per_device_batch_size": 4}
    straight = runs.trainer(kind, tiny_model, tmp_path / "straight", **options)
    straight.train()
    trainer = runs.trainer(kind, tiny_model, tmp_path / "auto", **options, train__auto_batch=True)
    fail_at(trainer, 3, MemoryError(), monkeypatch, size=2)
    trainer.train()
    out = tmp_path / "auto" / "out"
    assert manifest(out)["auto_batch"] == [
        {"step": 3, "per_device_batch_size": [4, 2], "gradient_accumulation_steps": [1, 2], "from_step": 2}
    ]
    (note,) = [n for n in trainer.notes if "memory ran out in step 3" in n]
    assert "goes on with 2" in note
    assert runs.logged(out, "step")[:4] == [1, 2, 3, 4]
    assert runs.logged(out)[:2] == runs.logged(straight.config.output_dir)[:2]
    if kind == "sft":  # sampling draws other numbers for other shapes
        assert runs.logged(out)[:4] == pytest.approx(runs.logged(straight.config.output_dir)[:4], rel=1e-5)


def test_auto_batch_is_refused_where_a_batch_is_looked_at_together(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="KL baseline is taken over the rows of one forward pass"):
        runs.trainer("kto", tiny_model, tmp_path, train__auto_batch=True)
    for kind, algo in (("grpo", {"name": "grpo", "num_generations": 4, "loss_type": "bnpo"}),):
        with pytest.raises(ConfigurationError, match="bnpo averages over the tokens of one forward pass"):
            runs.trainer(kind, tiny_model, tmp_path, train__auto_batch=True, algo=algo)
    with pytest.raises(ConfigurationError, match="'soon' is no duration"):
        runs.trainer("sft", tiny_model, tmp_path, train__time_limit="soon")


def test_a_full_disk_in_a_checkpoint_leaves_the_older_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, of 1.2 MB, which fills up after some checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        options = {"train__save_steps": 1, "train__max_steps": 6, "output_dir": str(disk / "out")}
        trainer = runs.trainer("sft", tiny_model, tmp_path, **options)
        with pytest.raises(ConfigurationError, match="no space left on the disk") as caught:
            trainer.train()
        assert caught.value.exit_code == 2
        found = CheckpointManager(disk / "out").latest()
        assert found is not None
        assert found.step >= 1
        assert fault(Path(found.path)) is None
        assert not (disk / "out" / ".saving").exists()
        assert not (disk / "out" / ".run.lock").exists()
        assert manifest(disk / "out")["status"] in ("failed", "running")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def kill_driver(model: Path, work: Path, *names: str, kills: int, seed: int, timeout: float) -> list[dict[str, Any]]:
    """`tests/kill.py` in a process of its own, which has to fork before it computes anything."""
    command = [sys.executable, str(HERE / "kill.py"), *names, "--kills", str(kills), "--seed", str(seed)]
    ran = subprocess.run(
        [*command, "--model", str(model), "--work", str(work)], capture_output=True, text=True, timeout=timeout
    )
    assert ran.stdout, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def test_killed_runs_go_on_to_the_same_end(tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL, half of them inside checkpoint writing; metrics, weights, optimizer and random states to the bit."""
    for outcome in kill_driver(tiny_model, tmp_path, "sft", "grpo", kills=2, seed=3, timeout=500):
        assert outcome["faults"] == [], outcome
        assert outcome["killed"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in KINDS if name not in ("meta-es", "eval", "rewards-train", "compare")]
)
def test_twenty_kills(name: str, tiny_model: Path, tmp_path: Path) -> None:
    (outcome,) = kill_driver(tiny_model, tmp_path, name, kills=20, seed=1, timeout=3000)
    assert outcome["faults"] == [], outcome
    assert outcome["killed"] == 20
    if name == "dapo":
        assert outcome["witness"]["dynamic_sampling/rounds"] > 0  # prompts were drawn again


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meta-es", "eval", "rewards-train", "compare"])
def test_other_commands_are_killed_and_go_on(name: str, tiny_model: Path, tmp_path: Path) -> None:
    (outcome,) = kill_driver(tiny_model, tmp_path, name, kills=3, seed=1, timeout=3000)
    assert outcome["faults"] == [], outcome
    assert outcome["killed"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_two_processes_are_killed_and_go_on(name: str, tiny_model: Path, tmp_path: Path) -> None:
    (outcome,) = kill_driver(tiny_model, tmp_path, f"two:{name}", kills=2, seed=1, timeout=3000)
    assert outcome["faults"] == [], outcome
    assert outcome["killed"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("error", ["full", "denied"])
@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_disk_that_fails_from_any_write_on(error: str, name: str, tiny_model: Path, tmp_path: Path) -> None:
    """Our message and exit code, older checkpoints whole, and the same end once there is room again."""
    (outcome,) = kill_driver(tiny_model, tmp_path, f"{error}:{name}", kills=15, seed=1, timeout=3000)
    assert outcome["faults"] == [], outcome
    assert outcome["killed"] > 10


@pytest.mark.slow
def test_sigterm_on_the_command_line_exits_130(tiny_model: Path, tmp_path: Path) -> None:
    raw = runs.plain("sft", tiny_model, tmp_path, train__max_steps=20000)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    process = subprocess.Popen(
        [sys.executable, "-m", "aligntune", "train", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = tmp_path / "out" / "metrics.jsonl"
    while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") > 1):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "SIGTERM was received; go on with the same command and --resume" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / ".run.lock").exists()
