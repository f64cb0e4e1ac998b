"""Which canonical rows stay: by length, language, and whether an earlier row says the same.

| key | leaves out |
|---|---|
| `min_chars`, `max_chars` | rows of fewer or more characters, prompt and answers together |
| `deduplicate: exact` | rows equal to an earlier one but for case and white space |
| `deduplicate: near` | rows that share at least `near_threshold` of their word triples with an earlier row: |
| | |A and B| / |A or B|, estimated by MinHash with 128 permutations (Broder 1997; datasketch) |
| `languages` | rows that py3langid takes for another language |

>>> chosen = RowFilter(FilterConfig(max_chars=5))
>>> chosen.check({"text": "too long"})
Traceback (most recent call last):
aligntune.data.messages.RowProblem: longer than filter.max_chars = 5 characters

A near duplicate is one of a row that stayed, so chains of ever less similar rows do not all go. The estimate's standard
error is about sqrt(s (1 - s) / 128), 0.035 at s = 0.8. Rows of fewer than three words are compared exactly.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
from typing import Any

from aligntune import errors
from aligntune.core.config import FilterConfig
from aligntune.data.messages import RowProblem, spoken
from aligntune.errors import ConfigurationError
from aligntune.grading.language import detect, languages
from aligntune.registry import nearest

PERMUTATIONS = 128


def row_text(row: dict[str, Any]) -> str:
    """Everything a canonical row says, its parts apart by line breaks."""
    parts = []
    for name in ("text", "messages", "prompt", "completion", "chosen", "rejected", "tokens"):
        value = row.get(name)
        if isinstance(value, str):
            parts.append(value)
        elif name == "tokens" and value:
            parts.append(" ".join(value))
        elif value:
            parts += [spoken(message) for message in value]
    return "\n".join(parts)


class RowFilter:
    """The filter of one source; it remembers the rows that it let pass, where duplicates are to go.

    Raises:
        ConfigurationError: the limits contradict each other, or a threshold has no meaning.
        errors.EnvironmentError: the library for near duplicates or languages is missing.
    """

    def __init__(self, config: FilterConfig) -> None:
        self.config = config
        self.active = config != FilterConfig()
        self._seen: set[bytes] = set()
        self._near: Any = None
        self._numbers = itertools.count()
        _check(config)
        if config.deduplicate == "near":
            try:
                datasketch = importlib.import_module("datasketch")
            except ModuleNotFoundError as error:
                raise errors.EnvironmentError(
                    "filter.deduplicate: near needs the package datasketch, which is not installed",
                    hint="run: pip install 'aligntune[data]'",
                ) from error
            self._datasketch = datasketch
            self._near = datasketch.MinHashLSH(threshold=config.near_threshold, num_perm=PERMUTATIONS)
            self._sketches: dict[int, Any] = {}
        if config.languages:
            known = languages()
            for code in config.languages:
                if code not in known:
                    raise ConfigurationError(
                        f"filter.languages: '{code}' is no language that py3langid knows",
                        hint="ISO 639-1 codes: " + nearest(code, known),
                    )

    def check(self, row: dict[str, Any]) -> None:
        """Let a canonical row pass.

        Raises:
            RowProblem: it is to be left out; the text is the reason.
        """
        if not self.active:
            return
        c, text = self.config, row_text(row)
        if c.min_chars is not None and len(text) < c.min_chars:
            raise RowProblem(f"shorter than filter.min_chars = {c.min_chars} characters")
        if c.max_chars is not None and len(text) > c.max_chars:
            raise RowProblem(f"longer than filter.max_chars = {c.max_chars} characters")
        if c.languages and detect(text) not in c.languages:
            raise RowProblem(f"in another language than {', '.join(c.languages)} (filter.languages)")
        if c.deduplicate != "none":
            self._deduplicate(text)

    def _deduplicate(self, text: str) -> None:
        words = text.lower().split()
        digest = hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).digest()
        if digest in self._seen:
            raise RowProblem(f"a duplicate of an earlier row (filter.deduplicate: {self.config.deduplicate})")
        if self._near is not None and len(words) >= 3:
            self._sketch(words)
        self._seen.add(digest)

    def _sketch(self, words: list[str]) -> None:
        sketch = self._datasketch.MinHash(num_perm=PERMUTATIONS, seed=1)
        triples = set(zip(words, words[1:], words[2:], strict=False))
        sketch.update_batch([" ".join(triple).encode("utf-8", "surrogatepass") for triple in sorted(triples)])
        near = self._near.query(sketch)
        if any(sketch.jaccard(self._sketches[i]) >= self.config.near_threshold for i in near):
            raise RowProblem("a near duplicate of an earlier row (filter.deduplicate: near)")
        key = next(self._numbers)
        self._near.insert(key, sketch)
        self._sketches[key] = sketch


def _check(config: FilterConfig) -> None:
    if config.min_chars and config.max_chars and config.min_chars > config.max_chars:
        raise ConfigurationError(
            f"filter.min_chars = {config.min_chars} is more than filter.max_chars = {config.max_chars}",
            hint="no row could stay; correct one of the two",
        )
    if config.near_threshold != FilterConfig().near_threshold and config.deduplicate != "near":
        raise ConfigurationError(
            "filter.near_threshold has no effect without `filter.deduplicate: near`",
            hint="set deduplicate: near, or remove near_threshold",
        )
