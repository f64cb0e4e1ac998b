"""Online DPO, SPIN and distillation learn, on a small real model, for every seed.

The start is the quickstart's: its base model, briefly taught to answer sums in a mixture of two ways. Online DPO: the
mean reward of what is sampled rises, from the first eighth of the steps to the last. SPIN: the implicit reward
log pi - log pi_start prefers held-out answers that are worked out to those that the starting model samples (a coin
before training, as every reward is 0 then). Distillation: the base model comes closer to the taught one, by the
divergence on held-out answers. With `ALIGNTUNE_RECORD=1` in the environment the numbers go to
`benchmarks/results/learning_online.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import learning
import runs

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
REWARD_RISE = 0.1
"""Least rise of the mean reward (at most 1.1) under online DPO."""
PREFERENCE_RISE = 0.15
"""Least rise of the held-out preference accuracy under SPIN, from 0.5."""
DIVERGENCE_FALL = 0.3
"""Least share of the divergence from the teacher that distillation takes away."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The taught model and its prompts; sums worked out, 100 of them held out."""
    from aligntune.quickstart.problems import sample, worked

    folder = tmp_path_factory.mktemp("start")
    found = learning.taught_start(folder)
    for name, split, size in (("worked", "rl", 320), ("held_out", "test", 100)):
        rows = [{"prompt": p.question, "completion": worked(p)} for p in sample(split, size, seed=0)]
        found[name] = runs.write_rows(folder / f"{name}.jsonl", rows)
    return found


@pytest.fixture(scope="module")
def numbers() -> Any:
    """What the tests measure, written down at the end if asked for."""
    yield from learning.recorded(
        "online", margins={"online_dpo": REWARD_RISE, "spin": PREFERENCE_RISE, "gkd": DIVERGENCE_FALL}
    )


def started(algo: dict[str, Any], model: Any, rows: Path, folder: Path, **sections: Any) -> Any:
    """A run on `rows`."""
    from aligntune.core.backend_factory import create_trainer

    return create_trainer(
        {
            "algo": algo,
            "model": {"name_or_path": str(model), "max_seq_length": 64},
            "datasets": [str(rows)],
            "logging": {"steps": 1},
            "output_dir": str(folder / "run"),
            **sections,
        }
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_online_dpo_raises_the_reward(seed: int, start: dict[str, Path], numbers: Any, tmp_path: Path) -> None:
    run = started(
        {"name": "online_dpo"},
        start["model"],
        start["prompts"],
        tmp_path,
        rewards=[{"type": "math_correctness"}, {"type": "answer_format", "weight": 0.1}],
        generation={"max_prompt_length": 34, "max_completion_length": 30},
        train={"learning_rate": 3e-4, "per_device_batch_size": 64, "max_steps": 40, "seed": seed},
    )
    result = run.train()
    rewards = runs.logged(run.config.output_dir, "reward")
    before, after = learning.mean(rewards[:5]), learning.mean(rewards[-5:])
    numbers[f"online_dpo, seed {seed}"] = {
        "reward before": round(before, 4),
        "after": round(after, 4),
        "seconds": round(result.training_time, 1),
    }
    assert after - before >= REWARD_RISE, f"{before:.3f} to {after:.3f}"


def preference(run: Any, base: Path, rows: list[dict[str, Any]]) -> float:
    """Share of prompts whose own answer has the larger implicit reward of the two; ties count half."""
    from transformers import AutoModelForCausalLM

    from aligntune.eval.generation import generate_texts
    from aligntune.eval.likelihood import sequence_logprobs

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    prompts = [[{"role": "user", "content": r["prompt"]}] for r in rows]
    sampled = generate_texts(model, run.tokenizer, prompts, max_new_tokens=30, temperature=1.0, batch_size=50, seed=7)
    own, rewards = [r["completion"] for r in rows], []
    differs = [i for i, s in enumerate(sampled) if s[0] != own[i]]
    for answers in (own, [s[0] for s in sampled]):
        pairs = [(prompts[i], [{"role": "assistant", "content": answers[i]}]) for i in differs]
        now, then = (sequence_logprobs(m, run.tokenizer, pairs, 50) for m in (run.model, model))
        rewards.append([a[0] - b[0] for a, b in zip(now, then, strict=True)])
    return learning.mean([(a > b) + 0.5 * (a == b) for a, b in zip(*rewards, strict=True)])


@pytest.mark.parametrize("seed", SEEDS)
def test_spin_prefers_the_datas_answers(seed: int, start: dict[str, Path], numbers: Any, tmp_path: Path) -> None:
    run = started(
        {"name": "spin", "rounds": 2},
        start["model"],
        start["worked"],
        tmp_path,
        generation={"max_completion_length": 30},
        train={"learning_rate": 1e-4, "per_device_batch_size": 16, "max_steps": 15, "seed": seed},
    )
    result = run.train()
    rows = [json.loads(line) for line in start["held_out"].read_text().splitlines()]
    after = preference(run, start["model"], rows)
    seconds = round(result.training_time, 1)
    numbers[f"spin, seed {seed}"] = {"preference before": 0.5, "after": round(after, 4), "seconds": seconds}
    assert after - 0.5 >= PREFERENCE_RISE, f"0.5 to {after:.3f}"


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_distillation_comes_closer_to_the_teacher(
    seed: int, lmbda: float, start: dict[str, Path], numbers: Any, tmp_path: Path
) -> None:
    """Offline, and wholly on policy; there the answers that it learns from are not those that it is measured on, so it
    takes twice the steps."""
    from aligntune.quickstart import BASE_MODEL

    run = started(
        {"name": "gkd", "teacher": str(start["model"]), "lmbda": lmbda},
        BASE_MODEL,
        start["worked"],
        tmp_path,
        train={"learning_rate": 1e-3, "per_device_batch_size": 16, "max_steps": 80 if lmbda else 40, "seed": seed},
        **({"generation": {"max_completion_length": 30}} if lmbda else {}),
    )
    before = run.evaluate(start["held_out"])["eval_divergence"]
    result = run.train()
    after = run.evaluate(start["held_out"])["eval_divergence"]
    numbers[f"gkd, lmbda {lmbda:g}, seed {seed}"] = {
        "divergence before": round(before, 5),
        "after": round(after, 5),
        "seconds": round(result.training_time, 1),
    }
    assert after <= (1 - DIVERGENCE_FALL) * before, f"{before:.4f} to {after:.4f}"
