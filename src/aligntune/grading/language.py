"""The language of a text, by py3langid.

    detect("Das ist ein kurzer Satz.")                            # 'de'
    language_share("Das ist es. " * 40 + "This is it. " * 40, "de")    # about 0.5

The text is judged in lower case, in windows of 400 characters spread over it, at most 50 of them, so that the time does
not grow with its length. `detect` gives the language of most letters.

Source: py3langid (naive Bayes over byte n-grams, more than 100 languages; Lui and Baldwin 2012), an extra. It cannot
tell the language of a few words, nor of code.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from aligntune import errors

WINDOW = 400
"""Characters that are judged at once: enough for a sure verdict, short enough to find a change of language."""
MAX_WINDOWS = 50


@cache
def identifier() -> Any:
    """py3langid's model, loaded once (half a second).

    Raises:
        errors.EnvironmentError: it is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as e:
        raise errors.EnvironmentError(
            "finding the language of a text needs the package py3langid, which is not installed",
            hint="run: pip install 'aligntune[rewards]'",
        ) from e
    return LanguageIdentifier.from_model_file(MODEL_FILE)


def languages() -> frozenset[str]:
    """The codes that can be found (ISO 639-1, such as `en`)."""
    return frozenset(str(name) for name in identifier().labels)


def language_counts(text: str) -> Counter[str]:
    """Letters by language, over the windows of the text; empty for a text without letters."""
    step = WINDOW if len(text) <= WINDOW * MAX_WINDOWS else -(-len(text) // MAX_WINDOWS)
    found: Counter[str] = Counter()
    for start in range(0, len(text), step):
        window = text[start : start + WINDOW].lower()
        letters = sum(c.isalpha() for c in window)
        if letters:
            found[str(identifier().classify(window.encode("utf-8", "replace").decode())[0])] += letters
    return found


def detect(text: str) -> str | None:
    """The code of the language of most letters; None for a text without letters."""
    counts = language_counts(text)
    return counts.most_common(1)[0][0] if counts else None


def language_share(text: str, language: str) -> float:
    """Share of the letters that stand in windows of this language, in [0, 1]; 0 for a text without letters."""
    counts = language_counts(text)
    return counts[language] / counts.total() if counts else 0.0
