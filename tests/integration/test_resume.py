"""Stopping a run and going on: the weights are those of the run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs
from conftest import Ran

KINDS = ["sft", "dpo", "grpo"]
STEPS = 6


def stopping_at(trainer: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGINT when the run logs `step`."""
    record = trainer.record

    def stop(at: int, logs: Any) -> None:
        record(at, logs)
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "record", stop)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_weights(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = runs.trainer(kind, tiny_model, tmp_path / "straight", train__max_steps=STEPS)
    expected = straight.train()
    stopped = runs.trainer(kind, tiny_model, tmp_path / "stopped", train__max_steps=STEPS)
    stopping_at(stopped, 2, monkeypatch)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stopping" in capsys.readouterr().err
    folder = Path(stopped.config.output_dir)
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted" == stopped.state.status
    # The log comes after the step's end, so the stop is seen at the end of the next step.
    assert stopped.state.checkpoint_path == str(folder / "checkpoint-3")
    assert "--resume" in stopped.resume_hint
    assert not list(folder.glob("*.safetensors"))

    resumed = runs.trainer(kind, tiny_model, tmp_path / "stopped", train__max_steps=STEPS)
    result = resumed.train(resume="latest")
    assert not any("other settings" in note for note in resumed.notes)
    assert runs.same_weights(folder, straight.config.output_dir)
    assert runs.logged(folder) == runs.logged(straight.config.output_dir)
    assert runs.logged(folder, "step")[:STEPS] == list(range(1, STEPS + 1))
    assert result.total_steps == STEPS
    assert result.final_loss == expected.final_loss
    assert expected.total_steps == STEPS
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert [a["status"] for a in manifest["attempts"]] == ["interrupted"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", {}),
        ("grpo", {"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 2}),
        ("grpo", {"entropy_coef": 0.1, "use_adaptive_entropy": True, "entropy_target": 5.0}),
        ("dapo", {"mask_truncated_completions": False}),
        ("rloo", {}),
        ("reinforce_pp", {}),
    ],
)
def test_policy_optimisation_resumes_in_a_later_epoch(
    name: str, options: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    """Three prompts are one epoch, so step 4 stands in the second; every epoch has an order of its own."""
    changes = {
        "algo": {"name": name, "num_generations": 4, **options},
        "datasets__0__max_samples": 3,
        "train__max_steps": 8,
        "train__save_steps": 4,
    }
    straight = runs.trainer("grpo", tiny_model, tmp_path / "straight", **changes)
    straight.train()
    folder = Path(straight.config.output_dir)
    resumed = runs.trainer("grpo", tiny_model, tmp_path / "resumed", **changes)
    resumed.train(resume=str(folder / "checkpoint-4"))
    assert runs.same_weights(folder, resumed.config.output_dir)
    for metric in ("loss", "reward", "entropy", "kl"):
        assert runs.logged(resumed.config.output_dir, metric) == runs.logged(folder, metric)[4:], metric
    assert runs.logged(folder, "reward") != [0.0] * 8


def test_an_adapter_beside_its_reference_is_taken_back(tiny_model: Path, tmp_path: Path) -> None:
    """With a KL term the checkpoint holds the reference as a second adapter, in a folder of its own."""
    changes = {"model__peft": {"r": 4}, "algo__beta": 0.5, "train__max_steps": 4, "train__save_steps": 2}
    straight = runs.trainer("grpo", tiny_model, tmp_path / "straight", **changes)
    straight.train()
    folder = Path(straight.config.output_dir)
    assert (folder / "checkpoint-2" / "ref").is_dir()
    resumed = runs.trainer("grpo", tiny_model, tmp_path / "resumed", **changes)
    resumed.train(resume=str(folder / "checkpoint-2"))
    assert runs.same_weights(folder, resumed.config.output_dir)
    for metric in ("loss", "kl", "entropy"):
        assert runs.logged(resumed.config.output_dir, metric) == runs.logged(folder, metric)[2:], metric
    assert all(value != 0 for value in runs.logged(folder, "kl")[1:])


def test_settings_that_a_resume_changes_are_named(tiny_model: Path, tmp_path: Path) -> None:
    runs.trainer("dpo", tiny_model, tmp_path, train__max_steps=2, train__save_steps=1).train()
    (tmp_path / "out" / "model.safetensors").unlink()  # as if it had been stopped
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "interrupted"}))
    again = runs.trainer("dpo", tiny_model, tmp_path, train__max_steps=3, train__save_steps=1, algo__beta=0.3)
    again.train(resume="latest")
    (note,) = [n for n in again.notes if "other settings" in n]
    assert note == "resumed with other settings than before: train.max_steps 2 -> 3; algo.beta 0.1 -> 0.3"


def test_rollouts_of_a_resumed_run_stand_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run dies after it has sampled for a step that it never took."""
    from aligntune.core import trainer as core
    from aligntune.utils.rollouts import read_rollouts

    trainer = runs.trainer("grpo", tiny_model, tmp_path, train__max_steps=4, train__save_steps=2)
    record = core.record_rollouts

    def die(run: Any, step: int, *args: Any) -> None:
        record(run, step, *args)
        if step == 3:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(core, "record_rollouts", die)
        with pytest.raises(RuntimeError, match="power cut"):
            trainer.train()
    runs.trainer("grpo", tiny_model, tmp_path, train__max_steps=4, train__save_steps=2).train(resume="latest")
    steps = read_rollouts(tmp_path / "out").column("step").to_pylist()
    assert steps == [s for s in (1, 2, 3, 4) for _ in range(4)]
    assert runs.logged(tmp_path / "out", "step")[:4] == [1, 2, 3, 4]


def test_a_stop_waits_for_the_edge_of_a_generation_window(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates per generation: after step 3 the completions in memory would be lost, after step 4 there are none."""
    trainer = runs.trainer("grpo", tiny_model, tmp_path, algo__num_iterations=2, train__max_steps=8)
    stopping_at(trainer, 2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.checkpoint_path.endswith("checkpoint-4")


def test_a_checkpoint_is_found_by_its_step_and_only_if_it_is_whole(tmp_path: Path) -> None:
    from aligntune.core.saving import find_checkpoint
    from aligntune.errors import ConfigurationError
    from aligntune.utils.checkpoints import seal

    for name, step in (("checkpoint-9", 9), ("checkpoint-10", 10), ("checkpoint-11", None), ("mine", 7)):
        (tmp_path / name).mkdir()
        if step is not None:
            (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": step}))
            seal(tmp_path / name, step)
    (tmp_path / "checkpoint-11" / "trainer_state.json").write_text('{"global_st')
    found = find_checkpoint(str(tmp_path), "latest")
    assert found.step == 10
    assert found.skipped == (
        f"{tmp_path}/checkpoint-11 is skipped: it was not written to its end (checkpoint.json is missing)",
    )
    assert find_checkpoint(str(tmp_path), str(tmp_path / "mine")).step == 7
    (tmp_path / "mine" / "checkpoint.json").unlink()
    with pytest.raises(ConfigurationError, match="mine is no checkpoint to resume from: it was not written to its end"):
        find_checkpoint(str(tmp_path), str(tmp_path / "mine"))
    with pytest.raises(ConfigurationError, match="checkpoint-11 is no checkpoint to resume from"):
        find_checkpoint(str(tmp_path), str(tmp_path / "checkpoint-11"))
    with pytest.raises(ConfigurationError, match="no checkpoint to resume from") as caught:
        find_checkpoint(str(tmp_path / "none"), "latest")
    assert "save_steps" in caught.value.hint


def test_a_checkpoint_of_more_processes_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.errors import TrainingError
    from aligntune.utils.checkpoints import seal

    first = runs.trainer("sft", tiny_model, tmp_path, train__max_steps=2, train__save_steps=1)
    first.train()
    checkpoint = Path(first.config.output_dir) / "checkpoint-1"
    (checkpoint / "window-1.json").write_text((checkpoint / "window-0.json").read_text())
    seal(checkpoint, 1)
    again = runs.trainer("sft", tiny_model, tmp_path / "again", train__max_steps=2, train__save_steps=1)
    with pytest.raises(TrainingError, match="written by 2 processes, and this run has 1"):
        again.train(resume=str(checkpoint))


def test_save_steps_and_their_limit(tiny_model: Path, tmp_path: Path) -> None:
    runs.trainer("sft", tiny_model, tmp_path, train__save_steps=1, train__save_total_limit=2).train()
    assert sorted(p.name for p in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_load_checkpoint_makes_the_next_train_go_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runs.trainer("sft", tiny_model, tmp_path)
    stopping_at(first, 1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = runs.trainer("sft", tiny_model, tmp_path)
    again.load_checkpoint(first.state.checkpoint_path)
    assert again.train().total_steps == 4
    assert any("resuming from" in note and "step 2" in note for note in again.notes)


def run_cli(*arguments: str, signal_when: Path | None = None) -> Ran:
    """The command line in a process of its own; SIGINT as soon as the file `signal_when` has two lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aligntune", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    sent = False
    while process.poll() is None:
        lines = signal_when.read_text().count("\n") if signal_when is not None and signal_when.exists() else 0
        if lines >= 2 and not sent:
            process.send_signal(signal.SIGINT)
            sent = True
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    out, err = process.communicate()
    return Ran(process.returncode, out, err)


def test_ctrl_c_on_the_command_line_exits_130_and_says_how_to_go_on(tiny_model: Path, tmp_path: Path) -> None:
    raw = runs.plain("sft", tiny_model, tmp_path, train__max_steps=20000)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    stopped = run_cli("train", str(file), signal_when=tmp_path / "out" / "metrics.jsonl")
    assert stopped.code == 130, stopped.err
    assert "--resume" in stopped.err
    assert "Traceback" not in stopped.err
    at = max(int(p.name.split("-")[1]) for p in (tmp_path / "out").glob("checkpoint-*"))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "interrupted"

    again = run_cli("train", str(file), "--resume", f"train.max_steps={at + 2}", "--json")
    assert again.code == 0, again.err
    assert again.json["total_steps"] == at + 2
    assert runs.logged(tmp_path / "out", "loss").__len__() == at + 2
