"""Rewards without a model: register one, compose several, score texts.

    python examples/rewards.py

A reward is a function of the text and of the row's columns that it names. Weights, thresholds and normalisation belong
to the composition, so the same reward serves every run.
"""

from __future__ import annotations

from aligntune.rewards import BatchScores, RewardConfig, build_rewards, register_custom_reward, reward


@reward("no_apology", range=(0, 1))
def no_apology(text: str) -> float:
    """1 unless the text apologises."""
    return float("sorry" not in text.lower())


def mentions(text: str, keyword: str) -> float:
    """1 if the text holds the row's keyword."""
    return float(keyword.lower() in text.lower())


def main() -> BatchScores:
    """Score three answers to one question; return the scores."""
    register_custom_reward("mentions", mentions, range=(0, 1), replace=True)
    composite = build_rewards(
        [
            RewardConfig(type="length", weight=0.3, params={"min_length": 3, "max_length": 12}),
            RewardConfig(type="no_apology", weight=0.3),
            RewardConfig(type="mentions", weight=0.4),
        ]
    )
    answers = ["Paris is the capital of France.", "Sorry, I do not know.", "Paris."]
    scores = composite.score_batch(answers, {"keyword": ["Paris"] * len(answers)})
    print("  ".join(["total", *scores.components]))
    for i, answer in enumerate(answers):
        parts = [scores.total[i], *(values[i] for values in scores.components.values())]
        print("  ".join(f"{part:.2f}" for part in parts if part is not None), answer)
    return scores


if __name__ == "__main__":
    main()
