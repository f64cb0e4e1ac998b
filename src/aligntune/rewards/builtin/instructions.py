"""Rewards for instructions that a program can check: `ifeval`, `language`, `citation_check`.

    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    get_reward_function("ifeval").compute("No comma here", **row)                            # 1.0
    get_reward_function("citation_check").compute("As shown in [1] and [3].", sources=["a", "b"])     # 0.5

Source: IFEval (arXiv:2311.07911), py3langid. They do not judge whether an answer that keeps to the form is a good one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from aligntune.errors import ValidationError
from aligntune.grading.extract import strip_reasoning
from aligntune.grading.instructions import check, read_instructions
from aligntune.grading.language import language_share, languages
from aligntune.grading.text import normal, words
from aligntune.registry import nearest
from aligntune.rewards.base import count, reward

_CITED = re.compile(r"\[\^?([A-Za-z0-9_.:-]{1,40}(?:\s?[,;]\s?[A-Za-z0-9_.:-]{1,40}){0,20})\](?!\()")
_QUOTED = re.compile(r"[\"“]([^\"“”\n]{1,600})[\"”]")


@reward("ifeval", kind="verifiable")
def ifeval(
    text: str,
    instruction_id_list: Any,
    kwargs: Any = None,
    *,
    mode: Literal["strict", "loose"] = "strict",
    level: Literal["instruction", "prompt"] = "instruction",
) -> float | None:
    """Share of the row's instructions that the text after its thought follows, by IFEval's 25 published checks.

    A row without instructions is None, counted as `no_instructions`. Columns as in IFEval's data (arXiv:2311.07911).

    Args:
        instruction_id_list: published ids, such as `keywords:existence` (`aligntune.grading.instructions.CHECKS`).
        kwargs: one mapping of arguments for each id, or JSON of the list.
        mode: `loose` accepts the text without its first or last line or its asterisks too.
        level: `prompt` gives 1 if all are followed, else 0.

    >>> get_reward_function("ifeval").compute(
    ...     "No comma here", instruction_id_list=["punctuation:no_comma", "startend:quotation"]
    ... )
    0.5
    """
    given = read_instructions(instruction_id_list, kwargs)
    if not given:
        count("no_instructions")
        return None
    body = strip_reasoning(text)
    kept = [check(name, body, arguments, loose=mode == "loose") for name, arguments in given]
    return float(all(kept)) if level == "prompt" else sum(kept) / len(kept)


@reward("language", kind="verifiable")
def language(text: str, language: str, *, strict: bool = False) -> float:
    """Share of the letters that stand in passages of the wanted language; 0 for a text without letters.

    Passages of 400 characters are judged by py3langid (more than 100 languages), at most 50 of a text. Short texts
    and code are unsure.

    Args:
        language: ISO 639-1 code such as `en`, as a parameter or as a column.
        strict: 1 if all passages are of the language, else 0.

    >>> get_reward_function("language", language="de").compute("Das ist doch ein einfacher Satz.")
    1.0
    """
    if language not in languages():
        raise ValidationError(f"py3langid knows no language '{language}'", hint=nearest(language, sorted(languages())))
    share = language_share(strip_reasoning(text), language)
    return float(share == 1.0) if strict else share


@reward("citation_check", kind="verifiable")
def citation_check(text: str, sources: Any, *, quotes: bool = True, cite_all: bool = False) -> float:
    """Share of the text's citations and quotations that check out against the row's sources; 0 without a citation.

    A citation `[2]`, `[1, 3]` or `[smith2020]` checks out if there is such a source; a quotation of four words or more
    if it stands in a source word for word (case and punctuation aside), and in a cited one where a citation follows it
    directly. A text of nothing but citations scores 0.

    Args:
        sources: texts, cited by number from 1, or a mapping of names to texts.
        quotes: check quotations too.
        cite_all: multiply by the share of sources that are cited.

    >>> get_reward_function("citation_check").compute("As was shown [1] and said [3].", sources=["a text", "another"])
    0.5
    """
    known = _sources(sources)
    body = strip_reasoning(text)
    marks = [(m.end(), [k.strip().lower() for k in re.split("[,;]", m[1])]) for m in _CITED.finditer(body)]
    cited = [key for _, keys in marks for key in keys]
    if not any(key in known for key in cited) or len(words(_CITED.sub(" ", body))) < 3:
        return 0.0
    found = [key in known for key in cited]
    if quotes:
        found += _quotations(body, known)
    score = sum(found) / len(found)
    return score * len(set(cited) & set(known)) / len(known) if cite_all else score


def _sources(sources: Any) -> dict[str, str]:
    if isinstance(sources, str):
        sources = [sources]
    if isinstance(sources, Mapping):
        return {str(k).lower(): str(v) for k, v in sources.items() if v is not None}
    if isinstance(sources, Sequence):
        return {str(i + 1): str(v) for i, v in enumerate(sources)}
    raise ValidationError(f"the sources are {type(sources).__name__}", hint="give a list of texts, or name to text")


def _quotations(body: str, known: Mapping[str, str]) -> list[bool]:
    plain = {key: f" {normal(text)} " for key, text in known.items()}
    found = []
    for quote in _QUOTED.finditer(body):
        said = normal(quote[1])
        if len(said.split()) < 4:
            continue
        gap = body[quote.end() : quote.end() + 3]
        after = _CITED.match(body, quote.end() + len(gap) - len(gap.lstrip(" .,;")))
        keys = [k.strip().lower() for k in re.split("[,;]", after[1])] if after else list(plain)
        found.append(any(f" {said} " in plain[key] for key in keys if key in plain))
        if len(found) >= 1000:
            break
    return found
