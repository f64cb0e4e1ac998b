"""What a kind of evaluation is: the rows it reads, the items it makes from them with a model, and its metrics.

    class Shouting(EvalKind):
        schema = Schema.PROMPT
        options = frozenset({"max_new_tokens"})

        def items(self, rows, ids, settings, subject):
            return answers(rows, ids, settings, subject)

        def metrics(self, settings, items):
            return [ShoutingMetric()]

An item is one answer, text or pair with everything that its scores need; items are what is stored and paired when two
models are compared, so each carries the `id` of its row.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from aligntune.algorithms.base import Head, Schema
from aligntune.errors import ValidationError
from aligntune.eval.generation import generate_answers
from aligntune.eval.metrics.base import Metric
from aligntune.eval.prompts import Shots, ask

if TYPE_CHECKING:
    from aligntune.core.config.sections import ModelConfig, RewardConfig
    from aligntune.eval.config import EvalSettings, EvalTask

Row = dict[str, Any]


@dataclass(frozen=True)
class Opponent:
    """The other side of a win rate.

    Attributes:
        name: folder or hub id.
        answers: question to the answer that an earlier evaluation stored; None where a model writes them.
        model: a causal language model.
        tokenizer: its tokenizer.
    """

    name: str
    answers: Mapping[str, str] | None = None
    model: Any = None
    tokenizer: Any = None


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and what it is evaluated with.

    Attributes:
        model: a causal language model, or a classifier, by the kind's `head`; None for a kind that needs none.
        tokenizer: its tokenizer.
        seed: of sampling.
        rewards: a `CompositeReward`, for kinds that score answers.
        reference: the model that implicit rewards and KL are measured against; it shares the tokenizer.
        shots: solved rows to show before each question.
        judge: a `Judge`, for kinds that ask one.
        opponent: whose answers the model's are compared with; None takes the rows' references.
    """

    model: Any
    tokenizer: Any
    seed: int = 42
    rewards: Any = None
    reference: Any = None
    shots: Shots | None = None
    judge: Any = None
    opponent: Opponent | None = None

    def examples(self, item_id: str) -> list[Mapping[str, Any]]:
        """The examples that are shown before this question."""
        return [] if self.shots is None else self.shots.of(item_id)


class EvalKind(ABC):
    """Base of all kinds.

    Attributes:
        schema: the canonical rows that it reads.
        options: names of the `EvalTask` fields that it reads beside the common ones.
        head: what the model ends in; None for a kind that needs no model.
    """

    schema: ClassVar[Schema] = Schema.PROMPT
    options: ClassVar[frozenset[str]] = frozenset()
    head: ClassVar[Head | None] = "causal_lm"

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """What is missing or contradictory in a task's settings, as (key, sentence)."""
        return []

    @classmethod
    def asks_judge(cls, task: EvalTask) -> bool:
        """Whether the kind itself (not one of its rewards) asks the file's judge."""
        return False

    @classmethod
    def rewards_for(cls, task: EvalTask, model: ModelConfig) -> list[RewardConfig]:
        """The rewards that score; those of the task."""
        return task.rewards

    def schema_for(self, settings: EvalSettings) -> Schema:
        """The schema under these settings."""
        return self.schema

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Refuse rows that lack what the kind needs, before a model is loaded.

        Raises:
            ValidationError: there are no rows, or a column is missing.
        """
        if not rows:
            raise ValidationError("there are no rows to evaluate", hint="give at least one row")

    def check_settings(self, rows: Sequence[Row], settings: EvalSettings) -> None:
        """Refuse rows that do not fit these settings, before a model is loaded.

        Raises:
            ValidationError: names the row, or the column that is missing.
        """
        return None

    @abstractmethod
    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """The items of the rows; each has `id`, and `sample` where a row gives several."""

    @abstractmethod
    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """The metrics; the first is the task's headline."""

    def details(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]], subject: Subject) -> dict[str, Any]:
        """What the result says beside its metrics, as plain values (`TaskResult.details`)."""
        return {}


ASKING = frozenset({"chat_template", "few_shot"})
"""Fields that every kind which asks the model a question reads."""

GENERATION = ASKING | {"max_new_tokens", "temperature", "top_p", "num_samples", "stop", "truncate_prompts"}
"""Fields that every kind with generated answers reads."""


def generation_faults(task: EvalTask) -> list[tuple[str, str]]:
    """Contradictions among the settings of generation."""
    if task.num_samples > 1 and task.temperature == 0:
        return [
            ("num_samples", f"is {task.num_samples} with temperature 0, which gives equal answers; set temperature")
        ]
    if task.top_p < 1 and task.temperature == 0:
        return [("top_p", "has no effect with temperature 0; set temperature, or remove it")]
    return []


def pass_k_faults(task: EvalTask) -> list[tuple[str, str]]:
    """k samples are needed for pass@k."""
    if not task.pass_k:
        return [("pass_k", "is empty: name at least one k")]
    k = max(task.pass_k)
    if k > task.num_samples:
        return [("num_samples", f"is {task.num_samples}: pass@{k} takes at least {k} answers to a prompt")]
    return []


def need_reference(rows: Sequence[Row], kind: str) -> None:
    """Refuse rows of which none has a reference.

    Raises:
        ValidationError: names the columns that there are.
    """
    if not any(row.get("reference") is not None for row in rows):
        columns = sorted({name for row in rows for name in row})
        raise ValidationError(
            f"{kind} needs a reference answer; the columns are {', '.join(columns)}",
            hint="map it, as column_mapping: {reference: your_column}",
        )


def answers(rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject) -> list[dict[str, Any]]:
    """One item per generated answer: id, sample, prompt, output, tokens, finished, and the row's reference."""
    generated = generate_answers(
        subject.model,
        subject.tokenizer,
        ask(rows, ids, settings, subject),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        batch_size=settings.batch_size,
        num_samples=settings.num_samples,
        stop=settings.stop,
        truncate=settings.truncate_prompts,
        seed=subject.seed,
    )
    return [
        {
            "id": ids[i],
            "sample": k,
            "prompt": rows[i]["prompt"],
            "reference": rows[i].get("reference"),
            "output": answer.text,
            "tokens": answer.tokens,
            "finished": answer.finished,
        }
        for i, row in enumerate(generated)
        for k, answer in enumerate(row)
    ]


def item_ids(rows: Sequence[Row]) -> list[str]:
    """An id per row that depends on its content alone, so that two evaluations of one set can be paired.

    A repeated row gets a running number behind its id.
    """
    seen: Counter[str] = Counter()
    ids = []
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids
