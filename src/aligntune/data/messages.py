"""Conversations: message lists in one form, dialogues in one string, and the plain text of a conversation.

A message is `{"role": ..., "content": text}`, with `tool_calls`, `name` and the like kept where a row has
them. Roles are `system`, `developer`, `user`, `assistant` and `tool`; ShareGPT's `human`, `gpt`,
`function_call` and `observation` are translated. The dialogue form is HH-RLHF's "\\n\\nHuman: ...
\\n\\nAssistant: ..." (Bai et al. 2022, arXiv:2204.05862).

>>> to_messages([{"from": "human", "value": "Hi"}])
[{'role': 'user', 'content': 'Hi'}]

Images and other parts that are not text are refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""A role as data sets write it, to ours (ShareGPT's names as LLaMA-Factory and FastChat document them)."""

KEPT_KEYS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""Keys of a message beside role and content that chat templates read."""

LABELS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


class RowProblem(Exception):
    """A row lacks what the schema needs. The text is the reason, the same for every row with this problem."""


class RowFault(Exception):
    """A row has a form that cannot be read; the run stops and names the row."""


def to_messages(value: Any, *, role: str = "user") -> list[Message]:
    """A message list from a list, a single message, JSON text of either, or plain text of `role`.

    Raises:
        RowProblem: the value is absent or empty.
        RowFault: a message has no role, an unknown role, or content that is not text.
    """
    if isinstance(value, str):
        if not value.strip():
            raise RowProblem(f"the {role} text is empty")
        parsed = _parse_json_list(value)
        if parsed is None:
            return [{"role": role, "content": value}]
        value = parsed
    if isinstance(value, dict):
        value = [value]
    if value is None or (isinstance(value, list) and not value):
        raise RowProblem("the message list is empty" if value is not None else f"the {role} text is null")
    if not isinstance(value, list):
        raise RowFault(f"expected text or a list of messages, found {type(value).__name__}")
    return [_message(item) for item in value]


def _parse_json_list(text: str) -> list[Any] | None:
    """JSON text of a message list (a CSV cell), else None."""
    if not text.lstrip().startswith("[{"):
        return None
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        return None
    keys = ("role", "from")
    readable = isinstance(parsed, list) and all(isinstance(m, dict) and any(k in m for k in keys) for m in parsed)
    return parsed if readable else None


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise RowFault(f"a message must be an object with role and content, found {type(item).__name__}")
    spoken = item["role"] if item.get("role") is not None else item.get("from")
    if not isinstance(spoken, str) or spoken.lower() not in ROLES:
        raise RowFault(
            f"unknown role {spoken!r} in a message with the keys {', '.join(item)} (known: {', '.join(ROLES)})"
        )
    role = ROLES[spoken.lower()]
    content = item["content"] if "content" in item else item.get("value")
    if spoken.lower() == "function_call" and isinstance(content, str):
        call = _tool_call(content)
        if call is not None:
            return {"role": "assistant", "content": "", "tool_calls": [call]}
    message: Message = {"role": role, "content": _text_of(content)}
    message.update({key: item[key] for key in KEPT_KEYS if item.get(key) is not None})
    return message


def _text_of(content: Any) -> str:
    if content is None or content != content:  # NaN is how tables spell a missing cell
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text") or "") for part in content)
    if isinstance(content, (int, float)) and not isinstance(content, bool):
        return str(content)
    raise RowFault(f"the content of a message must be text, found {type(content).__name__} (images are not supported)")


def _tool_call(content: str) -> dict[str, Any] | None:
    try:
        call = json.loads(content)
    except json.JSONDecodeError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}


def to_tools(value: Any) -> str | None:
    """Tool descriptions as JSON text in the form of chat templates (`{"type": "function", "function": ...}`), or None.

    Raises:
        RowFault: not a JSON list of objects.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise RowFault(f"tools is not JSON ({error.msg})") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowFault("tools must be a list of objects")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]
    return json.dumps(wrapped, ensure_ascii=False)


def is_dialogue(value: Any) -> bool:
    """Text in the form of HH-RLHF: it begins with "Human:" and has an answer."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def parse_dialogue(text: str) -> list[Message]:
    """The messages of a dialogue in one string; turns of one speaker in a row are joined by a blank line."""
    body = "\n\n" + text.lstrip()
    found = list(_TURN.finditer(body))
    ends = [match.start() for match in found[1:]] + [len(body)]
    messages: list[Message] = []
    for match, end in zip(found, ends, strict=True):
        role = "user" if match[1] == "Human" else "assistant"
        content = body[match.end() : end].strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = "\n\n".join(part for part in (messages[-1]["content"], content) if part)
        else:
            messages.append({"role": role, "content": content})
    return messages


def has_answer(messages: list[Message]) -> bool:
    """Whether some assistant turn says or calls something."""
    return any(m["role"] == "assistant" and (m["content"].strip() or m.get("tool_calls")) for m in messages)


def spoken(message: Message) -> str:
    """The message's text; tool calls follow it as JSON, one a line."""
    calls = [json.dumps(c.get("function", c), ensure_ascii=False) for c in message.get("tool_calls") or []]
    return "\n".join(part for part in (message["content"], *calls) if part)


def plain_prompt(messages: list[Message]) -> str:
    """The text that a model without a chat template is prompted with.

    One user turn, with or without a system message: the contents, blank line between them, and a line break
    at the end (none where the text ends in white space). Anything longer: "User: ...", "Assistant: ..."
    paragraphs, ending in "Assistant:". The form depends on the conversation alone, so training, evaluation
    and generation agree.

    >>> plain_prompt([{"role": "user", "content": "2+2?"}])
    '2+2?\\n'
    """
    if _is_single(messages):
        text = "\n\n".join(m["content"] for m in messages if m["content"])
        return text if text[-1:].isspace() else text + "\n"
    return "".join(f"{LABELS[m['role']]}: {spoken(m)}\n\n" for m in messages) + "Assistant:"


def plain_completion(prompt: list[Message], completion: list[Message]) -> str:
    """The text that follows `plain_prompt(prompt)`: the answer, after a space where the prompt ends in "Assistant:"."""
    first, rest = completion[0], completion[1:]
    tail = "".join(f"\n\n{LABELS[m['role']]}: {spoken(m)}" for m in rest)
    return ("" if _is_single(prompt) else " ") + spoken(first) + tail


def plain_conversation(messages: list[Message]) -> str:
    """A whole conversation as text, prompt and answer in the forms above."""
    cut = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    if 0 < cut == len(messages) - 1:
        return plain_prompt(messages[:cut]) + plain_completion(messages[:cut], messages[cut:])
    return "\n\n".join(f"{LABELS[m['role']]}: {spoken(m)}" for m in messages)


def _is_single(messages: list[Message]) -> bool:
    roles = [m["role"] for m in messages]
    return roles == ["user"] or roles in (["system", "user"], ["developer", "user"])
