"""Completions that repeat each other: exact copies, and text that the completions of many prompts share.

    repeats(rollouts, rows).coverage      # median share of a completion's word 5-grams that are common

A word 5-gram is common when it stands in the completions of at least a fifth of the prompts (and of three): what
those prompts do not have in common, a completion that speaks to its prompt does not share with them. Linear in the
length of the texts; a sample of whole groups is read. Texts of fewer than 12 words are compared whole only.

Source: shingles (Broder 1997), with the document frequency of information retrieval. It does not judge content.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligntune.rewards.audit.table import Integers, Rollouts

SHINGLE = 5
COMMON_SHARE = 0.2
"""A fifth of the prompts. Ours: far above what chance or a phrase such as "let us see" reaches."""
LEAST_PROMPTS = 10
LEAST_WORDS = 12
SAMPLE = 1500
"""Rows read at most."""


@dataclass(frozen=True)
class Repeats:
    """How much the completions of some rows repeat each other.

    Attributes:
        rows: rows read.
        prompts: distinct prompts among them.
        in_group: share of rows whose text another row of their group has.
        across: share of rows whose text a row of another prompt has.
        same_groups: share of groups whose texts are all equal, among groups of at least two rows.
        groups: number of such groups looked at.
        most_common: the most frequent text.
        most_common_share: share of prompts that have it.
        coverage: median share of a text's 5-grams that are common; None with too few prompts or only short texts.
        templated: rows by their coverage, highest first, at most three.
        shared: a common 5-gram, the most frequent one; "" if there is none.
    """

    rows: int
    prompts: int
    in_group: float
    across: float
    same_groups: float
    groups: int
    most_common: str
    most_common_share: float
    coverage: float | None
    templated: list[int]
    shared: str


def repeats(rollouts: Rollouts, rows: Integers) -> Repeats | None:
    """Repetition among `rows` (indices); None where there are none."""
    import numpy as np

    rows = _sample(rollouts, rows)
    if not len(rows):
        return None
    texts = [" ".join(rollouts.completion[i].split()) for i in rows]
    prompts = [rollouts.prompt[i] for i in rows]
    by_text: dict[str, set[str]] = {}
    for text, prompt in zip(texts, prompts, strict=True):
        by_text.setdefault(text, set()).add(prompt)
    groups: dict[int, list[str]] = {}
    for text, i in zip(texts, rows, strict=True):
        groups.setdefault(int(rollouts.group[i]), []).append(text)
    counted = {g: Counter(members) for g, members in groups.items()}
    several = [members for members in groups.values() if len(members) > 1]
    most = max(by_text, key=lambda text: len(by_text[text]))
    count = len(set(prompts))
    covered, shared = _coverage(texts, prompts, count)
    order = sorted(covered, key=lambda j: -covered[j])[:3]
    return Repeats(
        rows=len(rows),
        prompts=count,
        in_group=float(np.mean([counted[int(rollouts.group[i])][t] > 1 for t, i in zip(texts, rows, strict=True)])),
        across=float(np.mean([len(by_text[text]) > 1 for text in texts])),
        same_groups=float(np.mean([len(set(m)) == 1 for m in several])) if several else 0.0,
        groups=len(several),
        most_common=most,
        most_common_share=len(by_text[most]) / count,
        coverage=float(np.median(list(covered.values()))) if covered else None,
        templated=[int(rows[j]) for j in order],
        shared=shared,
    )


def _sample(rollouts: Rollouts, rows: Integers) -> Any:
    """At most `SAMPLE` of the rows, by whole groups spread evenly."""
    import numpy as np

    if len(rows) <= SAMPLE:
        return rows
    groups = np.unique(rollouts.group[rows])
    kept = groups[:: -(-len(rows) // SAMPLE)]
    return rows[np.isin(rollouts.group[rows], kept)]


def _coverage(texts: list[str], prompts: list[str], count: int) -> tuple[dict[int, float], str]:
    """Index of each long text to the share of its 5-grams that are common, and the most frequent 5-gram."""
    if count < LEAST_PROMPTS:
        return {}, ""
    grams: dict[int, list[tuple[str, ...]]] = {}
    for j, text in enumerate(texts):
        words = text.lower().split()
        if len(words) >= LEAST_WORDS:
            grams[j] = list(zip(*(words[k:] for k in range(SHINGLE)), strict=False))
    by_prompt: dict[str, set[tuple[str, ...]]] = {}
    for j, found in grams.items():
        by_prompt.setdefault(prompts[j], set()).update(found)
    if len(by_prompt) < LEAST_PROMPTS:
        return {}, ""
    frequency = Counter(gram for found in by_prompt.values() for gram in found)
    least = max(3.0, COMMON_SHARE * len(by_prompt))
    common = {gram for gram, times in frequency.items() if times >= least}
    top = max(common, key=lambda gram: frequency[gram], default=())
    return {j: sum(g in common for g in found) / len(found) for j, found in grams.items()}, " ".join(top)
