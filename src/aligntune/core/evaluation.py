"""What `evaluate()` measures for each kind of data, on rows that were prepared exactly as in training.

| rows | values |
|---|---|
| text, messages, prompt/completion | `eval_nll` (per token, token-weighted), `eval_perplexity`, `eval_tokens` |
| preference pairs | `eval_rewards/accuracies`, `eval_rewards/margins`; `eval_loss` where the sigmoid loss is trained |
| prompts | `eval_reward`, `eval_rewards/<name>`, `eval_completions/mean_length` |

The measures themselves live in `aligntune.eval`; this is the choice among them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.errors import ValidationError
from aligntune.registry import import_attribute

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

PRIMARY = (
    ("eval_f1_macro", True),
    ("eval_f1", True),
    ("eval_rewards/accuracies", True),
    ("eval_reward", True),
    ("eval_nll", False),
)
"""The value that decides which evaluation was the best, and whether larger is better."""


def improves(values: dict[str, float], best: float | None) -> float | None:
    """The primary value if it beats `best`, else None."""
    for name, larger in PRIMARY:
        if name in values:
            value = values[name]
            if not math.isfinite(value):
                return None
            beats = best is None or (value > best if larger else value < best)
            return value if beats else None
    return None


def evaluate_model(trainer: Trainer, prepared: Any) -> dict[str, float]:
    """Measure the trainer's model on prepared rows; every key starts with `eval_`."""
    schema, own = trainer.config.algorithm.data, trainer.config.algorithm.evaluator
    measure = import_attribute(own) if own else {Schema.PREFERENCE: _preference, Schema.PROMPT: _reward}.get(schema)
    if measure is None:
        measure = _likelihood
    return {f"eval_{name}": value for name, value in measure(trainer, prepared.dataset).items()}


def _likelihood(trainer: Trainer, rows: Any) -> dict[str, float]:
    from aligntune.eval.likelihood import completion_nll

    scored = completion_nll(
        trainer.model,
        trainer.tokenizer,
        list(rows),
        trainer.config.evaluation.batch_size,
        mask="all" if getattr(trainer.config.algorithm, "train_on", "all") == "all" else "answers",
        max_length=trainer.config.model.max_seq_length,
    )
    tokens = sum(n for _, n in scored)
    if not tokens:
        raise ValidationError(
            "the held-out rows have no token to measure", hint="raise model.max_seq_length, or check the data's answers"
        )
    nll = sum(s for s, _ in scored) / tokens
    return {"nll": nll, "perplexity": math.exp(min(nll, 700.0)), "tokens": float(tokens), "rows": float(len(scored))}


def _preference(trainer: Trainer, rows: Any) -> dict[str, float]:
    pairs = list(rows)
    policy = _pair_logps(trainer, trainer.model, pairs)
    with reference_of(trainer) as reference:
        base = _pair_logps(trainer, reference, pairs)
    beta = float(getattr(trainer.config.algorithm, "beta", 1.0))
    margins = [beta * ((pc - pr) - (bc - br)) for (pc, pr), (bc, br) in zip(policy, base, strict=True)]
    n = len(margins)
    values = {}
    if getattr(trainer.config.algorithm, "loss_type", "sigmoid") == "sigmoid":  # else it is not the loss trained on
        values["loss"] = sum(math.log1p(math.exp(-abs(m))) + max(-m, 0.0) for m in margins) / n
    return {
        **values,
        "rewards/accuracies": sum(m > 0 for m in margins) / n,
        "rewards/margins": sum(margins) / n,
        "rows": float(n),
    }


def _pair_logps(trainer: Trainer, model: Any, pairs: list[Any]) -> list[tuple[float, float]]:
    """Summed log-probabilities of (chosen, rejected) for each pair."""
    from aligntune.eval.likelihood import sequence_logprobs

    both = [(p["prompt"], p[side]) for p in pairs for side in ("chosen", "rejected")]
    settings = trainer.config.evaluation.batch_size
    scores = sequence_logprobs(model, trainer.tokenizer, both, settings, max_length=trainer.config.model.max_seq_length)
    return [(scores[i][0], scores[i + 1][0]) for i in range(0, len(scores), 2)]


@contextmanager
def reference_of(trainer: Trainer) -> Iterator[Any]:
    """The reference model: the trainer's own, the model with its adapter off, or the starting weights loaded again."""
    kept = getattr(trainer._hf, "ref_model", None)
    model = trainer.model
    if kept is not None:
        yield kept
    elif hasattr(model, "disable_adapter"):
        if "ref" in model.peft_config:
            active = model.active_adapter
            model.set_adapter("ref")
            try:
                yield model
            finally:
                model.set_adapter(active)
        else:
            with model.disable_adapter():
                yield model
    else:
        yield trainer.backend.load_model(trainer.starting_config).model.to(model.device).eval()


def _reward(trainer: Trainer, rows: Any) -> dict[str, float]:
    from aligntune.eval import BaseEvaluator, EvalSettings

    e, seed = trainer.config.evaluation, trainer.config.train.seed
    most = trainer.config.generation.max_completion_length  # type: ignore[attr-defined]
    settings = EvalSettings(
        max_new_tokens=min(most, e.max_new_tokens),
        temperature=e.temperature,
        batch_size=e.batch_size,
        num_samples=getattr(trainer.config.algorithm, "num_generations_eval", 1),
    )
    evaluator = BaseEvaluator(trainer.model, trainer.tokenizer, seed=seed, rewards=trainer.rewards)
    values = evaluator.evaluate(rows, "reward", settings)
    values["completions/mean_length"] = values.pop("tokens")  # TRL's name for it
    values["completions/terminated"] = values.pop("finished")
    return {**values, "rows": float(len(rows))}


def sample_answers(trainer: Trainer, prepared: Any, count: int) -> list[dict[str, Any]]:
    """Answers to the first `count` held-out prompts, for `samples.jsonl`; rows without a prompt give none."""
    rows = prepared.dataset.select(range(min(count, len(prepared.dataset))))
    if trainer.config.algorithm.data is Schema.MESSAGES:
        prompts = [row["messages"][:-1] for row in rows if len(row["messages"]) > 1]
    elif "prompt" in rows.column_names:
        prompts = list(rows["prompt"])
    else:
        return []
    answers = trainer.generate(prompts) if prompts else []
    return [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
