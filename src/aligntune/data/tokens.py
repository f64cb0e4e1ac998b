"""The texts and tokens that a trainer will make of a row, in batches.

`Tokens` mirrors TRL 1.14's `_tokenize`: message lists through the chat template (no special tokens added on
top), plain text through the tokenizer, EOS added where it is missing. `fit_to_template` and `plain_rows`
change rows for tokenizers that cannot take them as they are.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.data.messages import Message, plain_completion, plain_conversation, plain_prompt, spoken
from aligntune.data.spool import in_order, only
from aligntune.data.table import RowTable
from aligntune.errors import ValidationError

if TYPE_CHECKING:
    import datasets

Columns = dict[str, list[Any]]
CONVERSATIONS = ("messages", "prompt", "completion", "chosen", "rejected")


class Tokens:
    """A tokenizer as the trainer uses it.

    Args:
        tokenizer: a Transformers tokenizer.
        text: the rows are plain text whether or not there is a chat template.
        training_template: use the template with generation marks that TRL puts in the place of known ones
        when the
            loss is on the assistant's turns.
    """

    def __init__(self, tokenizer: Any, *, text: bool = False, training_template: bool = False) -> None:
        self.tokenizer = tokenizer
        self.template: str | None = None
        if getattr(tokenizer, "chat_template", None):
            self.template = tokenizer.get_chat_template()
        self.changed: str | None = None
        if training_template:
            self.changed = _training_template(tokenizer, self.template)
        self.plain = text or self.template is None
        self._added = tokenizer.num_special_tokens_to_add() if self.plain else 0

    def require_eos(self) -> str:
        """The EOS token.

        Raises:
            ValidationError: there is none, so no answer could learn where to end.
        """
        eos: str | None = self.tokenizer.eos_token
        if not eos:
            raise ValidationError(
                "the tokenizer has no EOS token, so no row can teach where to stop",
                hint="use a tokenizer with an eos_token",
            )
        return eos

    def texts(
        self,
        values: Sequence[Any],
        tools: Sequence[str | None] | None,
        *,
        start: int,
        prompt: bool = False,
        closed: bool = False,
    ) -> list[str]:
        """The text of each value before tokenisation.

        Args:
            values: texts where `plain`, else message lists.
            tools: JSON text for each value.
            start: number of the first value in the data set, for messages.
            prompt: end where the assistant is to speak.
            closed: end plain texts with EOS.
        """
        if not values:
            return []
        if self.plain:
            if not closed:
                return list(values)
            eos = self.require_eos()
            return [text if text.endswith(eos) else text + eos for text in values]
        if tools is None or not any(tools):
            # A fault is found again below, row by row, so that the message can name the row.
            with contextlib.suppress(_template_error()):
                return list(self._apply(list(values), None, prompt))
        return [
            self._apply_one(value, tools[i] if tools else None, prompt, start + i) for i, value in enumerate(values)
        ]

    def _apply(self, values: Any, tools: str | None, prompt: bool) -> Any:
        return self.tokenizer.apply_chat_template(
            values,
            tools=json.loads(tools) if tools else None,
            chat_template=self.changed,
            add_generation_prompt=prompt,
            tokenize=False,
        )

    def _apply_one(self, messages: list[Message], tools: str | None, prompt: bool, index: int) -> str:
        try:
            text: str = self._apply(messages, tools, prompt)
        except _template_error() as error:
            roles = ", ".join(m["role"] for m in messages)
            raise ValidationError(
                f"the chat template refuses row {index + 1} (roles: {roles}): {error}",
                hint="change the rows or system_prompt to what the template allows, or set model.chat_template",
                context={"row": index},
            ) from error
        return text

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of what `texts` made."""
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=self.plain, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]  # type: ignore[no-any-return]

    def surely_within(self, text: str, limit: int) -> bool:
        """True where the text cannot have more than `limit` tokens, seen without tokenising it.

        A token covers at least one character of ASCII text, which no Unicode normalisation lengthens; one
        more stands for a space put in front.
        """
        return text.isascii() and len(text) + self._added + 1 <= limit

    def assistant_start(self, messages: list[Message], tools: str | None) -> tuple[int, int]:
        """Length in tokens, and the number (from 1) of the first token that the template marks as the assistant's.

        Without a marked token the number is one past the length.
        """
        encoded = self.tokenizer.apply_chat_template(
            messages,
            tools=json.loads(tools) if tools else None,
            chat_template=self.changed,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        mask = list(encoded["assistant_masks"])
        return len(mask), (mask.index(1) if 1 in mask else len(mask)) + 1

    def assistant_masks(
        self, conversations: list[list[Message]], tools: Sequence[str | None] | None, start: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of each conversation, and 1 for each that the template marks as the assistant's.

        Args:
            conversations: message lists.
            tools: JSON text for each.
            start: number of the first in the data set, for messages.
        """
        keys = {"chat_template": self.changed, "tokenize": True, "return_dict": True}
        ids, masks = [], []
        for i, messages in enumerate(conversations):
            given = json.loads(tools[i]) if tools and tools[i] else None  # type: ignore[arg-type]
            try:
                made = self.tokenizer.apply_chat_template(
                    messages, tools=given, return_assistant_tokens_mask=True, **keys
                )
            except _template_error():
                self._apply_one(messages, tools[i] if tools else None, False, start + i)  # says which row, and why
                raise
            ids.append(list(made["input_ids"]))
            masks.append(list(made["assistant_masks"]))
        return ids, masks


def _training_template(tokenizer: Any, template: str | None) -> str | None:
    """The template that TRL puts in the place of one without generation marks; None where the own one stays.

    Raises:
        ValidationError: there is no template, or TRL knows no marked form of it.
    """
    hint = "set model.chat_template to one with {% generation %} around the assistant's text, or task.train_on: all"
    if template is None:
        raise ValidationError(
            "training on the assistant's turns needs a chat template, and the tokenizer has none", hint=hint
        )
    from trl.chat_template_utils import get_training_chat_template

    try:
        changed: str | None = get_training_chat_template(tokenizer)
    except ValueError as error:
        raise ValidationError(
            "the chat template does not mark the assistant's text, and TRL knows no marked form of it", hint=hint
        ) from error
    return changed


def _template_error() -> type[Exception]:
    from jinja2 import TemplateError

    return TemplateError


def common_prefix(ids: list[int], others: list[int]) -> int:
    """How many first tokens two rows share (where TRL lets the completion begin)."""
    length = min(len(ids), len(others))
    if ids[:length] == others[:length]:
        return length
    return next(i for i in range(length) if ids[i] != others[i])


def plain_rows(dataset: datasets.Dataset, schema: Schema) -> tuple[datasets.Dataset, str]:
    """Message lists as plain text, and the sentence that says in which form."""
    names = dataset.column_names
    if schema is Schema.MESSAGES:
        gone = ["messages"]
        change: Callable[[Columns], Columns] = _plain_conversations
    else:
        answers = [name for name in ("completion", "chosen", "rejected") if name in names and schema != Schema.PROMPT]
        gone = ["prompt", *answers]
        change = _plain_pairs
    order = ["text" if name == "messages" and schema is Schema.MESSAGES else name for name in names]
    without_tools = schema is not Schema.PROMPT and "tools" in names
    dataset = _rewritten(dataset, gone, change, [*gone, *(["tools"] if without_tools else [])])
    note = (
        "The tokenizer has no chat template, so conversations are plain text: a single question and a line break, then "
        "the answer; longer ones as 'User:' and 'Assistant:' paragraphs."
    )
    if without_tools:
        note += " The tool descriptions of the rows are left out."
    return only(dataset, [name for name in order if name in dataset.column_names]), note


def _plain_conversations(batch: Columns) -> Columns:
    return {"text": [plain_conversation(messages) for messages in batch["messages"]]}


def _plain_pairs(batch: Columns) -> Columns:
    prompts = batch["prompt"]
    changed: Columns = {"prompt": [plain_prompt(prompt) for prompt in prompts]}
    for name, answers in batch.items():
        if name != "prompt":
            changed[name] = [plain_completion(p, a) for p, a in zip(prompts, answers, strict=True)]
    return changed


def fit_to_template(dataset: datasets.Dataset, template: str) -> tuple[datasets.Dataset, list[str]]:
    """Rows with tool calls or results, spelled out where the chat template does not know them."""
    notes = []
    if "tools" in dataset.column_names and "tools" not in template:
        dataset = dataset.remove_columns(["tools"])
        notes.append("The chat template shows no tools, so the tool descriptions of the rows are left out.")
    calls, results = "tool_calls" not in template, "tool" not in template
    for name in [c for c in CONVERSATIONS if c in dataset.column_names and (calls or results)]:
        if not _has_tools(dataset, name):
            continue

        def change(batch: Columns) -> Columns:
            return {n: [[_spelled(m, calls, results) for m in ms] for ms in values] for n, values in batch.items()}

        dataset = only(_rewritten(dataset, [name], change, [name]), dataset.column_names)
        notes.append(
            f"The chat template knows no tools: tool calls in '{name}' are the assistant's text, results the user's."
        )
    return dataset, notes


def _has_tools(dataset: datasets.Dataset, name: str) -> bool:
    """Whether a column of message lists has a tool call or a tool's result in it."""
    for _, batch in in_order(only(dataset, [name])):
        lists = batch[name]
        if not isinstance(lists[0], list):
            return False
        if any(m.get("tool_calls") or m["role"] == "tool" for messages in lists for m in messages):
            return True
    return False


def _spelled(message: Message, calls: bool, results: bool) -> Message:
    if calls and message.get("tool_calls"):
        return {"role": message["role"], "content": spoken(message)}
    if results and message["role"] == "tool":
        return {"role": "user", "content": message["content"]}
    return message


def _rewritten(
    dataset: datasets.Dataset, names: list[str], change: Callable[[Columns], Columns], gone: list[str]
) -> datasets.Dataset:
    """The data set without the columns in `gone`, and with those that `change` makes of those in `names`."""
    from datasets import concatenate_datasets

    made = RowTable()
    for _, batch in in_order(only(dataset, names)):
        columns = change(batch)
        made.extend(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    rest = [name for name in dataset.column_names if name not in gone]
    return concatenate_datasets([only(dataset, rest), made.dataset()], axis=1) if rest else made.dataset()
