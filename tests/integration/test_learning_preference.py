"""Every preference algorithm raises the held-out preference accuracy of a small real model, for every seed.

The model is the quickstart's base model. Both answers of a pair are right and add the numbers step by step; the chosen
one opens with a word (`so`, `add`, `get`), the rejected one with a sign, which the starting model finds likelier. Train
and held-out problems are disjoint. The accuracy is by each algorithm's own implicit reward; before training it is 0.5, a
coin's, where there is a reference (every reward is 0 then), and that of the likelihood where there is none. With `ALIGNTUNE_RECORD=1` in the environment
the numbers go to `benchmarks/results/learning_preference.json`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import learning
import runs

pytestmark = pytest.mark.slow

RATES = {"dpo": 1e-4, "kto": 1e-4, "orpo": 1e-3, "cpo": 1e-3, "simpo": 5e-4}
"""Algorithm to its learning rate. Without a reference the likelihood itself must turn round, so it takes larger steps."""
WORDS, SIGNS = ("so ", "add ", "get "), ("= ", "- ", "> ", "* ")
BETAS = (1.0, 0.1, 0.01)
SEEDS = (0, 1, 2)
MARGIN = 0.15
"""Least rise of the held-out accuracy, above the larger of a coin's and the one before."""
STEPS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """640 pairs to train on and 100 held-out ones."""
    from aligntune.quickstart.problems import sample, worked

    folder, rng, files = tmp_path_factory.mktemp("pairs"), random.Random(0), {}
    for split, size in (("pairs_train", 640), ("pairs_test", 100)):
        rows = []
        for problem in sample(split, size, seed=0):
            chosen, rejected = worked(problem, rng.choice(WORDS)), worked(problem, rng.choice(SIGNS))
            rows.append({"prompt": problem.question, "chosen": chosen, "rejected": rejected})
        files[split] = runs.write_rows(folder / f"{split}.jsonl", rows)
    return files


@pytest.fixture(scope="module")
def numbers() -> Any:
    """What the tests measure, written down at the end if asked for."""
    yield from learning.recorded("preference", margin=MARGIN, steps=STEPS)


def run_of(name: str, seed: int, data: dict[str, Path], folder: Path, **algo: Any) -> Any:
    """A run that has not begun."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.quickstart import BASE_MODEL

    return create_trainer(
        {
            "algo": {"name": name, **algo},
            "model": {"name_or_path": str(BASE_MODEL), "max_seq_length": 96},
            "datasets": [str(data["pairs_train"])],
            "evaluation": {"dataset": str(data["pairs_test"]), "batch_size": 50},
            "train": {"learning_rate": RATES[name], "per_device_batch_size": 16, "max_steps": STEPS, "seed": seed},
            "logging": {"samples": 0},
            "output_dir": str(folder / "run"),
        }
    )


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_held_out_accuracy_rises(name: str, seed: int, data: dict[str, Path], numbers: Any, tmp_path: Path) -> None:
    run = run_of(name, seed, data, tmp_path)
    before = 0.5 if run.config.algorithm.keeps_reference() else run.evaluate()["eval_rewards/accuracies"]
    run.train()
    after = run.state.metrics["eval_rewards/accuracies"]
    numbers[f"{name}, seed {seed}"] = {"before": round(before, 4), "after": round(after, 4)}
    assert after - max(before, 0.5) >= MARGIN, f"{before:.3f} to {after:.3f}"


def distance(run: Any, data: dict[str, Path]) -> float:
    """KL(policy || start) per token in nats, exact over the vocabulary, on the held-out chosen answers."""
    import torch
    from transformers import AutoModelForCausalLM

    from aligntune.eval.likelihood import encode_row
    from aligntune.quickstart import BASE_MODEL

    start = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
    total, tokens = 0.0, 0
    for line in data["pairs_test"].read_text().splitlines()[:50]:
        row = json.loads(line)
        chat = {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["chosen"]}],
        }
        encoded = encode_row(run.tokenizer, chat)
        ids, counted = torch.tensor([encoded.ids]), torch.tensor(encoded.counted[1:])
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for m in (run.model.eval(), start))
        total += ((p.exp() * (p - q)).sum(-1) * counted).sum().item()
        tokens += int(counted.sum())
    return total / tokens


def test_a_smaller_beta_goes_further_from_the_reference(data: dict[str, Path], numbers: Any, tmp_path: Path) -> None:
    """From the largest to the smallest beta with every seed, and at each step in the mean over seeds.

    Two neighbouring values are not told apart by a single seed: in so few steps the optimizer's own noise is as large.
    """
    table = []
    for seed in SEEDS:
        found = []
        for beta in BETAS:
            run = run_of("dpo", seed, data, tmp_path / f"{seed}-{beta}", beta=beta)
            run.train()
            found.append(distance(run, data))
        numbers[f"dpo, KL by beta, seed {seed}"] = {str(b): round(kl, 5) for b, kl in zip(BETAS, found, strict=True)}
        assert found[0] < found[-1]
        table.append(found)
    means = [sum(column) / len(SEEDS) for column in zip(*table, strict=True)]
    assert means == sorted(means), table
