r"""Rewards that a rule about the form of the text decides: `answer_format`, `think_format`, `xml_tags`, `regex`.

    get_reward_function("answer_format").compute("6 x 12 = 72\n#### 72")        # 1.0
    get_reward_function("think_format").compute("<think>6 x 12</think>72")      # 1.0
    get_reward_function("regex", pattern="[0-9]").compute("none")               # 0.0

Source: GSM8K's answer line, MATH's box, the tags of DeepSeek-R1 (arXiv:2501.12948). Linear in the length of
the text, but for `regex`, whose pattern is the user's and is searched in a process of its own under a
deadline. They do not judge the answer.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import PositiveFloat

from aligntune.grading.extract import MAX_ANSWER, is_hedge
from aligntune.grading.worker import Worker, WorkerDied, WorkerTimeout
from aligntune.rewards.base import count, reward

_BOX_OPEN = "\\boxed{"
_worker = Worker("regex")


def _check_think(params: dict[str, Any]) -> None:
    if not params["open_tag"] or not params["close_tag"] or params["open_tag"] == params["close_tag"]:
        raise ValueError("open_tag and close_tag must be two different texts")


@reward("answer_format", kind="verifiable")
def answer_format(text: str, *, style: Literal["hash", "box", "tag"] = "hash", numeric: bool = False) -> float:
    """1 if the text ends in exactly one final answer in the given form, else 0.

    The answer has 1 to 300 characters and is no hedge ("12 or 13"). A thought before `</think>` is left aside.

    Args:
        style: `hash`: a last line `#### answer` (GSM8K); `box`: one `\\boxed{answer}`, followed by no more than
            punctuation; `tag`: `<answer>answer</answer>` at the end.
        numeric: the answer must be a plain number, with or without thousands separators.

    >>> get_reward_function("answer_format").compute("2 + 2 = 4\\n#### 4")
    1.0
    """
    body = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    answer = {"hash": _hash, "box": _box, "tag": _tag}[style](body.rstrip())
    if answer is None or not 0 < len(answer) <= MAX_ANSWER:
        return 0.0
    if numeric:
        return float(re.fullmatch(r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?", answer) is not None)
    return float(not is_hedge(answer, "(1, 2)" if "," in answer else None))


@reward("think_format", kind="verifiable", check=_check_think)
def think_format(
    text: str, *, open_tag: str = "<think>", close_tag: str = "</think>", opened_in_prompt: bool = False
) -> float:
    """1 if the text is one thought between tags and then an answer, neither of them empty, else 0.

    Exactly one opening and one closing tag, nothing before the opening one, and more than white space inside
    and after.

    Args:
        open_tag: what opens the thought (DeepSeek-R1's and Qwen's tag).
        close_tag: what closes it.
        opened_in_prompt: the chat template has written the opening tag already, so the text must not.

    >>> get_reward_function("think_format").compute("<think>2 + 2</think>4")
    1.0
    """
    if text.count(close_tag) != 1 or text.count(open_tag) != (0 if opened_in_prompt else 1):
        return 0.0
    thought, _, answer = text.partition(close_tag)
    if not opened_in_prompt:
        before, opened, thought = thought.partition(open_tag)
        if before.strip() or not opened:
            return 0.0
    return float(bool(thought.strip()) and bool(answer.strip()))


def _check_tags(params: dict[str, Any]) -> None:
    tags = params["tags"]
    if not tags or len(set(tags)) != len(tags) or not all(re.fullmatch(r"[A-Za-z_][\w.-]*", t) for t in tags):
        raise ValueError(f"tags = {list(tags)}: give different names, without brackets, such as [think, answer]")


@reward("xml_tags", kind="verifiable", check=_check_tags)
def xml_tags(
    text: str, *, tags: tuple[str, ...] = ("think", "answer"), partial: bool = False, only: bool = False
) -> float:
    """1 if each tag stands in the text exactly once, opened and closed, not empty, in the given order, else 0.

    Tags stand one after the other, not inside each other. The default names are those of DeepSeek-R1
    (arXiv:2501.12948).

    Args:
        tags: names, in order.
        partial: the share of tags that are right, instead of all or nothing; one inside another or out of order is
            wrong.
        only: nothing but white space may stand outside the tags; otherwise the score is 0.

    >>> get_reward_function("xml_tags", tags=["plan", "answer"], partial=True).compute("<plan>add</plan>4")
    0.5
    """
    right, end, outside = 0, 0, ""
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            continue
        start, stop = text.find(opening), text.find(closing)
        if end <= start < stop and text[start + len(opening) : stop].strip():
            right += 1
            outside += text[end:start]
            end = stop + len(closing)
    if only and (right < len(tags) or (outside + text[end:]).strip()):
        return 0.0
    return right / len(tags) if partial else float(right == len(tags))


def _check_regex(params: dict[str, Any]) -> None:
    if "pattern" in params:
        try:
            re.compile(params["pattern"])
        except re.error as e:
            raise ValueError(f"the pattern {params['pattern']!r} is not a regular expression: {e}") from e


@reward("regex", kind="verifiable", check=_check_regex)
def regex(
    text: str,
    pattern: str,
    *,
    mode: Literal["search", "match", "fullmatch"] = "search",
    invert: bool = False,
    deadline: PositiveFloat = 5.0,
) -> float:
    """1 if the pattern is found in the text (with `invert`: if it is not), else 0.

    The search runs in a process of its own, because a pattern can backtrack for ever and holds the
    interpreter while it does; a text on which it overruns scores 0 either way, counted as `timeout`.

    Args:
        pattern: a regular expression of Python's `re`, as a parameter or as a column of the data. Write flags
            inline: `(?i)`.
        mode: anywhere (`search`), at the start (`match`), or the whole text (`fullmatch`), as in `re`.
        invert: reward the absence.
        deadline: seconds for one text (ours, as for `math_correctness`).

    >>> get_reward_function("regex", pattern="[0-9]+").compute("about 72")
    1.0
    """
    try:
        result = _worker.ask({"pattern": pattern, "text": text, "mode": mode}, deadline)
    except WorkerTimeout:
        count("timeout")
        return 0.0
    except WorkerDied:
        count("crash")
        return 0.0
    if "error" in result:
        raise ValueError(f"the pattern {pattern!r} is not a regular expression: {result['error']}")
    return float(result["found"] is not invert)


def _hash(text: str) -> str | None:
    line = text[text.rfind("\n") + 1 :]
    if text.count("####") != 1 or not line.startswith("####"):
        return None
    return line[4:].strip()


def _box(text: str) -> str | None:
    text = text.rstrip(" .!$*)]\\\n")
    if text.count("\\boxed") != 1 or not text.endswith("}"):
        return None
    start = text.find(_BOX_OPEN)
    content = text[start + len(_BOX_OPEN) : -1]
    if start < 0 or len(content) > MAX_ANSWER:
        return None
    depth = 0
    for character in content:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return None
    return content.strip() if depth == 0 else None


def _tag(text: str) -> str | None:
    if text.count("<answer>") != 1 or text.count("</answer>") != 1 or not text.endswith("</answer>"):
        return None
    return text[text.find("<answer>") + len("<answer>") : -len("</answer>")].strip()
