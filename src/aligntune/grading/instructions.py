r"""IFEval's 25 instruction checks by their published ids: does a text do what its prompt asked of its form?

    follows("length_constraints:number_words", "one two", {"relation": "at least", "num_words": 2})     # True
    check("punctuation:no_comma", "Sure, here:\nNo commas", {}, loose=True)                             # True

Strict judges the text as it is; loose accepts it also without its first line, its last line, both, and without
asterisks, as the published evaluation does. A blank text follows nothing.

Source: Zhou et al. 2023, arXiv:2311.07911 (table 1: the instructions; section 2.2: strict and loose), with the ids and
arguments of its data. Checks are linear in the length of the text. They differ from the published program in three
places: sentences and words are split by rules here (there by NLTK's models), the language is found by py3langid
(there by langdetect, which is random), and keywords are plain text (there regular expressions).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aligntune.errors import ValidationError
from aligntune.grading.language import detect
from aligntune.grading.text import sentences
from aligntune.registry import nearest

Check = Callable[..., bool]
CHECKS: dict[str, Check] = {}
"""The checks by id; each is called with the text and the arguments of its instruction."""

_FENCE = re.compile(r"\A```(?:json)?|```\Z", re.IGNORECASE)
_STARRED = re.compile(r"\*([^\n*]*)\*")
_DOUBLE_STARRED = re.compile(r"\*\*([^\n*]*)\*\*")
_CHOICES = ("my answer is yes.", "my answer is no.", "my answer is maybe.")


def _named(name: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return add


def follows(instruction: str, text: str, arguments: Mapping[str, Any] | None = None) -> bool:
    """Whether `text` follows one instruction, judged strictly.

    Args:
        instruction: a published id, such as `keywords:existence`.
        text: a completion of any length.
        arguments: the instruction's; those that are None count as absent.

    Raises:
        ValidationError: unknown id, or arguments that do not fit it.
    """
    if instruction not in CHECKS:
        raise ValidationError(f"there is no instruction '{instruction}'", hint=nearest(instruction, sorted(CHECKS)))
    given = {k: v for k, v in (arguments or {}).items() if v is not None}
    known = CHECKS[instruction].__code__.co_varnames[1 : CHECKS[instruction].__code__.co_argcount]
    if set(given) != set(known):
        raise ValidationError(
            f"the instruction '{instruction}' takes {', '.join(known) or 'no arguments'}, and gets "
            f"{', '.join(sorted(given)) or 'none'}",
            hint="each entry of the column kwargs belongs to the instruction at the same place",
        )
    return bool(text.strip()) and CHECKS[instruction](text, **given)


def check(instruction: str, text: str, arguments: Mapping[str, Any] | None = None, *, loose: bool = False) -> bool:
    """As `follows`; with `loose` it is enough that one of the eight variants of the text follows."""
    return any(follows(instruction, t, arguments) for t in (variants(text) if loose else [text]))


def variants(text: str) -> list[str]:
    """The text without first line, last line and both, each with and without asterisks (arXiv:2311.07911, 2.2)."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(t.replace("*", "") for t in cut)]


def read_instructions(ids: Any, arguments: Any) -> list[tuple[str, dict[str, Any]]]:
    """The instructions of a row.

    Args:
        ids: a list of ids, or one.
        arguments: a list of mappings of the same length, or JSON of one; None for no arguments at all.

    Raises:
        ValidationError: another form, or two lengths.
    """
    names = [ids] if isinstance(ids, str) else list(ids or [])
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as e:
            raise ValidationError(f"the column kwargs is no JSON: {e}", hint="give a list of mappings") from e
    given = [arguments] if isinstance(arguments, Mapping) else list(arguments or [{}] * len(names))
    if len(given) != len(names) or not all(g is None or isinstance(g, Mapping) for g in given):
        raise ValidationError(
            f"{len(names)} instructions and {len(given)} entries of kwargs do not belong together",
            hint="give one mapping of arguments for each id, in order",
        )
    return [(str(name), dict(g or {})) for name, g in zip(names, given, strict=True)]


def _compare(number: int, relation: str, bound: Any) -> bool:
    if relation not in ("at least", "less than"):
        raise ValidationError(f"the relation '{relation}' is unknown", hint="write 'at least' or 'less than'")
    return number >= int(bound) if relation == "at least" else number < int(bound)


def _whole_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", text.casefold()) is not None


@_named("keywords:existence")
def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(k.casefold() in text.casefold() for k in keywords)


@_named("keywords:frequency")
def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(text.casefold().count(keyword.casefold().strip()), relation, frequency)


@_named("keywords:forbidden_words")
def _forbidden(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_whole_word(text, w) for w in forbidden_words)


@_named("keywords:letter_frequency")
def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


@_named("language:response_language")
def _language(text: str, language: str) -> bool:
    return detect(text) == language


@_named("length_constraints:number_sentences")
def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compare(len(sentences(text)), relation, num_sentences)


@_named("length_constraints:number_paragraphs")
def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = [p.strip() for p in text.split("***")]
    filled = [p for p in parts if p]
    return all(parts[1:-1]) and len(filled) == int(num_paragraphs)


@_named("length_constraints:number_words")
def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _compare(sum(1 for _ in re.finditer(r"\w+", text)), relation, num_words)


@_named("length_constraints:nth_paragraph_first_word")
def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = text.split("\n\n")
    filled = [p for p in parts if p.strip()]
    if len(filled) != int(num_paragraphs) or not 0 < int(nth_paragraph) <= len(parts):
        return False
    words = parts[int(nth_paragraph) - 1].split(maxsplit=1)
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'\""), maxsplit=1)[0].lower() == first_word.lower()


@_named("detectable_content:number_placeholders")
def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= int(num_placeholders)


@_named("detectable_content:postscript")
def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip().lower()
    forms = {"p.s.": r"p\.\s?s\.", "p.p.s": r"p\.\s?p\.\s?s"}
    return re.search(forms.get(marker, re.escape(marker)), text.lower()) is not None


@_named("detectable_format:number_bullet_lists")
def _bullets(text: str, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in text.split("\n")]
    starred = sum(line.startswith("*") and line[1:2] not in ("", "*") for line in lines)
    return starred + sum(line.startswith("-") for line in lines) == int(num_bullets)


@_named("detectable_format:constrained_response")
def _constrained(text: str) -> bool:
    return any(c in text.strip().lower() for c in _CHOICES)


@_named("detectable_format:number_highlighted_sections")
def _highlights(text: str, num_highlights: int) -> bool:
    found = _STARRED.findall(text) + _DOUBLE_STARRED.findall(text)
    return sum(bool(f.strip()) for f in found) >= int(num_highlights)


@_named("detectable_format:multiple_sections")
def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?[0-9]+", text)) >= int(num_sections)


@_named("detectable_format:json_format")
def _json(text: str) -> bool:
    try:
        json.loads(_FENCE.sub("", _FENCE.sub("", text.strip())).strip())
    except (ValueError, RecursionError):
        return False
    return True


@_named("detectable_format:title")
def _title(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].strip("<> \t"):
            return True
    return False


@_named("combination:repeat_prompt")
def _repeat(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_named("combination:two_responses")
def _two(text: str) -> bool:
    parts = [p.strip() for p in text.split("******")]
    filled = [p for p in parts if p]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


@_named("startend:end_checker")
def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_named("startend:quotation")
def _quotation(text: str) -> bool:
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


@_named("change_case:english_capital")
def _capital(text: str) -> bool:
    return text.isupper() and detect(text) == "en"


@_named("change_case:english_lowercase")
def _lowercase(text: str) -> bool:
    return text.islower() and detect(text) == "en"


@_named("change_case:capital_word_frequency")
def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    capital = sum(m.group().isupper() for m in re.finditer(r"\w+(?:[-.]\w+)*", text))
    return _compare(capital, capital_relation, capital_frequency)


@_named("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return "," not in text
