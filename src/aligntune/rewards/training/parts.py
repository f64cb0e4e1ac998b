"""Rows, loss and held-out measures of a reward model's training; what the objectives name lazily.

An answer is tokenized by `RewardModelReward`, exactly as it is when the trained model scores: a conversation by the
chat template, plain prompt and answer together where there is none, cut at the same length. TRL gets token ids, so that
it adds nothing and leaves nothing out.

>>> bradley_terry_loss([1.0], [0.0], margins=[0.5], centering=0.01)
0.4840769841801067

Held out: `rewards/accuracies` (a tie counts one half), `rewards/margins` and `loss`; for distillation `mse` (of
standardised scores) and `spearman` in place of the loss. Intervals take prompts as independent, not answers; the loss,
which adds a term over the whole part, has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from aligntune.core.held_out import Values
from aligntune.data.messages import plain_completion, plain_prompt
from aligntune.errors import TrainingError
from aligntune.eval.estimates import ratio_of
from aligntune.eval.stats import Interval
from aligntune.rewards.builtin.reward_model import RewardModelReward
from aligntune.rewards.training.dataset import Message, RewardModelDataset, prompt_key


def written(prompt: Sequence[Message], text: str, tokenizer: Any) -> tuple[Any, str]:
    """Prompt and answer as a reward model with this tokenizer reads them: messages, or plain text without a
    template."""
    messages = list(prompt)
    if getattr(tokenizer, "chat_template", None):
        return messages, text
    return plain_prompt(messages), plain_completion(messages, [{"role": "assistant", "content": text}])


class Encoder:
    """Answers to token ids, cut at a limit and counted.

    Args:
        tokenizer: the reward model's.
        limit: most tokens of prompt and answer.

    Attributes:
        cut: how many answers were cut.
        longest: tokens of the longest one.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.cut = self.longest = 0
        self._reward = RewardModelReward("in memory")

    def __call__(self, prompt: Sequence[Message], text: str) -> list[int]:
        ids = self._reward._ids(self.tokenizer, *written(prompt, text, self.tokenizer), None)
        self.longest = max(self.longest, len(ids))
        self.cut += len(ids) > self.limit
        return ids[: self.limit]


def encode_pairs(data: RewardModelDataset, encoder: Encoder, *, margin_unit: float | None) -> Any:
    """TRL's columns `chosen_ids` and `rejected_ids`, and `margin` in units of `margin_unit` where that is given."""
    from datasets import Dataset

    columns: dict[str, list[Any]] = {
        "chosen_ids": [encoder(p.prompt, p.chosen) for p in data.pairs],
        "rejected_ids": [encoder(p.prompt, p.rejected) for p in data.pairs],
    }
    if margin_unit is not None:
        columns["margin"] = [(p.margin or 0.0) / margin_unit for p in data.pairs]
    return Dataset.from_dict(columns)


def encode_scores(data: RewardModelDataset, encoder: Encoder, mean: float, std: float) -> Any:
    """Columns `input_ids` and `labels`, the standardised score."""
    from datasets import Dataset

    ids = [encoder(t.prompt, t.text) for t in data.texts]
    return Dataset.from_dict({"input_ids": ids, "labels": [(t.score - mean) / std for t in data.texts]})


# ---- losses ----------------------------------------------------------------------------------------------------


def bradley_terry_loss(
    chosen: Sequence[float],
    rejected: Sequence[float],
    *,
    margins: Sequence[float] | None = None,
    centering: float = 0.0,
) -> float:
    """The objective's loss for the scores of B pairs (`objectives`), for held-out rows."""
    gaps = [c - r - (margins[i] if margins else 0.0) for i, (c, r) in enumerate(zip(chosen, rejected, strict=True))]
    total = math.fsum(math.log1p(math.exp(-abs(g))) + max(-g, 0.0) for g in gaps)
    centre = math.fsum((c + r) ** 2 for c, r in zip(chosen, rejected, strict=True))
    return (total + centering * centre) / len(gaps)


class ScoreLoss:
    """Squared error of the logit, summed and divided by the number of answers of the optimizer step.

    Attributes:
        calls: how often it was called.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """The loss of a micro-batch.

        Args:
            outputs: with `logits`, (B, 1).
            labels: (B,), standardised scores.
            num_items_in_batch: answers of the whole optimizer step; None takes those of `labels`.
        """
        self.calls += 1
        total = (outputs.logits[:, 0].float() - labels.float()).pow(2).sum()
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class ScoreCollator:
    """Rows to a batch, filled up on the right with `pad_id`."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """input_ids and attention_mask (B, T); labels (B,)."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": torch.tensor([r["input_ids"] + [self.pad_id] * (longest - len(r["input_ids"])) for r in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
            ),
            "labels": torch.tensor([float(r["labels"]) for r in rows]),
        }


def regression_kwargs(trainer: Any) -> dict[str, Any]:
    """Collator and loss of distillation."""
    return {"data_collator": ScoreCollator(trainer.tokenizer.pad_token_id), "compute_loss_func": ScoreLoss()}


def attach(hf: Any, trainer: Any) -> None:
    """The check that the loss of ours is the one that is trained."""
    loss: Any = getattr(hf, "compute_loss_func", None)
    if loss is None:
        return
    from transformers import TrainerCallback

    class Check(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if loss.calls == 0:
                raise TrainingError(
                    "the training library did not call the loss of distillation",
                    hint="this training library ignores it; install the versions of constraints.txt",
                )

    hf.add_callback(Check())


# ---- held-out measures -----------------------------------------------------------------------------------------


@contextmanager
def scoring(model: Any, tokenizer: Any, *, limit: int, batch_size: int) -> Any:
    """A `RewardModelReward` on a model in memory, in evaluation mode inside the block."""
    from aligntune.eval.generation import evaluating

    reward = RewardModelReward("in memory", batch_size=batch_size)
    reward._loaded = (model, tokenizer, limit)
    with evaluating(model):
        yield reward


def score_answers(reward: RewardModelReward, items: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
    """One logit for each (prompt, answer)."""
    _, tokenizer, _ = reward._load()
    rows = [written(prompt, text, tokenizer) for prompt, text in items]
    return reward.logits([text for _, text in rows], [prompt for prompt, _ in rows])


def evaluate(trainer: Any, data: RewardModelDataset) -> Values:
    """The measures of held-out pairs and scores, of a `RewardModelTrainer`."""
    from aligntune.rewards.training.measures import correlation_interval, proportion

    params = trainer.config.objective
    values: dict[str, float | Interval] = {}
    batch = trainer.config.evaluation.batch_size
    with scoring(trainer.model, trainer.tokenizer, limit=trainer.limit, batch_size=batch) as reward:
        pairs = score_answers(reward, [(p.prompt, t) for p in data.pairs for t in (p.chosen, p.rejected)])
        texts = score_answers(reward, [(t.prompt, t.text) for t in data.texts]) if params.key == "distillation" else []
    if pairs:
        good, bad = pairs[::2], pairs[1::2]
        wins = [0.5 if a == b else float(a > b) for a, b in zip(good, bad, strict=True)]
        prompts = [prompt_key(p.prompt) for p in data.pairs]  # pairs of one prompt are not independent
        values = {
            "rewards/accuracies": proportion(wins, prompts),
            "rewards/margins": _by_prompt([a - b for a, b in zip(good, bad, strict=True)], prompts),
            "pairs": float(len(wins)),
        }
    if params.key == "bradley_terry" and pairs:
        unit = trainer.margin_unit
        margins = None if unit is None else [(p.margin or 0.0) / unit for p in data.pairs]
        values["loss"] = bradley_terry_loss(
            good, bad, margins=margins, centering=params.center_rewards_coefficient or 0.0
        )
    if texts:
        mean, std = trainer.standard
        gold = [(t.score - mean) / std for t in data.texts]
        asked = [prompt_key(t.prompt) for t in data.texts]
        values["mse"] = _by_prompt([(a - b) ** 2 for a, b in zip(texts, gold, strict=True)], asked)
        rank = correlation_interval(texts, gold, asked, kind="spearman")
        values |= {"texts": float(len(texts)), **({} if rank is None else {"spearman": rank})}
    return values


def _by_prompt(values: Sequence[float], prompts: Sequence[str]) -> Interval:
    """The mean with an interval that takes each prompt as one draw."""
    from aligntune.rewards.training.measures import grouped

    sums = grouped(values, prompts).values()
    return ratio_of([total for _, total in sums], [float(n) for n, _ in sums])
