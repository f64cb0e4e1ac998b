"""Texts as words: the pieces that overlap, repetition and instruction checks count.

    words("Paris, 2024")          # ['paris', '2024']
    words("東京へ")                # ['東', '京', 'へ']: a script without spaces gives one word a character
    normal("The U.S.A. -5.")      # 'usa -5'
    overlap_f1("in Paris", "Paris, France")     # 0.5

Source: the normalisation and the token F1 of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250). All of it is linear in
the length of the text. It does not split words into morphemes, and knows the articles of English alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_MARKS = "".join(c for c in map(chr, range(0x300, 0x1100)) if unicodedata.category(c)[0] == "M")  # vowel signs, accents
_WORD = re.compile(rf"[{_NO_SPACES}]|(?:[^\W_{_NO_SPACES}]|[{_MARKS}])+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_IN_NUMBER = re.compile(r"(?<=[0-9])(?:[.:/](?=[0-9])|,(?=[0-9])(?![0-9]{3}(?![0-9])))|(?<![\w.])[-−](?=\.?[0-9])")
_MARK = re.compile(r"[^\w\s]|_")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？؟।]+")
_TITLES = frozenset(
    {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "eg", "ie", "no", "fig", "inc", "ltd", "jr", "sr"}
)
LONG_WORD = 24
"""Letters after which a run without a break is cut into pieces by `pieces`; few words of any language are longer."""


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; in scripts that write no spaces, each character."""
    return _WORD.findall(text.casefold())


def pieces(text: str) -> list[str]:
    """As `words`, with runs of more than `LONG_WORD` characters cut in pieces of 8, so that no repetition hides in
    them."""
    found: list[str] = []
    for word in words(text):
        found.extend([word] if len(word) <= LONG_WORD else (word[i : i + 8] for i in range(0, len(word), 8)))
    return found


def normal(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no English articles, single spaces.

    Other than there, a sign, a decimal point, and what else stands inside a number is kept: -5 is not 5, and 1.5 is
    not 15. A thousands separator goes.
    """
    kept = {m.start() for m in _IN_NUMBER.finditer(text)}

    def drop(match: re.Match[str]) -> str:
        mark = match.group()
        if match.start() in kept:
            return "-" if mark == "−" else mark
        return "" if mark.isascii() or unicodedata.category(mark)[0] == "P" else mark

    return " ".join(_ARTICLE.sub(" ", _MARK.sub(drop, text).casefold()).split())


def same(text: str, gold: str) -> bool:
    """True if both have one normal form; a gold text of nothing but marks and articles is compared as it is written."""
    right = normal(gold)
    return normal(text) == right if right else text.split() == gold.split()


def overlap_f1(text: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words of the normal forms, counted with multiplicity.

    Returns:
        A number in [0, 1]; where one of the texts has no words, 1 if both have none, else 0.
    """
    given, right = words(normal(text)), words(normal(gold))
    if not given or not right:
        return float(same(text, gold))
    shared = sum((Counter(given) & Counter(right)).values())
    return 2 * shared / (len(given) + len(right))


def sentences(text: str) -> list[str]:
    """Sentences by their closing marks; a line break between paragraphs, list items and headings ends one too.

    Common abbreviations ("Dr.", "e.g."), initials and decimal points end none.
    """
    found: list[str] = []
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            before = line[max(start, match.start() - 12) : match.start()].rpartition(" ")[2].lstrip("(\"'").lower()
            if match.group() == "." and match.end() < len(line):
                initial = len(before) == 1 and before.isalpha() and before != "i"
                if (
                    before.replace(".", "") in _TITLES
                    or initial
                    or ("." in before and before.replace(".", "").isalpha())
                ):
                    continue
            found.append(line[start : match.end()].strip())
            start = match.end()
        found.append(line[start:].strip())
    return [s for s in found if any(c.isalnum() for c in s)]
