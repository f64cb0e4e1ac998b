"""Tasks, the best evaluation and answers over time while a run trains; resumed runs repeat and lose none of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core.config.io import build_config
from aligntune.errors import ConfigurationError
from aligntune.eval import EvalResult, EvalRunner
from aligntune.eval.config import build_eval_config
from aligntune.utils.files import read_lines
from aligntune.utils.run_folder import read_manifest

SUMS = [{"prompt": f"Say {i}", "reference": f"It is {i}."} for i in range(6)]


def tasks(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    sums = runs.write_rows(folder / "sums.jsonl", SUMS)
    text = runs.write_rows(folder / "text.jsonl", runs.SFT_ROWS[:4])
    return [
        {"name": "text", "kind": "perplexity", "likelihood_of": "completion", "dataset": str(text), **changes},
        {"name": "sums", "kind": "exact_match", "match": "text", "dataset": str(sums), "max_new_tokens": 4},
    ]


def tasked(kind: str, model: Path, folder: Path, **changes: Any) -> Any:
    given = {"evaluation__tasks": tasks(folder), "evaluation__every": 2}
    return runs.trainer(kind, model, folder, **{**given, **changes})


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_tasks_are_measured_at_the_start_on_the_way_and_at_the_end(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    held = runs.write_rows(tmp_path / "held.jsonl", runs.PAIRS[:5] if kind == "dpo" else runs.SFT_ROWS[:5])
    given = {"evaluation__at_start": True, "evaluation__dataset": {"name": str(held)}, "logging__samples": 0}
    trainer = tasked(kind, tiny_model, tmp_path, **given)
    result = trainer.train()
    out = Path(trainer.config.output_dir)
    stored = read_lines(out / "evaluations.jsonl")
    assert [(r["step"], r["task"]) for r in stored] == [(s, t) for s in (0, 2, 4) for t in (None, "text", "sums")]
    rows = [row for row in stored if row["task"] is not None]
    perplexity = rows[-2]["metrics"]["perplexity"]
    assert perplexity["low"] < perplexity["value"] < perplexity["high"]
    assert runs.logged(out, "eval/text/perplexity") == [r["metrics"]["perplexity"]["value"] for r in rows[::2]]
    assert len(set(runs.logged(out, "eval/text/perplexity"))) == 3  # the model as it is now
    assert result["eval/text/perplexity"] == perplexity["value"]
    assert all(value > 0 for value in runs.logged(out, "eval/seconds"))
    assert any(note.startswith("evaluation.tasks took") for note in trainer.notes)
    last, first = EvalResult.load(out / "evaluation"), EvalResult.load(out / "evaluation" / "before")
    assert last.metric("text").value == perplexity["value"]
    assert first.metric("text").value == rows[0]["metrics"]["perplexity"]["value"]
    assert len(last.tasks["sums"].items) == 6
    # The held-out rows' values and the result's have intervals, except for counts.
    counts = {"eval_rows", "eval_tokens"}
    of_rows = stored[-3]["metrics"]
    assert set(of_rows) - {k for k, m in of_rows.items() if m["low"] is not None} == counts & set(of_rows)
    for name, m in of_rows.items():
        assert m["value"] == result[name]
        assert name in counts or m["low"] <= m["value"] <= m["high"]
    measured = {k for k in result.metrics if k.startswith(("eval_", "eval/"))} - counts - {"eval/seconds"}
    assert set(result.intervals) == measured
    assert result.intervals["eval/text/perplexity"] == [perplexity["low"], perplexity["high"]]
    assert read_manifest(out)["summary"]["intervals"] == result.intervals
    card = (out / "README.md").read_text()
    assert f"| text/perplexity | {perplexity['value']:.4g} | {perplexity['low']:.4g} to" in card
    # `aligntune eval` on the saved model gives the same number.
    again = build_eval_config({"model": {"name_or_path": str(out), "max_seq_length": 64}, "tasks": tasks(tmp_path)})
    assert EvalRunner(again).run().metric("text").value == pytest.approx(perplexity["value"], rel=1e-5)


def test_tasks_change_nothing_in_training(tiny_model: Path, tmp_path: Path) -> None:
    with_tasks = tasked("grpo", tiny_model, tmp_path / "a", evaluation__every=1)
    with_tasks.train()
    plain = runs.trainer("grpo", tiny_model, tmp_path / "b")
    plain.train()
    assert runs.same_weights(with_tasks.config.output_dir, plain.config.output_dir)


def test_a_task_takes_the_runs_settings_where_it_does_not_say(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.eval.in_training import RunTasks

    named = {"name": "own", "kind": "exact_match", "dataset": str(tasks(tmp_path)[1]["dataset"])}
    given = {"evaluation__tasks": [named, {**named, "name": "other", "batch_size": 2, "max_new_tokens": 9}]}
    config = build_config(runs.plain("grpo", tiny_model, tmp_path, **given, evaluation__batch_size=5))
    own, other = RunTasks(config)._runner.config.tasks
    assert (own.batch_size, own.max_new_tokens, own.temperature) == (5, 12, 0.0)  # at most max_completion_length
    assert (other.batch_size, other.max_new_tokens) == (2, 9)
    with pytest.raises(ConfigurationError, match="measured by one process, and this run has 2"):
        RunTasks(config, processes=2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"evaluation__tasks": ["gsm9k"]}, "evaluation.tasks.*gsm9k.*gsm8k"),
        ({"evaluation__tasks": [{"name": "x", "kind": "exact_match"}]}, r"evaluation\.tasks\.0\.dataset: is missing"),
        (
            {"evaluation__tasks": [{"name": "x", "kind": "perplexity", "dataset": "a.jsonl", "max_new_tokens": 3}]},
            r"evaluation\.tasks\.0\.max_new_tokens: has no effect",
        ),
        ({"evaluation__at_start": True}, "evaluation.at_start: has no effect"),
        ({"train__best_mode": "max"}, "train.best_mode: has no effect"),
        ({"train__best_metric": "loss"}, "train.best_metric: has no effect"),
        ({"train__keep_best": "model"}, "train.keep_best: has no effect"),
        ({"logging__samples_at": [0.5]}, "logging.samples_at: has no effect"),
        ({"logging__samples_at": [1.5]}, "samples_at.*less than or equal to 1"),
        ({"logging__samples_at": []}, "samples_at"),
    ],
)
def test_what_would_do_nothing_is_refused(changes: dict[str, Any], told: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        runs.trainer("sft", tiny_model, tmp_path, **changes)
    import re

    assert re.search(told, f"{caught.value.message} {caught.value.hint}", re.DOTALL)


def test_a_classifier_has_no_tasks(tiny_model: Path, tmp_path: Path) -> None:
    raw = runs.plain("sft", tiny_model, tmp_path, evaluation__tasks=["arc"])
    raw["task"] = {"name": "text_classification"}
    with pytest.raises(ConfigurationError, match=r"evaluation\.tasks\.0\.kind: multiple_choice needs another model"):
        build_config(raw)


def test_library_tasks_are_written_out_in_the_resolved_configuration(tiny_model: Path, tmp_path: Path) -> None:
    use = {"use": "svamp", "dataset": str(tmp_path / "svamp.jsonl")}
    config = build_config(runs.plain("sft", tiny_model, tmp_path, evaluation__tasks=[use]))
    (task,) = config.evaluation.tasks
    assert (task["name"], task["kind"]) == ("svamp", "exact_match")
    again = build_config(runs.plain("sft", tiny_model, tmp_path, evaluation__tasks=[task]))
    assert again.evaluation.tasks == [task]


# ---- the best evaluation ---------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float], name: str = "eval_reward") -> None:
    left = list(values)
    monkeypatch.setattr(
        "aligntune.core.trainer.evaluate_model", lambda trainer, rows: {name: left.pop(0), "eval_own": 1.0}
    )


def measured(kind: str, model: Path, folder: Path, **changes: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    rows = runs.write_rows(folder / "held.jsonl", runs.SFT_ROWS[:2])
    given = {"evaluation__dataset": {"name": str(rows)}, "evaluation__every": 1, "logging__samples": 0}
    return runs.trainer(kind, model, folder, **{"train__max_steps": 6, **given, **changes})


def checkpoints(out: Path) -> list[int]:
    return sorted(int(p.name.rpartition("-")[2]) for p in out.glob("checkpoint-*"))


def test_the_best_checkpoint_survives_rotation_and_is_recorded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.1, 0.5, 0.9, 0.2, 0.3, 0.4])
    changes = {"train__keep_best": "checkpoint", "train__save_steps": 2, "train__save_total_limit": 1}
    trainer = measured("grpo", tiny_model, tmp_path, **changes)
    result = trainer.train()
    out = Path(trainer.config.output_dir)
    assert checkpoints(out) == [3, 6]
    assert result.best == read_manifest(out)["best"]
    expected = {
        "metric": "eval_reward",
        "mode": "max",
        "value": 0.9,
        "step": 3,
        "checkpoint": str(out / "checkpoint-3"),
    }
    assert result.best == {**expected, "model": None}
    assert not runs.same_weights(out, out / "checkpoint-3")  # the last weights are the model's


def test_a_resumed_run_leaves_the_best_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes one before its first evaluation, and knows the best from those before."""
    changes = {"train__keep_best": "checkpoint", "train__save_steps": 2, "train__save_total_limit": 1}
    scripted(monkeypatch, [0.9, 0.2])
    trainer = measured("sft", tiny_model, tmp_path, evaluation__every=3, **changes)
    result = trainer.train()
    out = Path(trainer.config.output_dir)
    assert checkpoints(out) == [3, 6]
    (out / "checkpoint-6").rename(tmp_path / "gone")
    (out / "manifest.json").write_text(json.dumps({**(read_manifest(out) or {}), "status": "interrupted"}))
    (out / "model.safetensors").unlink()
    scripted(monkeypatch, [0.2])
    resumed = measured("sft", tiny_model, tmp_path, evaluation__every=3, **changes)
    assert resumed.train(resume="latest").best == result.best
    assert checkpoints(out) == [3, 6]
    assert runs.same_weights(out, tmp_path / "gone")


def test_the_model_can_end_with_its_best_weights_by_any_metric(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.1, 0.5, 0.9, 0.2, 0.3, 0.4], "eval_mine")
    changes = {"train__best_metric": "eval_mine", "train__best_mode": "min", "train__save_steps": 1}
    trainer = measured("sft", tiny_model, tmp_path, train__keep_best="model", **changes)
    result = trainer.train()
    out = Path(trainer.config.output_dir)
    assert (result.best["step"], result.best["value"], result.best["model"]) == (1, 0.1, str(out.absolute()))
    assert result["eval_mine"] == 0.1
    assert runs.same_weights(out, out / "checkpoint-1")
    assert result.total_steps == 6


def test_a_training_value_can_decide_if_it_is_asked_for_by_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.9] * 6)
    trainer = measured("sft", tiny_model, tmp_path, train__best_metric="loss")
    trainer.train()
    losses = runs.logged(trainer.config.output_dir, "loss")
    # At an evaluation the newest logged loss is that of the step before.
    assert trainer.state.best_metric == min(losses[:-1] if len(losses) > 6 else losses)
    assert trainer.state.best_mode == "min"


def test_an_unknown_metric_is_refused_at_the_first_evaluation(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.9] * 6)
    trainer = measured("sft", tiny_model, tmp_path / "a", train__best_metric="eval_rewad")
    with pytest.raises(ConfigurationError, match="no value 'eval_rewad'") as caught:
        trainer.train()
    assert "eval_own, eval_reward" in str(caught.value.hint)
    scripted(monkeypatch, [0.9] * 6)
    trainer = measured("sft", tiny_model, tmp_path / "b", train__best_metric="eval_own")
    with pytest.raises(ConfigurationError, match="nobody can tell"):
        trainer.train()


def test_early_stopping_goes_by_a_task_and_keeps_its_items(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"train__early_stopping_patience": 1, "train__best_metric": "eval/text/nll", "train__learning_rate": 0.5}
    trainer = tasked("sft", tiny_model, tmp_path, evaluation__every=1, evaluation__at_start=True, **changes)
    result = trainer.train()
    out = Path(trainer.config.output_dir)
    values = runs.logged(out, "eval/text/nll")
    assert trainer.state.best_mode == "min"
    assert result.best["value"] == min(values) == EvalResult.load(out / "evaluation").metric("text", "nll").value
    assert result.best["step"] == values.index(min(values)) < result.total_steps


# ---- answers over time and resuming ----------------------------------------------------------------------------


def test_answers_are_taken_at_shares_of_training(tiny_model: Path, tmp_path: Path) -> None:
    changes = {"logging__samples_at": [1.0, 0, 0.5, 0.51], "logging__sample_prompts": ["Say 1", "Say 2"]}
    trainer = runs.trainer("sft", tiny_model, tmp_path, evaluation__max_new_tokens=3, **changes)
    trainer.train()
    rows = read_lines(Path(trainer.config.output_dir) / "samples.jsonl")
    assert [(row["step"], row["share"], row["prompt"]) for row in rows] == [
        (step, share, f"Say {i}") for step, share in ((0, 0.0), (2, 0.51), (4, 1.0)) for i in (1, 2)
    ]


def test_prompts_without_evaluations_are_answered_three_times(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer("sft", tiny_model, tmp_path, logging__sample_prompts=["x"], evaluation__max_new_tokens=2)
    trainer.train()
    assert [row["step"] for row in read_lines(Path(trainer.config.output_dir) / "samples.jsonl")] == [0, 2, 4]


def without_time(path: Path) -> list[dict[str, Any]]:
    times = ("time", "seconds", "eval/seconds", "step_time")
    return [{k: v for k, v in row.items() if k not in times} for row in read_lines(path)]


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_repeats_and_loses_nothing(
    stop: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "logging__samples_at": [0, 0.5, 1], "logging__sample_prompts": ["Say 1"], "evaluation__max_new_tokens": 3,
        "evaluation__at_start": True, "train__save_steps": 1, "train__keep_best": "model",
        "train__best_metric": "eval/text/perplexity",
    }  # fmt: skip
    straight = tasked("sft", tiny_model, tmp_path / "a", **changes)
    whole = straight.train()
    stopped = tasked("sft", tiny_model, tmp_path / "b", **changes)
    record = stopped.record

    def interrupt(step: int, logs: Any) -> None:
        record(step, logs)
        if step == stop and "loss" in logs:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(stopped, "record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = tasked("sft", tiny_model, tmp_path / "b", **changes)
    result = resumed.train(resume="latest")
    a, b = Path(straight.config.output_dir), Path(resumed.config.output_dir)
    for name in ("samples.jsonl", "evaluations.jsonl"):
        assert without_time(a / name) == without_time(b / name), name
    assert runs.same_weights(a, b)
    assert (result.best["step"], result.best["value"]) == (whole.best["step"], whole.best["value"])
    texts = [json.loads((p / "evaluation" / "results.json").read_text())["tasks"]["text"]["metrics"] for p in (a, b)]
    assert texts[0] == texts[1]
