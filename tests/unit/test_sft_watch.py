"""Losses, gradients and weights that are no numbers stop a run in time, and the counts that it reports are true."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core.watch import refuse_broken_weights
from aligntune.errors import TrainingError

KINDS = ["sft", "dpo", "grpo"]
TIMES = ("time", "step_time")


def breaking(trainer: Any, monkeypatch: pytest.MonkeyPatch, at: int, change: Any) -> None:
    """Let the library's loss go through `change(loss, model)` from optimizer step `at` on."""
    build = trainer._build

    def built(*args: Any) -> Any:
        hf = build(*args)
        compute = hf.compute_loss

        def compute_loss(model: Any, inputs: Any, *a: Any, **k: Any) -> Any:
            loss = compute(model, inputs, *a, **k)
            return change(loss, model) if hf.state.global_step + 1 >= at else loss

        hf.compute_loss = compute_loss
        return hf

    monkeypatch.setattr(trainer, "_build", built)


# ---- numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    kind: str, value: float, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train__save_steps": 1, "logging__steps": 10, "train__save_total_limit": 1}
    straight = runs.trainer(kind, tiny_model, tmp_path / "a", train__max_steps=2, train__lr_scheduler="constant")
    straight.train()
    trainer = runs.trainer(kind, tiny_model, tmp_path / "b", train__lr_scheduler="constant", **changes)
    breaking(trainer, monkeypatch, 3, lambda loss, model: loss * value)
    with pytest.raises(TrainingError, match=r"the loss of step 3 is not a finite number .*last finite loss") as caught:
        trainer.train()
    step, last = caught.value.context["last_finite"]
    logged = runs.logged(straight.config.output_dir)
    assert step == 2
    assert last == pytest.approx(logged[1], abs=1e-5)
    out = Path(trainer.config.output_dir)
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-2"]
    assert str(out / "checkpoint-2") in caught.value.hint
    assert runs.same_weights(out / "checkpoint-2", straight.config.output_dir)
    assert not list(out.glob("*.safetensors"))
    seen = runs.logged(out)[-1]
    assert seen == ("NaN" if math.isnan(value) else "Infinity") or kind == "grpo"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "step 3" in manifest["error"]["message"]


def test_a_bad_gradient_of_a_good_loss_stops_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sqrt(0) has the value 0 and an infinite gradient."""
    trainer = runs.trainer("sft", tiny_model, tmp_path, train__save_steps=1)
    breaking(trainer, monkeypatch, 3, lambda loss, model: loss + ((loss - loss.detach()) ** 2 * 0).sqrt())
    before = runs.weights(tiny_model)
    with pytest.raises(TrainingError, match="the gradient's norm of step 3 is not a finite number"):
        trainer.train()
    assert runs.logged(trainer.config.output_dir, "grad_norm")[-1] == "NaN"
    found = dict(trainer.model.named_parameters())
    import torch

    assert all(bool(torch.isfinite(found[name]).all()) for name in before)
    assert (tmp_path / "out" / "checkpoint-2").exists()


def test_a_bad_micro_batch_of_an_accumulated_step_stops_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def second(loss: Any, model: Any) -> Any:
        calls.append(1)
        return loss * (math.nan if len(calls) == 2 else 1.0)

    trainer = runs.trainer("sft", tiny_model, tmp_path, train__gradient_accumulation_steps=3)
    breaking(trainer, monkeypatch, 2, second)
    with pytest.raises(TrainingError, match="the loss of step 2"):
        trainer.train()
    assert len(calls) == 2


def test_broken_weights_are_not_written(tiny_model: Path, tmp_path: Path) -> None:
    """The loss of the only step is finite; the update is not."""
    trainer = runs.trainer("sft", tiny_model, tmp_path, train__learning_rate=1e39, train__save_steps=1)
    with pytest.raises(TrainingError, match=r"after step 1 the weight .* holds a number that is not finite") as caught:
        trainer.train()
    assert "learning_rate" in caught.value.hint
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    unsaved = runs.trainer("sft", tiny_model, tmp_path / "u", train__learning_rate=1e39, train__max_steps=1)
    with pytest.raises(TrainingError, match="after step 1 the weight"):
        unsaved.train()
    assert not list((tmp_path / "u" / "out").glob("*.safetensors"))


def test_only_trained_weights_are_looked_at(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    model = runs.trainer("sft", tiny_model, tmp_path, model__peft={"r": 2}).model
    refuse_broken_weights(model, 1)
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad).view(-1)[0] = math.nan
        refuse_broken_weights(model, 1)
        next(p for p in model.parameters() if p.requires_grad).view(-1)[0] = math.inf
    with pytest.raises(TrainingError, match=r"the weight .*lora_A"):
        refuse_broken_weights(model, 7)


# ---- counts -------------------------------------------------------------------------------------------------------------


def lengths(trainer: Any, rows: list[dict[str, str]], answers: tuple[str, ...]) -> list[int]:
    """Tokens of each row, counted by the tokenizer alone."""
    found = []
    for row in rows:
        for answer in answers:
            talk = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[answer]}]
            text = trainer.tokenizer.apply_chat_template(talk, tokenize=False)
            found.append(len(trainer.tokenizer(text, add_special_tokens=False)["input_ids"]))
    return found


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("sft", {}),
        ("sft", {"task__loss": "dft"}),
        ("sft", {"task__padding_free": True}),
        ("sft", {"task__packing": True}),
        ("dpo", {}),
    ],
)
def test_tokens_steps_and_epochs_are_those_counted_by_hand(
    kind: str, changes: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    common = {"train__num_epochs": 2, "logging__steps": 4, "train__per_device_batch_size": 5}
    if "task__packing" in changes:
        common["model__max_seq_length"] = 128
    trainer = runs.trainer(kind, tiny_model, tmp_path, train__gradient_accumulation_steps=2, **common, **changes)
    result = trainer.train()
    rows, answers = (runs.SFT_ROWS, ("completion",)) if kind == "sft" else (runs.PAIRS, ("chosen", "rejected"))
    tokens = sum(lengths(trainer, rows, answers))
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["training_data"]
    assert counts["rows"] == len(rows)
    packed = "task__packing" in changes
    assert (counts["sequences"] < len(rows)) == packed
    batches = math.ceil(counts["sequences"] / 5)
    steps = 2 * math.ceil(batches / 2)
    assert result.total_steps == steps == trainer.state.step
    assert trainer.state.epoch == 2.0
    assert result["num_tokens"] == 2 * tokens
    assert runs.logged(tmp_path / "out", "num_tokens")[-1] == 2 * tokens
    assert runs.logged(tmp_path / "out", "step")[-1] == steps  # the last steps are logged, whatever logging.steps is
    per_epoch = [min((i + 1) * 2, batches) / batches for i in range(steps // 2)]
    epochs = [round(e, 6) for e in (*per_epoch, *(1 + e for e in per_epoch))]
    logged = dict(zip(runs.logged(tmp_path / "out", "step"), runs.logged(tmp_path / "out", "epoch"), strict=True))
    assert all(logged[step] == epochs[step - 1] for step in logged)
    if packed:
        assert any("24 rows are packed into" in note for note in trainer.notes)


def test_tokens_of_grpo_are_prompts_and_completions(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("grpo", tiny_model, tmp_path, train__max_steps=3)
    result = trainer.train()
    from aligntune.utils.rollouts import read_rollouts

    prompts = [
        len(
            trainer.tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True
            )["input_ids"]
        )
        for row in read_rollouts(tmp_path / "out").to_pylist()
    ]
    assert len(prompts) == 3 * 4
    completions = sum(4 * mean for mean in runs.logged(tmp_path / "out", "completions/mean_length"))
    assert result["num_tokens"] == pytest.approx(sum(prompts) + completions)


def test_rows_that_are_left_out_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    rows = [*runs.SFT_ROWS[:10], {"prompt": "x" * 200, "completion": "y"}, {"prompt": "no answer", "completion": ""}]
    data = str(runs.write_rows(tmp_path / "rows.jsonl", rows))
    trainer = runs.trainer("sft", tiny_model, tmp_path, dataset={"name": data}, train__max_steps=1)
    trainer.train()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    notes = " ".join(manifest["datasets"][0]["notes"])
    used = manifest["datasets"][0]["rows"]
    assert manifest["training_data"] == {"rows": used, "sequences": used}
    assert "Left out 1 of" in notes
    assert used == len(trainer._hf.train_dataset) == 10


def interrupted(trainer: Any, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGINT when the optimizer has taken `step`."""

    def build(*args: Any, real: Any = trainer._build) -> Any:
        hf = real(*args)
        train = hf.training_step

        def training_step(*a: Any, **k: Any) -> Any:
            if hf.state.global_step + 1 == step:
                os.kill(os.getpid(), signal.SIGINT)
            return train(*a, **k)

        hf.training_step = training_step
        return hf

    monkeypatch.setattr(trainer, "_build", build)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 4])
def test_a_resumed_run_logs_what_the_straight_one_does(
    kind: str, every: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logged value: the token count goes on, and so does the window that one line averages."""
    changes = {"train__max_steps": 6, "logging__steps": every, "train__save_steps": 3}
    straight = runs.trainer(kind, tiny_model, tmp_path / "straight", **changes)
    straight.train()
    stopped = runs.trainer(kind, tiny_model, tmp_path / "stopped", **changes)
    interrupted(stopped, 3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = runs.trainer(kind, tiny_model, tmp_path / "stopped", **changes)
    result = resumed.train(resume="latest")

    def lines(trainer: Any) -> list[dict[str, Any]]:
        text = (Path(trainer.config.output_dir) / "metrics.jsonl").read_text()
        return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()]

    assert lines(resumed) == lines(straight)
    counts = runs.logged(resumed.config.output_dir, "num_tokens")
    assert counts == sorted(counts)
    assert result["num_tokens"] == counts[-1] == straight.state.metrics["num_tokens"]
    assert [row["step"] for row in lines(resumed)] == ([1, 2, 3, 4, 5, 6] if every == 1 else [1, 4, 6])
