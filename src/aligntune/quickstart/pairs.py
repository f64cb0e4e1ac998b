"""Preference pairs for the quickstart: sample answers from a model, rank them with the reward, keep clear differences.

For each prompt, k answers are sampled at temperature 1; `chosen` is one with the full reward, `rejected` one that the
first reward (right or wrong) gave 0 and that is not empty. A prompt whose answers are all right or all wrong gives no
pair; no prompt gives more than one. `aligntune data pairs` is the general tool: it ranks by any scores, where this
knows what a right answer scores.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntune.core.config import RewardConfig
from aligntune.errors import TrainingError


def sample_pairs(
    model: Any,
    tokenizer: Any,
    prompts: Path,
    out: Path,
    rewards: Sequence[RewardConfig],
    *,
    samples: int = 4,
    max_new_tokens: int = 30,
    batch_size: int = 64,
    seed: int = 0,
) -> int:
    """Write pairs as jsonl (`prompt`, `chosen`, `rejected`, and the rewards of both); returns how many there are.

    Args:
        model: the model to sample from.
        tokenizer: its tokenizer, with a chat template.
        prompts: jsonl with `prompt` (messages) and the columns that the rewards need.
        out: the file to write.
        rewards: what ranks; the first decides right (at its maximum) and wrong (0).
        samples: answers per prompt.
        max_new_tokens: most new tokens per answer.
        batch_size: prompts per batch.
        seed: of the sampling and of the choice among equal answers.

    Raises:
        TrainingError: no prompt gave a pair.
    """
    from aligntune.data.pairs.ranking import score_answers
    from aligntune.eval.generation import generate_texts
    from aligntune.rewards import build_rewards

    composite = build_rewards(list(rewards))
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    answers = generate_texts(
        model,
        tokenizer,
        [row["prompt"] for row in rows],
        max_new_tokens=max_new_tokens,
        temperature=1.0,
        batch_size=batch_size,
        num_samples=samples,
        seed=seed,
    )
    scores = score_answers(composite, rows, answers)
    texts = [text for texts in answers for text in texts]
    first = composite.components[0]
    full = sum(c.weight * c.bounds[1] for c in composite.components)
    right = first.bounds[1]
    rng = random.Random(seed)
    pairs = []
    for i, row in enumerate(rows):
        group = range(i * samples, (i + 1) * samples)
        good = [j for j in group if scores.components[first.name][j] == right and _near(scores.total[j], full)]
        bad = [j for j in group if scores.components[first.name][j] == 0 and texts[j].strip()]
        if good and bad:
            pairs.append(_pair(row["prompt"], rng.choice(good), rng.choice(bad), texts, scores.total))
    if not pairs:
        raise TrainingError("no prompt has both a right and a wrong answer", hint="sample more answers per prompt")
    out.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return len(pairs)


def _near(value: float | None, target: float) -> bool:
    return value is not None and abs(value - target) < 1e-9


def _pair(prompt: Any, good: int, bad: int, texts: list[str], totals: list[Any]) -> dict[str, Any]:
    def turn(j: int) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": texts[j]}]

    return {
        "prompt": prompt,
        "chosen": turn(good),
        "rejected": turn(bad),
        "chosen_reward": totals[good],
        "rejected_reward": totals[bad],
    }
