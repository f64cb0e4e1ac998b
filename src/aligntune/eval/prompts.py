"""From a row's messages to what the model is asked: examples before it (few-shot), chat template or plain text.

    ask(rows, ids, settings, subject)       # one prompt per row, a conversation or a string

Examples are solved rows of another split. Under a chat template each is a turn of the user and one of the assistant;
without one they stand before the question in the plain form of training, blank lines between them:

    <example>\\n<answer>\\n\\n<question>\\n

`draw: fixed` takes the first n of the examples' source for every row, `sampled` n of them for each row, drawn by the
seed and the row's id alone, so that neither order nor number of rows matters. A row that is also an example is refused:
the model would be shown the answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.generation import Prompt

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings
    from aligntune.eval.tasks.base import Subject

Message = dict[str, Any]


def templated(settings: EvalSettings, tokenizer: Any) -> bool:
    """Whether the chat template writes the prompts.

    Raises:
        ConfigurationError: it is asked for, and the model has none.
    """
    if settings.chat_template and not tokenizer.chat_template:
        raise ConfigurationError(
            "chat_template is true, and the model's tokenizer has no chat template",
            hint="remove chat_template (plain text then), or evaluate a chat model",
        )
    return bool(tokenizer.chat_template) if settings.chat_template is None else settings.chat_template


def ask(
    rows: Sequence[Mapping[str, Any]], ids: Sequence[str], settings: EvalSettings, subject: Subject
) -> list[Prompt]:
    """The prompt of each row, with its examples.

    Args:
        rows: with `prompt`, a list of messages or a string.
        ids: of the rows.
        settings: `chat_template`.
        subject: the tokenizer, the seed, and the examples.

    Raises:
        ConfigurationError: see `templated`.
        ValidationError: an example is one of the rows.
    """
    chat = templated(settings, subject.tokenizer)
    if subject.shots is not None:
        _disjoint(rows, subject.shots.rows)
    return [_prompt(row["prompt"], subject.examples(i), chat) for row, i in zip(rows, ids, strict=True)]


def _prompt(prompt: Prompt, examples: Sequence[Mapping[str, Any]], chat: bool) -> Prompt:
    if isinstance(prompt, str):
        return "".join(f"{e['prompt']}{_content(e['completion'])}\n\n" for e in examples) + prompt
    if chat:
        shown = [m for e in examples for m in [*_turns(e["prompt"]), *e["completion"]]]
        system = [m for m in prompt if m["role"] == "system"]
        return [*system, *shown, *(m for m in prompt if m["role"] != "system")]
    from aligntune.data.messages import plain_completion, plain_prompt

    parts = [plain_prompt(_turns(e["prompt"])) + plain_completion(e["prompt"], e["completion"]) for e in examples]
    return "".join(f"{part}\n\n" for part in parts) + plain_prompt(prompt)


def _turns(messages: Sequence[Message]) -> list[Message]:
    """A conversation without its system message, which the question's own prompt carries."""
    return [m for m in messages if m["role"] != "system"]


def _content(completion: Any) -> str:
    return completion if isinstance(completion, str) else "".join(m["content"] for m in completion)


def _disjoint(rows: Sequence[Mapping[str, Any]], shots: Sequence[Mapping[str, Any]]) -> None:
    asked = {json.dumps(row["prompt"], sort_keys=True, default=str) for row in rows}
    shared = [i for i, shot in enumerate(shots) if json.dumps(shot["prompt"], sort_keys=True, default=str) in asked]
    if shared:
        raise ValidationError(
            f"{len(shared)} of {len(shots)} examples are among the rows that are evaluated (the first is {shared[0]})",
            hint="take few_shot.dataset from another split",
        )


class Shots:
    """Solved rows to show before a question.

    Args:
        rows: with `prompt` and `completion`.
        n: how many to show.
        sampled: draw them anew for each question.
        seed: of the draw.

    Raises:
        ValidationError: fewer rows than n.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], n: int, *, sampled: bool, seed: int) -> None:
        if len(rows) < n:
            raise ValidationError(
                f"few_shot wants {n} examples, and its data set has {len(rows)} usable rows", hint="lower few_shot.n"
            )
        self.n, self.sampled, self.seed = n, sampled, seed
        self.rows = list(rows) if sampled else list(rows)[:n]

    def of(self, item_id: str) -> list[Mapping[str, Any]]:
        """The examples of one question."""
        if not self.sampled:
            return self.rows
        return random.Random(f"{self.seed}:{item_id}").sample(self.rows, self.n)
