"""Multiple choice by likelihood: which option does the model find most likely behind the question?

    accuracy         the option with the largest summed log-probability
    accuracy_norm    the same divided by the option's number of characters, so that long options are not punished

Both as lm-evaluation-harness defines `acc` and `acc_norm` (its `process_results` of multiple choice), with its
tokenization: question and option are tokenized together, and the option's tokens are those behind the question's; a
text beyond the model's context loses its beginning, which is told, and an option that does not fit is an error.
`confidence` is the softmax of the summed log-probabilities over
the options, from which `ece` and `brier` are taken.

Options come from a column (`choices`: a list, a mapping of labels, ARC's {"label", "text"}), or from one column for
each. The gold answer is the row's `reference`: a label, a number from 0, or an option's words. It does not read what
a model writes; for that, see the kind `exact_match` and the reward `choice`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.errors import ValidationError
from aligntune.eval.generation import prompt_texts
from aligntune.eval.likelihood import Encoded, length_limit, score
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.calibration import CalibrationMetric
from aligntune.eval.prompts import ask, templated
from aligntune.eval.tasks.base import ASKING, EvalKind, Row, Subject, need_reference
from aligntune.grading.choice import gold_label, read_options

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask


class MultipleChoice(EvalKind):
    """`accuracy`, `accuracy_norm`, `brier`, `ece`."""

    options = ASKING | {"choices", "answer_with", "delimiter", "max_length"}

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """The delimiter stands where no chat template does."""
        if task.chat_template and task.delimiter != type(task).delimiter:
            return [("delimiter", "has no effect where the chat template writes the prompt")]
        return []

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """Some row must have a reference."""
        super().check(rows, rewards)
        need_reference(rows, "multiple_choice")

    def check_settings(self, rows: Sequence[Row], settings: EvalSettings) -> None:
        """Every row must have options."""
        for row in rows:
            options_of(row, settings.choices)

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """One item per question: the log-probability of each option, the pick, and whether it is right."""
        options = [options_of(row, settings.choices) for row in rows]
        contexts = self._contexts(rows, ids, settings, subject)
        delimiter = "" if templated(settings, subject.tokenizer) else settings.delimiter
        texts = [list(o.values()) if settings.answer_with == "text" else list(o) for o in options]
        encoded = [
            encode_pair(subject.tokenizer, context, delimiter + text, templated(settings, subject.tokenizer))
            for context, choices in zip(contexts, texts, strict=True)
            for text in choices
        ]
        _need_room(ids, options, encoded, length_limit(subject.model, settings.max_length))
        model, limit = subject.model, settings.max_length
        scored = iter(score(model, subject.tokenizer, encoded, settings.batch_size, max_length=limit, keep="end"))
        found = []
        for i, row, context, labelled, choices in zip(ids, rows, contexts, options, texts, strict=True):
            logps = [-next(scored)[0] for _ in choices]
            found.append(_item(i, row, context, labelled, choices, logps))
        return found

    @staticmethod
    def _contexts(rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject) -> list[str]:
        if templated(settings, subject.tokenizer):
            return prompt_texts(subject.tokenizer, ask(rows, ids, settings, subject))[0]
        # The plain form of training ends a question with a line break; here the delimiter joins question and option.
        plain = [{**row, "prompt": row["prompt"] if isinstance(row["prompt"], str) else _joined(row)} for row in rows]
        shown = subject.shots.of if subject.shots is not None else lambda _: []
        return [
            "".join(f"{_joined(e)}{settings.delimiter}{_answer(e)}\n\n" for e in shown(i)) + str(row["prompt"])
            for row, i in zip(plain, ids, strict=True)
        ]

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Accuracy first."""
        return [
            MeanMetric("correct", "accuracy"),
            MeanMetric("correct_norm", "accuracy_norm"),
            CalibrationMetric("brier"),
            CalibrationMetric("ece"),
        ]


def options_of(row: Row, choices: str | list[str]) -> dict[str, str]:
    """The options of a row by label.

    Raises:
        ValidationError: a column is missing, or holds no options.
    """
    names = [choices] if isinstance(choices, str) else choices
    lacking = [name for name in names if row.get(name) is None]
    if lacking:
        raise ValidationError(
            f"multiple_choice needs the column '{lacking[0]}'; the row has {', '.join(sorted(row))}",
            hint="say which column holds the options: choices: your_column, or choices: [A, B, C, D]",
        )
    value: Any = row[choices] if isinstance(choices, str) else {name: row[name] for name in choices}
    if isinstance(value, list) and value and all(isinstance(c, Mapping) and {"label", "text"} <= set(c) for c in value):
        value = {str(c["label"]): c["text"] for c in value}
    try:
        return read_options(value)
    except ValueError as e:
        raise ValidationError(str(e), hint="the column of the options holds a list of texts, or label to text") from e


def encode_pair(tokenizer: Any, context: str, continuation: str, chat: bool) -> Encoded:
    """Question and option tokenized together; what follows the question's own tokens counts.

    White space at the question's end belongs to the option, since tokenizers join it to the word behind it.
    """
    stripped = context.rstrip() if not chat else context
    continuation = context[len(stripped) :] + continuation
    special = {"add_special_tokens": not chat}
    whole = tokenizer(stripped + continuation, **special)["input_ids"]
    start = len(tokenizer(stripped, **special)["input_ids"])
    return Encoded(list(whole), [i >= start for i in range(len(whole))])


def _need_room(
    ids: Sequence[str], options: Sequence[Mapping[str, str]], encoded: Sequence[Encoded], limit: int | None
) -> None:
    """Every option must fit into the model's context whole, or its log-probability would be that of a part."""
    names = [(i, label) for i, labelled in zip(ids, options, strict=True) for label in labelled]
    for (i, label), row in zip(names, encoded, strict=True):
        if limit is not None and sum(row.counted) > limit:
            raise ValidationError(
                f"question {i}: option {label} has {sum(row.counted)} tokens, and the model reads {limit}",
                hint="leave the question out, raise the task's max_length, or take a model with a longer context",
            )


def _item(
    i: str, row: Row, context: str, options: dict[str, str], choices: list[str], logps: list[float]
) -> dict[str, Any]:
    labels = list(options)
    gold = gold_label(row.get("reference"), options)
    # An option of no characters cannot be normalised and is never picked.
    norms = [lp / len(text) if text else -math.inf for lp, text in zip(logps, choices, strict=True)]
    pick, pick_norm = labels[logps.index(max(logps))], labels[norms.index(max(norms))]
    top = max(logps)
    weights = [math.exp(lp - top) for lp in logps]
    right = None if gold is None else float(pick == gold)
    return {
        "id": i,
        "prompt": context,
        "reference": gold,
        "options": dict(zip(labels, choices, strict=True)),
        "logps": logps,
        "prediction": pick,
        "prediction_norm": pick_norm,
        "correct": right,
        "correct_norm": None if gold is None else float(pick_norm == gold),
        "confidence": max(weights) / math.fsum(weights),
    }


def _joined(row: Mapping[str, Any]) -> str:
    """The text of a question without a line break at its end."""
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt if m["content"])


def _answer(row: Mapping[str, Any]) -> str:
    completion = row["completion"]
    return completion if isinstance(completion, str) else "".join(m["content"] for m in completion)
