"""From rules to a policy: rules label real stories, a reward model learns them, and GRPO and PPO follow the model.

The measure that must rise is read by nothing in between: VADER's sentiment of the samples. `benchmarks/reward_model.py` is
the same with three seeds, and writes its numbers to `benchmarks/results/reward_model.json`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import helpers
import runs

pytestmark = pytest.mark.slow

MARGIN = 0.1
"""Least rise of the independent measure, from the first five steps to the last five."""


def test_rules_to_reward_model_to_policy(
    shared: Path, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    benchmark = importlib.import_module("reward_model")
    monkeypatch.setattr(benchmark, "store", lambda name, values: None)
    found = benchmark.rules(tmp_path, seeds=(0,))
    values = found["validation"]["values"]
    assert values["pair_accuracy"]["low"] > 0.6
    assert values["over_length"]["low"] > 0
    for name in ("grpo", "ppo"):
        measured = found[name]["0"]
        assert measured["reward_model"]["after"] > measured["reward_model"]["before"]
        assert measured["sentiment"]["after"] - measured["sentiment"]["before"] > MARGIN, (name, measured)


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
def test_trl_takes_it_as_a_reward_function_and_as_a_module(algorithm: str, tiny_model: Path, tmp_path: Path) -> None:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aligntune.rewards.training import TRLCompatibleRewardModel

    model = TRLCompatibleRewardModel(str(helpers.save_tiny_reward_model(tmp_path / "rm")))
    seen: list[Any] = []
    call = type(model).__call__

    class Seen(TRLCompatibleRewardModel):
        def __call__(self, *args: Any, **columns: Any) -> list[float]:
            seen.append(call(self, *args, **columns))
            return seen[-1]  # type: ignore[no-any-return]

    args = getattr(trl, f"{algorithm}Config")(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=2,
        bf16=False,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
    )
    trainer = getattr(trl, f"{algorithm}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        reward_funcs=[Seen(str(tmp_path / "rm")), model.module],
        reward_processing_classes=[None, model.processing_class],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": f"Say {i}"}]} for i in range(4)]),
    )
    trainer.train()
    assert len(seen) == 2
    logged = [row for row in trainer.state.log_history if "rewards/reward_model/mean" in row]
    assert [row["rewards/reward_model/mean"] for row in logged] == pytest.approx([sum(s) / 4 for s in seen], abs=1e-5)
    other = next(k for k in logged[0] if k.startswith("rewards/") and k.endswith("/mean") and "reward_model" not in k)
    assert [row[other] for row in logged] == pytest.approx([sum(s) / 4 for s in seen], abs=1e-4)  # the same model


def test_a_trained_one_drives_online_dpo(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.core.backend_factory import create_trainer

    folder = helpers.save_tiny_reward_model(tmp_path / "rm")
    plain = runs.plain("grpo", tiny_model, tmp_path, train__max_steps=2)
    plain |= {"algo": {"name": "online_dpo"}, "rewards": [{"type": "reward_model", "params": {"path": str(folder)}}]}
    plain["train"]["per_device_batch_size"] = 4
    create_trainer(plain).train()
    assert len(runs.logged(tmp_path / "out")) == 2
