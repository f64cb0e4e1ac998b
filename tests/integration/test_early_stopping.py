"""Early stopping: a run ends after its patience, and what it saves are the weights of its best evaluation."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import runs
from aligntune.core import early_stopping
from aligntune.core.config import TrainConfig
from aligntune.core.state import TrainingState
from aligntune.errors import ConfigurationError, TrainingError


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float], name: str = "eval_reward") -> list[float]:
    """Let the evaluations of a run give these values, one after the other; returns those that are left."""
    left = list(values)
    monkeypatch.setattr("aligntune.core.trainer.evaluate_model", lambda trainer, rows: {name: left.pop(0)})
    return left


def watched(kind: str, model: Path, folder: Path, **changes: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    rows = runs.write_rows(folder / "held.jsonl", runs.PAIRS[:2] if kind == "dpo" else runs.SFT_ROWS[:2])
    given = {"evaluation__dataset": {"name": str(rows)}, "evaluation__every": 1, "logging__samples": 0}
    return runs.trainer(kind, model, folder, **given, **changes)


@pytest.mark.parametrize(("kind", "peft"), [("sft", None), ("sft", {"r": 4}), ("dpo", None), ("grpo", {"r": 4})])
def test_it_stops_after_its_patience_and_keeps_the_best_weights(
    kind: str, peft: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = scripted(monkeypatch, [0.5, 0.9, 0.8, 0.9, 0.1])
    common = {"model__peft": peft, "train__max_steps": 8}
    trainer = watched(kind, tiny_model, tmp_path / "a", train__early_stopping_patience=2, **common)
    result = trainer.train()
    out = Path(trainer.config.output_dir)
    assert left == [0.1]  # an equal value is no gain, and the evaluation of the last step is not done twice
    assert result.total_steps == 4 == trainer.state.step
    assert result["eval_reward"] == 0.9 == trainer.state.best_metric
    assert trainer.state.best_step == 2
    assert runs.logged(out, "eval_reward") == [0.5, 0.9, 0.8, 0.9]
    assert not (out / "best").exists()
    assert any("step 2 of 4" in note for note in trainer.notes)
    assert "0.9" in (out / "README.md").read_text()
    whole = runs.trainer(kind, tiny_model, tmp_path / "b", train__save_steps=2, **common)
    scripted(monkeypatch, [0.0])
    whole.train()
    assert runs.same_weights(out, Path(whole.config.output_dir) / "checkpoint-2")


def test_a_run_that_is_best_at_its_end_keeps_its_last_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [3.0, 2.0, 2.5, 1.0], "eval_nll")
    trainer = watched("sft", tiny_model, tmp_path / "a", train__early_stopping_patience=2)
    assert trainer.train()["eval_nll"] == 1.0
    plain = runs.trainer("sft", tiny_model, tmp_path / "b")
    plain.train()
    assert runs.same_weights(trainer.config.output_dir, plain.config.output_dir)


def test_a_resumed_run_counts_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.5, 0.9, 0.8, 0.7, 0.1, 0.1]
    changes = {"train__max_steps": 8, "train__early_stopping_patience": 2, "train__save_steps": 1}
    straight = watched("sft", tiny_model, tmp_path / "a", **changes)
    scripted(monkeypatch, values)
    straight.train()
    stopped = watched("sft", tiny_model, tmp_path / "b", **changes)
    scripted(monkeypatch, values)
    record = stopped.record

    def stop(step: int, logs: Any) -> None:
        record(step, logs)
        if step == 3 and "loss" in logs:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stopped, "record", stop)
    # Step 4 is taken before the stop is seen; its evaluation is the second one without gain.
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = watched("sft", tiny_model, tmp_path / "b", **changes)
    scripted(monkeypatch, [0.2, 0.2])
    result = resumed.train(resume=str(tmp_path / "b" / "out" / "checkpoint-3"))
    assert resumed.state.best_step == 2
    assert result["eval_reward"] == 0.9
    assert result.total_steps == 4
    assert runs.same_weights(straight.config.output_dir, resumed.config.output_dir)


def test_the_count_of_a_run_follows_from_its_metrics(tmp_path: Path) -> None:
    state = TrainingState()
    config = SimpleNamespace(train=TrainConfig(), output_dir=str(tmp_path))
    trainer: Any = SimpleNamespace(state=state, config=config, _directions={}, _run=SimpleNamespace(path=tmp_path))
    rows = [{"step": s, "eval_nll": v} for s, v in ((1, 3.0), (2, float("nan")), (3, 2.0), (4, 2.0))]
    early_stopping.replay(trainer, [*rows, {"step": 5, "loss": 1.0}])
    assert (state.best_metric, state.best_step, state.without_gain, state.evaluated_step) == (2.0, 3, 1, 4)
    assert json.loads(json.dumps(vars(state)))["best_values"] == {"eval_nll": 2.0}


def test_best_weights_that_are_gone_are_an_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.9, 0.1, 0.1])
    trainer = watched("sft", tiny_model, tmp_path, train__early_stopping_patience=2)
    monkeypatch.setattr(early_stopping, "_save", lambda *a: None)
    with pytest.raises(TrainingError, match="best evaluation are gone"):
        trainer.train()


def test_an_evaluation_without_a_value_to_go_by_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.9], "eval_rows")
    trainer = watched("sft", tiny_model, tmp_path, train__early_stopping_patience=2)
    with pytest.raises(ConfigurationError, match="no value to go by"):
        trainer.train()


def test_patience_without_evaluations_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"train.early_stopping_patience: has no effect"):
        runs.trainer("sft", tiny_model, tmp_path, train__early_stopping_patience=2)
    with pytest.raises(ConfigurationError, match=r"train.early_stopping_patience: must be|greater than 0"):
        watched("sft", tiny_model, tmp_path, train__early_stopping_patience=0)
