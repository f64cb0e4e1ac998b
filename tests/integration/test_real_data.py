"""The main job on real data, from YAML alone: Alpaca and GSM8K (SFT), HH-RLHF (DPO), GSM8K questions (GRPO).

The model has 260,000 parameters and has only read children's stories, so what can be asked is that the loss falls and the
reward rises by a stated margin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runs

SFT = """
task: instruction_following
model: {{name_or_path: {model}, max_seq_length: 256}}
dataset: {{name: "{data}/{train}#300", preset: {preset}}}
evaluation: {{dataset: {{name: {data}/{test}, preset: {preset}, max_samples: 24}}, max_new_tokens: 8}}
train: {{max_steps: 20, per_device_batch_size: 8, learning_rate: 2.0e-3}}
logging: {{steps: 1}}
output_dir: {out}
"""
DPO = """
algo: dpo
model: {{name_or_path: {model}, max_seq_length: 256}}
datasets: [{{name: {data}/hh_rlhf/harmless-base-test.jsonl, split: "train[:200]", preset: hh_rlhf}}]
evaluation:
  dataset: {{name: {data}/hh_rlhf/harmless-base-test.jsonl, split: "train[:200]", preset: hh_rlhf, max_samples: 40}}
  max_new_tokens: 8
train: {{max_steps: 30, per_device_batch_size: 4, learning_rate: 5.0e-4}}
logging: {{steps: 1}}
output_dir: {out}
"""
GRPO = """
algo: {{name: grpo, num_generations: 8, beta: 0.0}}
model: {{name_or_path: {model}, max_seq_length: 384}}
datasets: [{{name: "{data}/gsm8k/train.jsonl#100", preset: gsm8k}}]
evaluation: {{dataset: {{name: {data}/gsm8k/test.jsonl, preset: gsm8k, max_samples: 8}}, max_new_tokens: 16}}
rewards:
  - {{type: length, params: {{unit: words, target_length: 4}}}}
  - {{type: regex, name: ends, weight: 0.5, params: {{pattern: "[.!?]$"}}}}
generation: {{max_completion_length: 16, max_prompt_length: 200}}
train: {{max_steps: 25, per_device_batch_size: 16, learning_rate: 2.0e-3}}
logging: {{steps: 1}}
output_dir: {out}
"""


def run(text: str, shared: Path, model: Path, folder: Path, **values: Any) -> tuple[Any, dict[str, float], Any]:
    """Write the YAML, evaluate the starting model, train; returns (trainer, before, result)."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.config import load_config

    file = folder / "run.yaml"
    file.write_text(text.format(model=model, data=shared / "data", out=folder / "out", **values))
    trainer = create_trainer(load_config(file))
    before = trainer.evaluate()
    return trainer, before, trainer.train()


@pytest.mark.parametrize(
    ("train", "test", "preset", "fall"),
    [
        ("alpaca/alpaca_en_demo.json", "alpaca/alpaca_tiny.json", "alpaca", 0.5),
        ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "gsm8k", 2.0),
    ],
)
def test_sft_lowers_the_held_out_loss(
    train: str, test: str, preset: str, fall: float, shared: Path, stories260k: Path, tmp_path: Path
) -> None:
    trainer, before, result = run(SFT, shared, stories260k, tmp_path, train=train, test=test, preset=preset)
    assert result.metrics["eval_nll"] < before["eval_nll"] - fall
    losses = runs.logged(tmp_path / "out")
    assert sum(losses[-5:]) < sum(losses[:5]) - 2.5 * min(fall, 1)
    # The model has no chat template and no padding token, and rows are cut: each is told.
    told = " ".join(trainer.notes)
    assert "no chat template" in told
    assert "no padding token" in told
    assert "are cut there" in told
    samples = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 4
    assert all(json.loads(s)["answer"] is not None for s in samples)


def test_dpo_learns_the_pairs(shared: Path, stories260k: Path, tmp_path: Path) -> None:
    """Measured on pairs that it was trained on: 30 steps of a story model say nothing about unseen ones."""
    _, before, result = run(DPO, shared, stories260k, tmp_path)
    assert before["eval_rewards/margins"] == 0.0
    assert result.metrics["eval_rewards/margins"] > 0.5
    assert result.metrics["eval_rewards/accuracies"] >= 0.65
    assert result.metrics["eval_loss"] < before["eval_loss"]


def test_grpo_raises_the_reward_on_gsm8k_questions(shared: Path, stories260k: Path, tmp_path: Path) -> None:
    from aligntune.utils.rollouts import read_rollouts

    _, before, result = run(GRPO, shared, stories260k, tmp_path)
    rewards = runs.logged(tmp_path / "out", "reward")
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    assert result.metrics["eval_reward"] > before["eval_reward"] + 0.1
    rollouts = read_rollouts(tmp_path / "out").to_pydict()
    assert len(rollouts["completion"]) == 25 * 16
    expected = [a + 0.5 * b for a, b in zip(rollouts["reward/length"], rollouts["reward/ends"], strict=True)]
    assert rollouts["reward"] == pytest.approx(expected)
