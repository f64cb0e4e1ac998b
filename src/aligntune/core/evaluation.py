"""What `evaluate()` measures for each kind of data, on rows that were prepared exactly as in training.

| rows | values |
|---|---|
| text, messages, prompt/completion | `eval_nll` (per token, token-weighted), `eval_perplexity`, `eval_tokens` |
| preference pairs, labels | `eval_rewards/accuracies`, `eval_rewards/margins` ... (`core.preference`) |
| prompts | `eval_reward`, `eval_rewards/<name>`, `eval_completions/mean_length` |

The measures themselves live in `aligntune.eval`; this is the choice among them. Every value that is estimated from
the rows has a 95% interval (`core.held_out`), by the methods of docs/evaluation.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.core.held_out import HeldOut, Values
from aligntune.core.preference import evaluate_pairs
from aligntune.errors import ValidationError
from aligntune.eval.estimates import mapped_exp, ratio_of
from aligntune.eval.stats import Interval
from aligntune.registry import import_attribute

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


def evaluate_model(trainer: Trainer, prepared: Any) -> HeldOut:
    """Measure the trainer's model on prepared rows; every key starts with `eval_`."""
    schema, own = trainer.config.algorithm.data, trainer.config.algorithm.evaluator
    if own:
        measure = import_attribute(own)
    else:
        measure = {Schema.PREFERENCE: evaluate_pairs, Schema.PROMPT: _reward}.get(schema, likelihood)
    return HeldOut.of(measure(trainer, prepared.dataset), "eval_")


def likelihood(trainer: Trainer, rows: Any) -> Values:
    """Nats per token, perplexity, and the counts, of rows with answers or texts.

    Raises:
        ValidationError: no token counts.
    """
    from aligntune.eval.likelihood import completion_nll

    # Rows that come as tokens say themselves, by their labels, what counts.
    whole = getattr(trainer.config.algorithm, "train_on", "all") == "all" and "input_ids" not in rows.column_names
    scored = completion_nll(
        trainer.model,
        trainer.tokenizer,
        list(rows),
        trainer.config.evaluation.batch_size,
        mask="all" if whole else "answers",
        max_length=trainer.config.model.max_seq_length,
    )
    tokens = sum(n for _, n in scored)
    if not tokens:
        raise ValidationError(
            "the held-out rows have no token to measure", hint="raise model.max_seq_length, or check the data's answers"
        )
    nll = ratio_of([s for s, _ in scored], [float(n) for _, n in scored])
    return {"nll": nll, "perplexity": mapped_exp(nll), "tokens": float(tokens), "rows": float(len(scored))}


def _reward(trainer: Trainer, rows: Any) -> Values:
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
    told = {"tokens": "completions/mean_length", "finished": "completions/terminated"}  # TRL's names
    values: dict[str, float | Interval] = {}
    for name, m in evaluator.run("reward", rows, settings).metrics.items():
        if m.value is not None:
            values[told.get(name, name)] = Interval(m.value, m.low, m.high, m.n, m.method, m.confidence)
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
