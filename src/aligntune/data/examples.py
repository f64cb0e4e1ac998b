"""From one row in a known format to one canonical row of a schema.

A reader per format turns a row into an `Example` (what it says, as message lists); `canonical` cuts the
example to the schema. Both raise `RowProblem` where the row lacks something and `RowFault` where it cannot be
read.

>>> example = read_alpaca({"instruction": "Add", "input": "1, 2", "output": "3"}, fields, Schema.PROMPT_COMPLETION)
>>> canonical(example, Schema.PROMPT_COMPLETION)
{'prompt': [{'role': 'user', 'content': 'Add\\n\\n1, 2'}], 'completion': [{'role': 'assistant', 'content': '3'}]}

Nothing here knows a tokenizer: lengths and templates come in `aligntune.data.render`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.data.messages import (
    Message,
    RowFault,
    RowProblem,
    has_answer,
    is_dialogue,
    parse_dialogue,
    spoken,
    to_messages,
    to_tools,
)
from aligntune.data.templates import PromptTemplate


@dataclass
class Example:
    """What a row says. `messages` is a whole conversation; otherwise prompt and answers stand apart."""

    messages: list[Message] | None = None
    prompt: list[Message] | None = None
    completion: list[Message] | None = None
    chosen: list[Message] | None = None
    rejected: list[Message] | None = None
    text: str | None = None
    label: bool | str | None = None
    tokens: list[str] | None = None
    tags: list[str] | None = None
    input_ids: list[int] | None = None
    labels: list[int] | None = None
    tools: str | None = None
    own_system: bool = False
    """The row had a system message of its own, so the configured one was not added."""
    several_answers: bool = False
    """More than one assistant turn in a conversation that was cut to its last one."""


@dataclass(frozen=True)
class Fields:
    """Where a row's parts stand.

    Args:
        columns: our role name to the row's column, or a dotted path into it (`instances.0.output`).
        template: makes the prompt in place of the prompt's columns.
        system_prompt: system message of conversations that have none.
        answer_end: a mark that ends answers and is taken off.
    """

    columns: dict[str, str]
    template: PromptTemplate | None = None
    system_prompt: str | None = None
    answer_end: str | None = None

    def get(self, row: dict[str, Any], role: str) -> Any:
        """The row's value for a role; None where the row or the mapping has none."""
        column = self.columns.get(role)
        return None if column is None else lookup(row, column)


def lookup(row: dict[str, Any], column: str) -> Any:
    """The value at a column, or at a dotted path through objects and lists; None where it ends early."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.lstrip("-").isdigit() and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def read_text(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """`text`, or what the template makes."""
    value = fields.template.render(row) if fields.template else fields.get(row, "text")
    if value is None or value == "":
        raise RowProblem("the text is empty or null")
    return Example(text=_scalar_text(value, "text"))


def read_alpaca(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """instruction, input, output (Taori et al. 2023): the input follows the instruction after a blank line."""
    if fields.template:
        prompt = fields.template.render(row)
    else:
        instruction, context = fields.get(row, "instruction"), fields.get(row, "input")
        if instruction is None or not str(instruction).strip():
            raise RowProblem("the instruction is empty or null")
        prompt = _scalar_text(instruction, "instruction")
        if context is not None and str(context).strip():
            prompt += "\n\n" + _scalar_text(context, "input")
    return _pair([{"role": "user", "content": prompt}], fields.get(row, "output"), "output", row, fields, schema)


def read_pair(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """prompt and completion, texts or message lists."""
    return _pair(_prompt(row, fields), fields.get(row, "completion"), "completion", row, fields, schema)


def read_prompt(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """A prompt; the row's other columns are for the rewards."""
    prompt = _prompt(row, fields)
    example = Example(prompt=prompt)
    _add_system(example, prompt, row, fields)
    return example


def read_conversation(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """messages (role, content) or ShareGPT conversations (from, value)."""
    value = fields.get(row, "messages" if "messages" in fields.columns else "conversations")
    messages = parse_dialogue(value) if is_dialogue(value) else to_messages(value)
    example = Example(messages=messages, tools=to_tools(fields.get(row, "tools")), label=_label(row, fields))
    _add_system(example, messages, row, fields)
    return example


def read_preference(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """chosen and rejected, with a prompt or with the prompt as their common beginning."""
    chosen, rejected = fields.get(row, "chosen"), fields.get(row, "rejected")
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None or (isinstance(value, (str, list, dict)) and not value):
            raise RowProblem(f"'{name}' is empty or null")
    explicit = fields.template is not None or "prompt" in fields.columns
    prompt = _prompt(row, fields) if explicit else None
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        prompt, left, right = _split_texts(chosen, rejected)
    else:
        left, right = _answer(chosen), _answer(rejected)
        prompt, left, right = _strip_prompt(prompt, left, right)
    for name, answer in (("chosen", left), ("rejected", right)):
        if not answer or not has_answer(answer):
            raise RowProblem(f"'{name}' has no answer of the assistant after the prompt")
    if left[0]["role"] != "assistant" or right[0]["role"] != "assistant":
        raise RowProblem("chosen and rejected part before an answer of the assistant")
    if left == right:
        raise RowProblem("chosen and rejected are the same")
    example = Example(prompt=prompt, chosen=left, rejected=right, tools=to_tools(fields.get(row, "tools")))
    _add_system(example, prompt, row, fields)
    return example


def read_ranked(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """Two answers to a prompt, and which is the better: 1 or 2, 0 for neither (Wang et al. 2024, arXiv:2306.05087)."""
    better = fields.get(row, "better")
    known = RANKS.get(better.strip().lower() if isinstance(better, str) else better) if _is_scalar(better) else None
    if better is None:
        raise RowProblem("no answer is marked as the better one")
    if known is None or isinstance(better, bool):
        raise RowFault(f"the better answer must be 1 or 2, or 0 for neither (got {better!r})")
    if known == 0:
        raise RowProblem("the two answers are a tie")
    first, second = fields.columns["first"], fields.columns["second"]
    pair = {"chosen": first, "rejected": second} if known == 1 else {"chosen": second, "rejected": first}
    columns = {k: v for k, v in fields.columns.items() if k in ("prompt", "system", "tools")}
    return read_preference(row, Fields({**columns, **pair}, fields.template, fields.system_prompt), schema)


RANKS: dict[Any, int] = {0: 0, 1: 1, 2: 2, "0": 0, "1": 1, "2": 2, "tie": 0}


def read_stepwise(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """A prompt, the steps of an answer, and whether each is right (Lightman et al. 2023, arXiv:2305.20050).

    The answer is its steps, one a line; its label is true where every step is right.
    """
    steps, marks = fields.get(row, "completions"), fields.get(row, "labels")
    for name, value in (("completions", steps), ("labels", marks)):
        if not isinstance(value, list):
            raise RowFault(f"'{name}' must be a list, found {type(value).__name__}")
    if not steps or not all(isinstance(step, str) and step.strip() for step in steps):
        raise RowProblem("a step is empty or no text, or there is none")
    if len(marks) != len(steps):
        raise RowFault(f"{len(steps)} steps and {len(marks)} labels")
    if not all(isinstance(mark, bool) or mark in (0, 1) for mark in marks):
        raise RowFault("the labels of steps must be true or false")
    example = Example(prompt=_prompt(row, fields), completion=to_messages("\n".join(steps), role="assistant"))
    example.label = all(marks)
    _add_system(example, example.prompt or [], row, fields)
    return example


def read_verl(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """The rows of verl (Sheng et al. 2024, arXiv:2409.19256): prompt messages, and the gold answer in reward_model."""
    if fields.get(row, "reward_model") is None:
        raise RowProblem("reward_model is null")
    return read_prompt(row, fields, schema)


def read_tokenized(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """Token ids, with labels (-100 is not trained on) or a completion mask; with neither every token is trained on."""
    ids, labels, mask = (fields.get(row, name) for name in ("input_ids", "labels", "completion_mask"))
    for name, value in (("input_ids", ids), ("labels", labels), ("completion_mask", mask)):
        if value is None and name != "input_ids":
            continue
        if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
            raise RowFault(f"'{name}' must be a list of whole numbers")
        if len(value) != len(ids):
            raise RowFault(f"{len(ids)} input_ids and {len(value)} {name}")
    if not ids or min(ids) < 0:
        raise RowProblem("there are no input_ids, or one is below 0")
    if labels is not None and any(label not in (-100, i) for i, label in zip(ids, labels, strict=True)):
        raise RowFault("labels must be the input_ids, or -100 where nothing is learnt")
    if labels is None:
        labels = ids if mask is None else [i if m else -100 for i, m in zip(ids, mask, strict=True)]
    return Example(input_ids=list(ids), labels=list(labels))


def _prompt(row: dict[str, Any], fields: Fields) -> list[Message]:
    if fields.template:
        return [{"role": "user", "content": fields.template.render(row)}]
    value = fields.get(row, "prompt")
    if value is None:
        raise RowProblem("the prompt is null")
    return parse_dialogue(value) if is_dialogue(value) else to_messages(value)


def _answer(value: Any) -> list[Message]:
    return parse_dialogue(value) if is_dialogue(value) else to_messages(value, role="assistant")


def _pair(
    prompt: list[Message], answer: Any, name: str, row: dict[str, Any], fields: Fields, schema: Schema
) -> Example:
    if answer is None or answer == "" or answer == [] or (isinstance(answer, float) and not math.isfinite(answer)):
        # A policy is only prompted: the answer is a reference at most.
        if schema is not Schema.PROMPT:
            raise RowProblem(f"the {name} is empty or null")
        completion = None
    elif isinstance(answer, bool):
        raise RowFault(f"the {name} must be text or messages, found a truth value")
    else:
        completion = to_messages(answer if not isinstance(answer, (int, float)) else _number(answer), role="assistant")
        if completion[0]["role"] != "assistant" or not has_answer(completion):
            raise RowProblem(f"the {name} holds no answer of the assistant")
        if fields.answer_end and completion[-1]["content"].endswith(fields.answer_end):
            completion[-1]["content"] = completion[-1]["content"].removesuffix(fields.answer_end)
            if not has_answer(completion):
                raise RowProblem(f"the {name} is empty or null")
    tools = to_tools(fields.get(row, "tools"))
    example = Example(prompt=prompt, completion=completion, tools=tools, label=_label(row, fields))
    _add_system(example, prompt, row, fields)
    return example


TRUTHS: dict[Any, bool] = {"true": True, "false": False, "1": True, "0": False, 1: True, 0: False}
"""What a label may be beside a truth value: text of CSV files, and numbers."""


def _label(row: dict[str, Any], fields: Fields) -> bool | None:
    """Whether the answer is desirable; None where the format has no label."""
    if "label" not in fields.columns:
        return None
    value = fields.get(row, "label")
    if value is None:
        raise RowProblem("the label is null")
    known = TRUTHS.get(value.strip().lower() if isinstance(value, str) else value) if _is_scalar(value) else None
    if known is None:
        raise RowFault(f"the label must be true or false (got {value!r})")
    return known


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _add_system(example: Example, messages: list[Message], row: dict[str, Any], fields: Fields) -> None:
    own = fields.get(row, "system")
    has_own = bool(messages) and messages[0]["role"] in ("system", "developer")
    if own and not has_own:
        messages.insert(0, {"role": "system", "content": _scalar_text(own, "system")})
        has_own = True
    if fields.system_prompt is None:
        return
    if has_own:
        example.own_system = True
    else:
        messages.insert(0, {"role": "system", "content": fields.system_prompt})


def _split_texts(chosen: str, rejected: str) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt and answers of two texts: dialogues by turn, other texts at the last common word."""
    if is_dialogue(chosen) and is_dialogue(rejected):
        return _strip_prompt(None, parse_dialogue(chosen), parse_dialogue(rejected))
    end = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    while end and not chosen[end - 1].isspace():
        end -= 1
    prompt, left, right = chosen[:end].strip(), chosen[end:], rejected[end:]
    if not prompt:
        raise RowProblem(
            "chosen and rejected share no beginning that could be the prompt, and there is no prompt column"
        )
    return to_messages(prompt), to_messages(left, role="assistant"), to_messages(right, role="assistant")


def _strip_prompt(
    prompt: list[Message] | None, left: list[Message], right: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Take the prompt off the two conversations: the given one where they repeat it, else their common beginning."""
    if prompt is not None:
        size = len(prompt)
        if left[:size] == prompt and right[:size] == prompt:
            left, right = left[size:], right[size:]
        return prompt, left, right
    size = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    if left == right:
        raise RowProblem("chosen and rejected are the same")
    if size == 0:
        raise RowProblem(
            "chosen and rejected share no beginning that could be the prompt, and there is no prompt column"
        )
    return left[:size], left[size:], right[size:]


def _scalar_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(value)
    raise RowFault(f"'{name}' must be text, found {type(value).__name__}")


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def canonical(example: Example, schema: Schema) -> dict[str, Any]:
    """The canonical row of `schema`, without the columns of its own that a PROMPT row also carries.

    Raises:
        RowProblem: the example lacks what the schema needs.
    """
    if example.input_ids is not None:
        return {"input_ids": example.input_ids, "labels": example.labels}
    if schema is Schema.TEXT:
        return {"text": example.text}
    if schema is Schema.CLASSIFICATION:
        return {"text": example.text, "label": example.label}
    if schema is Schema.TOKENS:
        return {"tokens": example.tokens, "tags": example.tags}
    if schema is Schema.PREFERENCE or (schema is Schema.UNPAIRED and example.chosen is not None):
        pair = {"prompt": example.prompt, "chosen": example.chosen, "rejected": example.rejected}
        return {**pair, "tools": example.tools}
    if schema is Schema.MESSAGES:
        messages = example.messages or [*(example.prompt or []), *(example.completion or [])]
        if not has_answer(messages):
            raise RowProblem("the conversation has no assistant turn")
        return {"messages": messages, "tools": example.tools}
    prompt, completion = split_last_answer(example)
    if not prompt:
        raise RowProblem("there is no prompt before the answer")
    if schema is Schema.PROMPT:
        return {"prompt": prompt}
    if completion is None:
        raise RowProblem("the conversation has no assistant turn")
    row = {"prompt": prompt, "completion": completion, "tools": example.tools}
    return {**row, "label": example.label} if schema is Schema.UNPAIRED else row


def unpaired(pairs: list[dict[str, Any]], source: str, start: int = 0) -> list[dict[str, Any]]:
    """Preference rows as rows with a label, two for each; `pair` names the pair that a row comes from, from `start`."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row[side],
            "tools": row["tools"],
            "label": label,
            "pair": f"{source}:{i}",
        }
        for i, row in enumerate(pairs, start)
        for side, label in (("chosen", True), ("rejected", False))
    ]


def split_last_answer(example: Example) -> tuple[list[Message], list[Message] | None]:
    """Prompt and answer; of a conversation, the last assistant turn and all that came before it."""
    if example.messages is None:
        return example.prompt or [], example.completion
    messages = example.messages
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and spoken(m).strip()]
    if not turns:
        return messages, None
    example.several_answers = len(turns) > 1
    return messages[: turns[-1]], [messages[turns[-1]]]


def reference_text(value: Any) -> Any:
    """A gold answer as rewards get it: numbers become text (3.0 is `3`), lists and objects stay."""
    return _number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
