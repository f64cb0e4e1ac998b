"""SPIN: what is chosen and rejected, the reference of each round, going on after a stop, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core.config import build_config
from aligntune.core.rl import spin
from aligntune.core.saving import find_checkpoint
from aligntune.errors import ConfigurationError, TrainingError, ValidationError


def start(model: Path, folder: Path, **changes: Any) -> Any:
    defaults = {
        "algo": {"name": "spin", "rounds": 3, "beta": 0.5},
        "generation": {"max_completion_length": 8},
        "train__max_steps": 2,
        "train__learning_rate": 1e-2,
    }
    return runs.trainer("spin", model, folder, **{**defaults, **changes})


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def full(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spin-full")
    held = runs.write_rows(folder / "held.jsonl", runs.SFT_ROWS[:4])
    start(tiny_model, folder, evaluation={"dataset": {"name": str(held)}}).train()
    return folder / "out"


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spin-lora")
    start(tiny_model, folder, model__peft={"r": 4}, health__memory=1e-9).train()
    return folder / "out"


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_each_round_begins_at_log_2_and_moves_on(kind: str, request: pytest.FixtureRequest) -> None:
    """The first loss of a round is log 2 only where the reference is the model that the round starts from."""
    out = request.getfixturevalue(kind)
    rows = [r for r in rows_of(out) if "loss" in r]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [r["round"] for r in rows] == [1, 1, 2, 2, 3, 3]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert abs(second["loss"] - math.log(2)) > 1e-4
    name = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    assert (out / "round-1" / name).exists()
    assert (out / "round-2" / name).exists()
    assert (out / name).exists()
    assert not runs.same_weights(out / "round-1", out / "round-2")
    assert not runs.same_weights(out / "round-2", out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["summary"]["total_steps"] == 6
    assert manifest["summary"]["final_loss"] == pytest.approx(sum(r["loss"] for r in rows) / 6, abs=1e-6)


def test_the_rejected_answer_is_the_last_models(full: Path, tiny_model: Path) -> None:
    """Sampled again from each round's starting model with its seed, the answers are those of the pairs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aligntune.eval.generation import generate_texts

    for k, base in ((1, tiny_model), (2, full / "round-1"), (3, full / "round-2")):
        pairs = [json.loads(line) for line in (full / f"round-{k}/pairs.jsonl").read_text().splitlines()]
        model = AutoModelForCausalLM.from_pretrained(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        prompts = [p["prompt"] for p in pairs]
        texts = generate_texts(model, tokenizer, prompts, max_new_tokens=8, temperature=1.0, batch_size=4, seed=3 + k)
        assert [p["rejected"] for p in pairs] == [[{"role": "assistant", "content": t[0]}] for t in texts]
        assert [p["chosen"][0]["content"] for p in pairs] == [r["completion"] for r in runs.SFT_ROWS]
    assert (full / "round-1/pairs.jsonl").read_text() != (full / "round-2/pairs.jsonl").read_text()


def test_it_counts_measures_and_stores(full: Path) -> None:
    from aligntune.utils.rollouts import read_rollouts

    counted = [r for r in rows_of(full) if "pairs/kept" in r]
    assert [(r["step"], r["round"], r["pairs/kept"], r["pairs/equal"]) for r in counted] == [
        (1, 1, 24, 0), (3, 2, 24, 0), (5, 3, 24, 0),
    ]  # fmt: skip
    assert [r["step"] for r in rows_of(full) if "eval_nll" in r] == [2, 4, 6]
    stored = read_rollouts(full).to_pylist()
    assert [r["round"] for r in stored] == [1] * 24 + [2] * 24 + [3] * 24
    assert {r["step"] for r in stored} == {1, 3, 5}
    samples = [json.loads(line) for line in (full / "samples.jsonl").read_text().splitlines()]
    assert sorted({s["step"] for s in samples}) == [2, 4, 6]


def test_the_rounds_are_watched(lora: Path) -> None:
    """Any use of memory is too much here, and is told once."""
    events = [json.loads(line) for line in (lora / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["rule"]) for event in events] == [(1, "memory")]
    notes = json.loads((lora / "manifest.json").read_text())["notes"]
    assert sum("(memory)" in note for note in notes) == 1


def test_the_saved_adapter_is_the_trained_one_over_the_starting_model(lora: Path) -> None:
    names = set(runs.weights(lora))
    assert all(".ref." not in n for n in names)
    assert names == set(runs.weights(lora / "round-1"))


@pytest.mark.parametrize("peft", [None, {"r": 4}])
def test_a_stopped_run_goes_on_to_the_same_weights(
    tiny_model: Path, tmp_path: Path, peft: Any, full: Path, lora: Path
) -> None:
    """Stopped inside round 2: from its checkpoint, and without one from the end of round 1."""
    whole = lora if peft else full
    for name, save_steps in (("inside", 1), ("border", None)):
        trainer = start(tiny_model, tmp_path / name, model__peft=peft, train__save_steps=save_steps)
        real = trainer.record

        def stop(step: int, logs: dict[str, Any], real: Any = real) -> None:
            real(step, logs)
            if step == 4:
                raise KeyboardInterrupt

        trainer.record = stop
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        out = tmp_path / name / "out"
        assert "--resume" in trainer.resume_hint
        found = find_checkpoint(str(out), "latest")
        assert Path(found.path).relative_to(out).as_posix() == ("round-2/checkpoint-1" if save_steps else "round-1")
        assert found.step == (3 if save_steps else 2)
        result = start(tiny_model, tmp_path / name, model__peft=peft, train__save_steps=save_steps).train("latest")
        assert result.total_steps == 6
        assert runs.same_weights(out, whole)
        assert runs.logged(out) == runs.logged(whole)
        assert [r["step"] for r in rows_of(out) if "pairs/kept" in r] == [1, 3, 5]


def test_rows_that_the_model_answers_already_are_left_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.eval import generation

    def answers(share: int) -> Any:
        def made(model: Any, tokenizer: Any, prompts: Any, **k: Any) -> Any:
            own = [r["completion"] for r in runs.SFT_ROWS]
            return [[generation.Answer(own[i] if i < share else "no", 3, i % 2 == 0)] for i in range(len(prompts))]

        return made

    monkeypatch.setattr(generation, "generate_answers", answers(20))
    trainer = start(tiny_model, tmp_path / "a", algo={"name": "spin", "rounds": 1})
    trainer.train()
    counted = next(r for r in rows_of(tmp_path / "a/out") if "pairs/kept" in r)
    assert (counted["pairs/kept"], counted["pairs/equal"], counted["pairs/unfinished"]) == (4, 20, 12)
    assert any("left out 20 of 24 rows" in n for n in trainer.notes)
    monkeypatch.setattr(generation, "generate_answers", answers(24))
    with pytest.raises(ValidationError, match="in round 1 the model gives the data's own answer to all 24 prompts"):
        start(tiny_model, tmp_path / "b").train()


def test_the_sampling_settings_reach_generation(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.eval import generation

    class Seen(Exception):
        pass

    def spy(model: Any, tokenizer: Any, prompts: Any, **given: Any) -> Any:
        raise Seen(given)

    monkeypatch.setattr(generation, "generate_answers", spy)
    asked = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}
    trainer = start(tiny_model, tmp_path, generation={"max_completion_length": 6, **asked})
    with pytest.raises(Seen) as caught:
        trainer.train()
    assert caught.value.args[0] == {**asked, "max_new_tokens": 6, "batch_size": 4, "seed": 4}


def test_min_p_and_the_penalty_change_what_is_sampled(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aligntune.eval.generation import generate_answers

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)

    def text(**more: Any) -> str:
        return generate_answers(model, tokenizer, ["ab"], max_new_tokens=12, temperature=1.0, seed=1, **more)[0][0].text

    flat = text(min_p=0.999)  # only the likeliest token is left
    assert len(set(flat)) == 1
    assert len(set(text(min_p=0.999, repetition_penalty=30.0))) > 1


def test_the_plan_has_a_round_for_each(tiny_model: Path, tmp_path: Path) -> None:
    config = build_config(runs.plain("spin", tiny_model, tmp_path, algo__rounds=2))
    parts = spin.plan(config)
    assert [(p.number, p.folder.name, p.base and p.base.name, p.seed) for p in parts] == [
        (1, "round-1", None, 4), (2, "round-2", "round-1", 5),
    ]  # fmt: skip


def test_a_checkpoint_of_elsewhere_is_refused(tiny_model: Path, tmp_path: Path, full: Path) -> None:
    trainer = start(tiny_model, tmp_path)
    with pytest.raises(TrainingError, match="is no checkpoint of these rounds"):
        trainer.train(resume=str(full / "round-1"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algo__rounds": 0}, "algo.rounds"),
        ({"algo__loss_type": "ipo"}, "loss_type"),
        ({"generation__use_vllm": True}, "generation.use_vllm"),
        ({"generation__max_prompt_length": 9}, "generation.max_prompt_length"),
    ],
)
def test_contradictions_are_refused(tiny_model: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    raw = runs.plain("spin", tiny_model, tmp_path, **changes)
    with pytest.raises(ConfigurationError) as caught:
        build_config(raw)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_training_that_goes_on_with_an_adapter_resumes_from_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    """DPO too keeps a copy of such an adapter beside it, in the checkpoint as in memory."""
    first = runs.trainer("dpo", tiny_model, tmp_path / "first", model__peft={"r": 4}, train__max_steps=2)
    first.train()
    changes = {"model__peft": {"r": 4}, "train__max_steps": 4, "train__save_steps": 2}
    adapter = tmp_path / "first/out"
    runs.trainer("dpo", adapter, tmp_path / "whole", **changes).train()
    stopped = runs.trainer("dpo", adapter, tmp_path / "cut", **changes)
    real = stopped.record

    def stop(step: int, logs: dict[str, Any]) -> None:
        real(step, logs)
        if step == 3:
            raise KeyboardInterrupt

    stopped.record = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert (tmp_path / "cut/out/checkpoint-2/ref").is_dir()
    runs.trainer("dpo", adapter, tmp_path / "cut", **changes).train("latest")
    assert runs.logged(tmp_path / "cut/out") == runs.logged(tmp_path / "whole/out")
    assert runs.same_weights(tmp_path / "cut/out", tmp_path / "whole/out")
