"""Checks of the rows as text, over every row: left out, repeated, equal pairs, length bias, labels, held-out overlap.

>>> length_bias([10, 12, 9], [5, 6, 7]).status
'pass'

Overlap with the held-out rows is looked for in three ways, from strict to loose: equal text; equal letters and digits
(`normalise`); and 13 words in a row in common, as in GPT-3's decontamination (Brown et al. 2020, arXiv:2005.14165,
appendix C) with this change: 13 words half of whose 5-word parts stand in several held-out rows are an instruction and
not content, and do not count. Row numbers count usable rows from 1.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.eval.stats import mcnemar_exact
from aligntune.preflight.subject import CONTENT, LABELLED, Subject, columns_of_text, said
from aligntune.preflight.verdict import Status, Verdict, excerpt, numbers, percent

GRAM = 13
"""Words in a row that two texts must share (GPT-3, appendix C)."""
PART, COMMON = 5, 3
"""Parts of so many words that stand in so many held-out rows belong to the instruction, and prove nothing."""
BIASED, CERTAIN = 0.6, 0.01
"""Length bias is told from this share of longer chosen answers, where it is chance with at most this probability."""
_SAME = ("the same", "empty or null", "part before an answer")


def checks(subject: Subject, *, quick: bool = False) -> list[Verdict]:
    """Every check of this module that applies; `quick` leaves out the search for common word sequences."""
    if subject.train is None:
        return []
    found = [left_out(subject), duplicates(subject)]
    if subject.schema is Schema.PREFERENCE:
        chosen, rejected = subject.columns(("chosen", "rejected"))
        found += [
            equal_answers(subject, chosen, rejected),
            length_bias(list(map(len, chosen)), list(map(len, rejected))),
        ]
    if subject.schema in LABELLED:
        found += labels(subject)
    if subject.evaluation is not None:
        found.append(overlap(subject, grams=not quick))
    return found


def left_out(subject: Subject) -> Verdict:
    """Rows that the data layer could not use."""
    skipped, usable = subject.train.skipped, len(subject.train.dataset)
    if not skipped:
        return Verdict("rows-left-out", "data", "pass", f"none of {usable} rows; format {subject.train.format}")
    return Verdict(
        "rows-left-out",
        "data",
        "fail" if len(skipped) > usable else "warn",
        f"{percent(len(skipped), usable + len(skipped))} rows cannot be used",
        _reasons(skipped),
        "mend or remove them, or set `format` and `column_mapping` if the columns are read wrongly",
        {"left_out": len(skipped), "rows": usable + len(skipped)},
    )


def _reasons(skipped: Sequence[dict[str, Any]]) -> list[str]:
    """Why rows were left out, with the first places of each reason."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for row in skipped:
        places[row["reason"]].append(str(row["place"]))
    return [f"{len(p)}: {why} ({', '.join(p[:3])}{', ...' if len(p) > 3 else ''})" for why, p in places.items()]


def equal_answers(subject: Subject, chosen: Sequence[str], rejected: Sequence[str]) -> Verdict:
    """Pairs whose answers are empty or the same, so that they teach nothing: left out, or equal but for white space
    and case."""
    gone = [row for row in subject.train.skipped if any(part in row["reason"] for part in _SAME)]
    lost = len(gone)
    near = [i for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if normalise(a) == normalise(b)]
    blank = [i for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if not a.strip() or not b.strip()]
    total = len(chosen) + lost
    if not lost and not near and not blank:
        return Verdict("equal-answers", "data", "pass", f"chosen and rejected differ in all {total} pairs")
    evidence = [f"left out, {line}" for line in _reasons(gone)]
    if near:
        evidence.append(f"equal but for white space, case and signs: {numbers(near)}: {excerpt(chosen[near[0]])!r}")
    if blank:
        evidence.append(f"blank: {numbers(blank)}")
    bad = lost + len(set(near) | set(blank))
    return Verdict(
        "equal-answers",
        "data",
        "fail" if bad > 0.5 * total else "warn",
        f"in {percent(bad, total)} pairs an answer is empty or both are the same",
        evidence,
        "remove these pairs",
        {"rows": sorted(set(near) | set(blank)), "left_out": lost},
    )


def length_bias(chosen: Sequence[int], rejected: Sequence[int]) -> Verdict:
    """Whether chosen answers are longer than rejected ones more often than chance would make them.

    Two-sided binomial test of n_longer against 1/2 over the pairs of unequal length.

    Args:
        chosen, rejected: characters of the two answers, for each pair.
    """
    longer = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    shorter = sum(a < b for a, b in zip(chosen, rejected, strict=True))
    if not longer + shorter:
        return Verdict("length-bias", "data", "pass", "all pairs have answers of equal length")
    share, p = longer / (longer + shorter), mcnemar_exact(longer, shorter)
    told = f"chosen is the longer answer in {percent(longer, longer + shorter)} pairs (binomial p = {p:.2g})"
    data = {"longer": longer, "shorter": shorter, "share": share, "p": p}
    if max(share, 1 - share) < BIASED or p > CERTAIN:
        return Verdict("length-bias", "data", "pass", told, data=data)
    way = "longer" if share > 0.5 else "shorter"
    mean = sum(chosen) / len(chosen), sum(rejected) / len(rejected)
    return Verdict(
        "length-bias",
        "data",
        "warn",
        f"{told}: the model can learn to write {way} in place of better",
        [f"mean characters: chosen {mean[0]:.0f}, rejected {mean[1]:.0f}"],
        "balance the lengths, or use a loss that counts by token (simpo, or dpo with a length-normalised loss)",
        data,
    )


def duplicates(subject: Subject) -> Verdict:
    """Rows that stand in the data more than once; with labels, texts that stand with different ones."""
    rows = subject.train.dataset
    texts = list(zip(*subject.columns((*CONTENT, "tools")), strict=True))
    keys = (
        [(*t, str(label)) for t, label in zip(texts, rows["label"], strict=True)]
        if "label" in rows.column_names
        else texts
    )
    first: dict[Any, int] = {}
    again = [i for i, key in enumerate(keys) if first.setdefault(key, i) != i]
    conflicts = _conflicts(keys) if subject.schema in LABELLED and keys is not texts else set()
    unlike = [i for i, text in enumerate(texts) if text in conflicts]
    if not again and not unlike:
        return Verdict("duplicates", "data", "pass", f"no row of {len(keys)} stands twice")
    evidence = []
    if again:
        i = again[0]
        evidence.append(
            f"row {i + 1} is row {first[keys[i]] + 1} again: {excerpt(subject.text(i))!r}; {numbers(again)}"
        )
    if unlike:
        evidence.append(f"one text, several labels: {numbers(unlike)}: {excerpt(subject.text(unlike[0]))!r}")
    said_of = percent(len(again), len(keys))
    return Verdict(
        "duplicates",
        "data",
        "warn",
        f"{said_of} rows are repeats" + (f", {len(unlike)} have a text with several labels" if unlike else ""),
        evidence,
        "remove them, or repeat rows on purpose with num_epochs",
        {"rows": again[:1000], "conflicts": unlike[:1000]},
    )


def _conflicts(keys: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Texts that stand with more than one label."""
    seen: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for key in keys:
        seen[key[:-1]].add(key[-1])
    return {text for text, found in seen.items() if len(found) > 1}


# ---- labels ----------------------------------------------------------------------------------------------------


def labels(subject: Subject) -> list[Verdict]:
    """Labels out of the list, and classes that a split lacks."""
    listed = _listed(subject)
    train = _counts(subject.train.dataset)
    held = _counts(subject.evaluation.dataset) if subject.evaluation is not None else None
    return [_out_of_range(subject, train, listed), _missing_classes(train, held, listed)]


def _listed(subject: Subject) -> list[str] | None:
    """The label list where one is given: `task.labels`, or that of the model's head."""
    from aligntune.utils.classifier_loader import stored_labels

    params: Any = subject.config.algorithm
    if params.labels is not None:
        return list(params.labels)
    stored = stored_labels(subject.config.model, params.head, listed=False, replaced=params.new_head)
    return stored if isinstance(stored, list) else None


def _counts(rows: Any) -> Counter[str]:
    if "label" in rows.column_names:
        return Counter(map(str, rows["label"]))
    return Counter(str(tag) for tags in rows["tags"] for tag in tags)


def _out_of_range(subject: Subject, train: Counter[str], listed: list[str] | None) -> Verdict:
    if listed is None:
        return Verdict("labels", "data", "pass", f"{len(train)} labels, taken from the rows")
    known = set(listed) | {str(i) for i in range(len(listed))}
    wrong = {name: n for name, n in train.items() if name not in known}
    if not wrong:
        return Verdict("labels", "data", "pass", f"all {sum(train.values())} labels are among the {len(listed)} listed")
    rows = subject.train.dataset
    column = rows["label"] if "label" in rows.column_names else rows["tags"]
    at = [i for i, v in enumerate(column) if (set(map(str, v)) if isinstance(v, list) else {str(v)}) & set(wrong)]
    return Verdict(
        "labels",
        "data",
        "fail",
        f"{sum(wrong.values())} labels are not among the {len(listed)} of the list",
        [f"{name!r}: {n} times" for name, n in list(wrong.items())[:5]] + [numbers(at)],
        "mend the rows, or add the labels to task.labels",
        {"labels": wrong, "rows": at[:100]},
    )


def _missing_classes(train: Counter[str], held: Counter[str] | None, listed: list[str] | None) -> Verdict:
    never = sorted(set(held or ()) - set(train))
    unseen = sorted(set(train) - set(held)) if held is not None else []
    empty = [n for n in listed or [] if n not in train and not (train and all(k.isdigit() for k in train))]
    data = {"not_trained": never, "not_evaluated": unseen, "without_rows": empty}
    few = min(train.items(), key=lambda item: item[1])
    if not never and not unseen and not empty:
        said_of = f"all {len(train)} classes stand in " + ("both splits" if held is not None else "the training rows")
        return Verdict("classes", "data", "pass", f"{said_of}; the rarest is {few[0]!r} with {few[1]}", data=data)
    evidence = [
        f"{what}: {', '.join(names[:6])}" + (" ..." if len(names) > 6 else "")
        for what, names in (
            ("evaluated, never trained", never),
            ("trained, never evaluated", unseen),
            ("no row", empty),
        )
        if names
    ]
    status: Status = "fail" if never else "warn"
    reason = (
        f"{len({*never, *unseen, *empty})} of {len({*train, *(held or ()), *(listed or ())})} classes miss in a split"
    )
    fix = "split by class (a stratified split), or remove the class from the list"
    return Verdict("classes", "data", status, reason, evidence, fix, data)


# ---- overlap with the held-out rows ----------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Letters and digits alone, in lower case, words apart by one space."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def asked(rows: Any, schema: Schema) -> list[str]:
    """What a row asks: the prompt, or the text where there is none (of a conversation what comes before its answer)."""
    if "prompt" in rows.column_names:
        return [_question(value) for value in rows["prompt"]]
    if "messages" in rows.column_names:
        return [_question([m for m in value if m["role"] != "assistant"]) for value in rows["messages"]]
    return columns_of_text(rows, tuple(n for n in ("text", "tokens", "input_ids") if n in rows.column_names)[:1])[0]


def _question(value: Any) -> str:
    """A prompt without its system message, which rows share."""
    return said([m for m in value if m["role"] != "system"]) if isinstance(value, list) else said(value)


def overlap(subject: Subject, *, grams: bool = True) -> Verdict:
    """Held-out rows that stand among the training rows."""
    train, held = (asked(p.dataset, subject.schema) for p in (subject.train, subject.evaluation))
    exact = _places(train, held)
    loose = _places([normalise(t) for t in train], [normalise(t) for t in held])
    near = {i: at for i, at in (common_words(train, held) if grams else {}).items() if i not in loose}
    same = {i: at for i, at in loose.items() if i not in exact}
    ways = f"exact and normalised text{f', {GRAM} words in a row' if grams else ''}"
    if not exact and not same and not near:
        return Verdict("train-in-eval", "data", "pass", f"none of {len(held)} held-out rows is trained on ({ways})")
    evidence = [
        f"{what}: {percent(len(hits), len(held))}, such as held-out row {i + 1} = training row {at + 1}: "
        f"{excerpt(held[i], 50)!r}"
        for what, hits in (("equal text", exact), ("equal but for signs and case", same), (f"{GRAM} words", near))
        for i, at in list(hits.items())[:1]
    ]
    sure = len(exact) + len(same)
    status: Status = "fail" if sure >= max(0.01 * len(held), 1) else "warn"
    return Verdict(
        "train-in-eval",
        "data",
        status,
        f"{percent(sure + len(near), len(held))} held-out rows stand in the training rows",
        evidence,
        "remove them from the training rows; a score on them measures memory",
        {
            "exact": sorted(exact), "normalised": sorted(same), "grams": sorted(near),
            "pairs": [[i, at] for i, at in sorted({**near, **same, **exact}.items())][:1000],
        },
    )  # fmt: skip


def _places(train: Sequence[str], held: Sequence[str]) -> dict[int, int]:
    """Held-out row to the first training row with the same text."""
    where: dict[str, int] = {}
    for i, text in enumerate(train):
        where.setdefault(text, i)
    return {i: where[text] for i, text in enumerate(held) if text and text in where}


def common_words(train: Sequence[str], held: Sequence[str], size: int = GRAM) -> dict[int, int]:
    """Held-out row to the first training row with `size` words in a row in common.

    A sequence of words is a 64-bit polynomial hash of word numbers, so that 10^7 of them are looked up at once; what is
    found is compared word by word.
    """
    import numpy as np

    known: dict[str, int] = {}
    wanted = [normalise(text).split() for text in held]
    numbered = [np.array([known.setdefault(w, len(known) + 1) for w in words], dtype=np.uint64) for words in wanted]
    parts = [_hashes(row, PART).tolist() for row in numbered]
    counted = Counter(h for row in parts for h in set(row))
    owners: dict[int, tuple[int, int]] = {}
    for i, row in enumerate(numbered):
        often = [counted[h] >= COMMON for h in parts[i]]
        for k, h in enumerate(_hashes(row, size).tolist()):
            inside = often[k : k + size - PART + 1]
            if sum(inside) * 2 < len(inside):
                owners.setdefault(h, (i, k))
    if not owners:
        return {}
    keys, found = np.array(sorted(owners), dtype=np.uint64), dict[int, int]()
    for at, text in enumerate(train):
        words = normalise(text).split()
        if len(words) < size:
            continue
        row = np.array([known.get(w, 0) for w in words], dtype=np.uint64)
        grams = _hashes(row, size)
        place = np.minimum(np.searchsorted(keys, grams), len(keys) - 1)
        for k in np.nonzero(keys[place] == grams)[0].tolist():
            i, start = owners[int(grams[k])]
            if i not in found and wanted[i][start : start + size] == words[k : k + size]:
                found[i] = at
    return found


def _hashes(row: Any, size: int) -> Any:
    """Polynomial hashes of every `size` consecutive numbers; arithmetic modulo 2^64."""
    import numpy as np

    if len(row) < size:
        return np.zeros(0, dtype=np.uint64)
    total = np.zeros(len(row) - size + 1, dtype=np.uint64)
    for k in range(size):
        total = total * np.uint64(0x9E3779B97F4A7C15) + row[k : len(row) - size + 1 + k]
    return total
