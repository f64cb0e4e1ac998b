"""What a program can decide of a judged quality: gold answers, options, instructions, times, checkable parts.

    by_gold("So the answer is yes.", {"reference": "Yes"})                          # 1.0
    parts("Take 5 mg. [1]", {"context": "The dose is 5 mg."}, units=["mg"])         # [1.0]

None means that the row has nothing to decide by, and leaves the row to a judge. A gold answer of more than eight words
is no answer that can be matched, and is None too.

Source: accuracy on multiple choice as MMLU counts it (Hendrycks et al. 2021, arXiv:2009.03300); IFEval
(arXiv:2311.07911). It does not judge an explanation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aligntune.grading.choice import find_choice, gold_label, read_options
from aligntune.grading.extract import find_answer, strip_reasoning
from aligntune.grading.instructions import check, read_instructions
from aligntune.grading.text import normal, same, words
from aligntune.rewards.base import count
from aligntune.rewards.judges.temporal import in_order, time_checks
from aligntune.rewards.signature import gold_column

MAX_GOLD_WORDS = 8
_YES_NO = frozenset({"yes", "no", "true", "false"})
Row = Mapping[str, Any]


def by_gold(text: str, row: Row) -> float | None:
    """1 if the text gives the row's gold option (with `choices`) or its short gold answer, 0 if not.

    A short answer is given by a marked final answer, by the whole text, or (yes, no, true, false) by the first word of
    the first or last line, which must not contradict each other.
    """
    gold = gold_column(row)
    reference = row[gold] if gold is not None else None
    if row.get("choices") is not None and reference is not None:
        options = read_options(row["choices"])
        right = gold_label(reference, options)
        if right is None:
            count("gold_unparseable")
            return None
        return float(find_choice(text, options) == right)
    values = list(reference) if isinstance(reference, (list, tuple)) else [reference]
    short = [str(v) for v in values if v is not None and str(v).strip() and len(words(str(v))) <= MAX_GOLD_WORDS]
    return float(any(_gives(text, value) for value in short)) if short else None


def by_instructions(text: str, row: Row) -> float | None:
    """Share of the row's IFEval instructions that the text follows, strictly; None for a row without any."""
    given = read_instructions(row.get("instruction_id_list"), row.get("kwargs"))
    if not given:
        return None
    body = strip_reasoning(text)
    return sum(check(name, body, arguments) for name, arguments in given) / len(given)


def by_times(text: str, row: Row) -> float | None:
    """Share of the statements about time that can be so, and of the row's `events` that stand in their order."""
    body, events = strip_reasoning(text), row.get("events")
    found = time_checks(body)
    if isinstance(events, Sequence) and not isinstance(events, str):
        found += in_order(body, [str(event) for event in events])
    return sum(found) / len(found) if found else None


def parts(
    text: str,
    row: Row,
    *,
    disclaimer: Sequence[str] = (),
    units: Sequence[str] = (),
    citations: bool = False,
) -> list[float]:
    """The checkable parts of an answer in a domain, each in [0, 1]; those that do not apply to the row are left out.

    Args:
        row: `context` holds the sources: a text, a list of texts, or name to text.
        disclaimer: texts of which one must stand in the answer, without regard to case and punctuation.
        units: every quantity in one of these must stand in the context with the same number and unit: the share that
            does. Does not apply to an answer without such quantities, or a row without context.
        citations: the score of `citation_check` against the context.
    """
    body = strip_reasoning(text)
    found = []
    if disclaimer:
        plain = f" {normal(body)} "
        found.append(float(any(f" {normal(d)} " in plain for d in disclaimer)))
    context = row.get("context")
    if units and context:
        said, known = _quantities(body, units), set(_quantities(_flat(context), units))
        if said:
            found.append(sum(q in known for q in said) / len(said))
    if citations and context:
        from aligntune.rewards.builtin.instructions import citation_check

        found.append(citation_check(text, context))
    return found


def _gives(text: str, gold: str) -> bool:
    found = find_answer(text, gold)
    if found.refused:
        return False
    if found.answer is not None and same(found.answer, gold):
        return True
    body = strip_reasoning(text).strip()
    right = normal(gold)
    if right in _YES_NO:
        lines = body.splitlines() or [""]
        led = {first for line in (lines[0], lines[-1]) if (first := normal(line[:80]).partition(" ")[0]) in _YES_NO}
        return led == {right}
    return len(body) <= 20 * (len(gold) + 20) and same(body, gold)


def _quantities(text: str, units: Sequence[str]) -> list[tuple[str, str]]:
    names = "|".join(re.escape(u) for u in sorted(units, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w.])([0-9][0-9,]{{0,20}}(?:\.[0-9]{{1,20}})?)\s?({names})(?!\w)")
    return [(number.replace(",", ""), unit) for number, unit in pattern.findall(text[:50_000])]


def _flat(context: Any) -> str:
    if isinstance(context, Mapping):
        context = list(context.values())
    return context if isinstance(context, str) else "\n".join(str(part) for part in context)
