"""Checks of the rows as trained: terminators, padding, BOS, masks, and what the length limits cut.

They read what the training library made of the run's rows (`preflight.trained`), so a mistake is seen wherever it comes
from: the data, the template, the tokenizer or the collator.

>>> terminator(batch, subject).reason
'each of 64 rows ends with a trained <|im_end|>'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.data.tokens import Tokens, common_prefix
from aligntune.preflight.subject import Subject
from aligntune.preflight.templates import special_ids
from aligntune.preflight.trained import IGNORED, Batch, TrainedRow
from aligntune.preflight.verdict import Verdict, excerpt, numbers, percent

MANY = 0.5
"""Share of rows from which a loss is no accident but the rule."""
FEW = 0.01
"""Share of cut rows up to which it is told and not warned of."""


# ---- what the collator made ------------------------------------------------------------------------------------


def terminator(batch: Batch, subject: Subject) -> Verdict:
    """Whether the token that ends an answer is in the loss."""
    tokenizer = subject.tokenizer
    ends = special_ids(tokenizer) - {tokenizer.bos_token_id}
    looked = [row for row in batch.rows if len(row.ids) < subject.limit and any(row.trained)]
    wrong = [row for row in looked if not _ended(row, ends)]
    if not looked:
        return Verdict("terminator", "rows", "skip", "every sampled row is cut before its end")
    found = {row.tokens[_last(row)] for row in looked if row not in wrong}
    if not wrong:
        shown = " or ".join(sorted(found))
        return Verdict("terminator", "rows", "pass", f"each of {len(looked)} answers ends with a trained {shown}")
    tail = "".join(wrong[0].tokens[-8:])
    return Verdict(
        "terminator",
        "rows",
        "fail" if len(wrong) > MANY * len(looked) else "warn",
        f"in {percent(len(wrong), len(looked))} answers no terminator is trained: the model would not learn to stop",
        [f"{numbers(r.row for r in wrong)}", f"the end of one: {tail!r}"],
        "use a chat template that ends the assistant's turn with the EOS token, inside its generation marks",
        {"rows": [r.row for r in wrong]},
    )


def _last(row: TrainedRow) -> int:
    """Position of the last trained token that is not white space; -1 for none."""
    return next((i for i in range(len(row.ids) - 1, -1, -1) if row.trained[i] and row.tokens[i].strip()), -1)


def _ended(row: TrainedRow, ends: set[int]) -> bool:
    """Whether each trained stretch of a row ends with a special token."""
    stops, i = [], len(row.ids)
    for k, (here, after) in enumerate(pairwise([*row.trained, False])):
        if here and not after:
            stops.append(k)
    for i in stops:
        while i >= 0 and row.trained[i] and not row.tokens[i].strip():
            i -= 1
        if i < 0 or row.ids[i] not in ends:
            return False
    return True


def padding(batch: Batch, subject: Subject) -> list[Verdict]:
    """Whether padding stands on the right, and masks no real token."""
    tokenizer = subject.tokenizer
    left = [i for i, (_, attention, _) in enumerate(batch.padded) if attention and not attention[0]]
    side = tokenizer.padding_side
    if left or side != "right":
        found = [Verdict(
            "padding-side", "rows", "fail", "training batches are padded on the left",
            [f"tokenizer.padding_side is {side}; {len(left)} of {len(batch.padded)} sequences begin with padding"],
            "remove padding_side from the model's tokenizer_config.json",
        )]  # fmt: skip
    else:
        found = [Verdict("padding-side", "rows", "pass", "right, as training needs it")]
    same = tokenizer.pad_token_id == tokenizer.eos_token_id
    hidden = [row.row for row in batch.rows if _eos_hidden(row, tokenizer.eos_token_id)]
    pad = repr(tokenizer.pad_token)
    if hidden:
        why = "the padding token is the EOS token, and both are masked" if same else "the EOS token is masked"
        found.append(Verdict(
            "padding-token", "rows", "fail", f"{why}: answers learn no end", [numbers(hidden)],
            "give the tokenizer a padding token of its own, or train with a collator that masks by position",
            {"rows": hidden},
        ))  # fmt: skip
    elif same:
        said = f"{pad}, which is the EOS token too; masking goes by position, and EOS stays in the loss"
        found.append(Verdict("padding-token", "rows", "pass", said))
    else:
        found.append(Verdict("padding-token", "rows", "pass", f"{pad}, another than EOS"))
    return found


def _eos_hidden(row: TrainedRow, eos: int | None) -> bool:
    """Whether EOS follows the trained part of a row and is itself left out."""
    return any(row.ids[i] == eos and not row.trained[i] and row.trained[i - 1] for i in range(1, len(row.ids)))


def double_bos(rows: Sequence[TrainedRow], subject: Subject) -> Verdict:
    """Whether a row begins with two BOS tokens: one of the tokenizer, one of the text or the template."""
    bos = subject.tokenizer.bos_token_id
    if bos is None:
        return Verdict("double-bos", "rows", "pass", "the tokenizer has no BOS token")
    twice = [r.row for r in rows if any(a == b == bos for a, b in pairwise(r.ids))]
    if not twice:
        return Verdict("double-bos", "rows", "pass", f"no row has {subject.tokenizer.bos_token} twice")
    return Verdict(
        "double-bos",
        "rows",
        "fail",
        f"{percent(len(twice), len(rows))} rows begin with {subject.tokenizer.bos_token} twice",
        [numbers(twice), f"one begins {''.join(next(r for r in rows if r.row == twice[0]).tokens[:8])!r}"],
        f"take {subject.tokenizer.bos_token} out of the rows or out of the template; the tokenizer adds it",
        {"rows": twice},
    )


def masked_rows(batch: Batch | None, subject: Subject, sizes: Sequence[Lengths] = ()) -> Verdict:
    """Rows in which no token is trained: the library leaves them out, or their loss is 0."""
    lost = set(subject.masked)
    if subject.schema in (Schema.PROMPT_COMPLETION, Schema.PREFERENCE, Schema.UNPAIRED) and subject.loss_on != "all":
        lost |= {s.row for s in sizes if s.shared >= subject.limit}
    if batch is not None:
        lost |= set(batch.asked) - set(batch.kept)
        lost |= {row.row for row in batch.rows if not any(row.trained)}
    looked = len(subject.sample.rows) + len(subject.masked)
    if not lost:
        shared = _share(batch)
        return Verdict("masked-rows", "rows", "pass", f"every row has a trained token{shared}")
    first = min(lost)
    return Verdict(
        "masked-rows",
        "rows",
        "fail" if len(lost) > MANY * looked else "warn",
        f"in {percent(len(lost), looked)} rows no token is trained",
        [numbers(sorted(lost)), f"row {first + 1}: {excerpt(subject.text(first))}"],
        f"raise {subject.limit_key}; where the rows are short, the template renders or marks no answer in them",
        {"rows": sorted(lost)},
    )


def _share(batch: Batch | None) -> str:
    if batch is None or not batch.rows:
        return ""
    trained, total = sum(sum(r.trained) for r in batch.rows), sum(len(r.ids) for r in batch.rows)
    return f"; {trained / total:.0%} of the tokens are in the loss"


def same_tokens(batch: Batch, subject: Subject) -> Verdict:
    """Whether the tokens that this package makes and keeps for a run are those of the library's own preparation."""
    from aligntune.data import render

    part = replace(subject.fitted, dataset=subject.train.dataset.select(batch.kept), notes=[])
    made = render(
        part, subject.schema, subject.tokenizer, max_length=subject.limit, loss_on=subject.loss_on, keep_tokens="cut"
    ).tokens
    ours: list[tuple[list[int], list[bool]]] = []
    if subject.schema is Schema.PREFERENCE:
        for side in ("chosen_ids", "rejected_ids"):
            ours += [_joined(p, a, subject.limit) for p, a in zip(made["prompt_ids"], made[side], strict=True)]
    elif subject.schema is Schema.UNPAIRED:
        both = zip(made["prompt_ids"], made["completion_ids"], strict=True)
        ours = [_joined(p, a, subject.limit) for p, a in both]
    else:
        both = zip(made["input_ids"], made["labels"], strict=True)
        ours = [(list(ids), [label != IGNORED for label in labels]) for ids, labels in both]
    theirs = [(row.ids, row.trained) for row in batch.rows]
    wrong = [row.row for row, a, b in zip(batch.rows, ours, theirs, strict=True) if a != b]
    if not wrong:
        return Verdict(
            "same-tokens", "rows", "pass", f"{len(ours)} sequences are those of the library's own preparation"
        )
    told = f"{percent(len(wrong), len(ours))} sequences differ from the library's own preparation"
    fix = "report this with the model's name: its tokenizer is used in another way than expected"
    return Verdict("same-tokens", "rows", "fail", told, [numbers(wrong)], fix, {"rows": wrong})


def _joined(prompt: list[int], answer: list[int], limit: int) -> tuple[list[int], list[bool]]:
    return (prompt + answer)[:limit], ([False] * len(prompt) + [True] * len(answer))[:limit]


# ---- lengths ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Tokens of one row before any limit: of the prompt alone, of the whole, and how many first ones they share."""

    row: int
    prompt: int
    whole: int
    shared: int


def lengths(subject: Subject) -> list[Lengths]:
    """Tokens of the sample's rows."""
    rows, schema = subject.fitted.dataset, subject.schema
    if "input_ids" in rows.column_names:
        return [Lengths(n, 0, len(ids), 0) for n, ids in zip(subject.sample.rows, rows["input_ids"], strict=True)]
    tokens = Tokens(subject.tokenizer, text=schema is Schema.TEXT, training_template=subject.loss_on == "assistant")
    tools = rows["tools"] if "tools" in rows.column_names else None
    # A data set's columns may hold lists of messages whose keys differ; the first column decides the shape.
    plain = {name: list(rows[name]) for name in rows.column_names if name not in ("tools", "label", "pair")}
    if schema in (Schema.TEXT, Schema.MESSAGES):
        whole = tokens.ids(tokens.texts(plain.get("text") or plain["messages"], tools, start=0, closed=True))
        return [Lengths(n, 0, len(ids), 0) for n, ids in zip(subject.sample.rows, whole, strict=True)]
    prompts = tokens.ids(tokens.texts(plain["prompt"], tools, start=0, prompt=True))
    if schema is Schema.PROMPT:
        return [Lengths(n, len(p), len(p), len(p)) for n, p in zip(subject.sample.rows, prompts, strict=True)]
    answers = ["chosen", "rejected"] if schema is Schema.PREFERENCE else ["completion"]
    made: list[Lengths] = []
    wholes = [
        tokens.ids(
            tokens.texts([p + a for p, a in zip(plain["prompt"], plain[k], strict=True)], tools, start=0, closed=True)
        )
        for k in answers
    ]
    for i, n in enumerate(subject.sample.rows):
        sides = [w[i] for w in wholes]
        longest = max(sides, key=len)
        made.append(Lengths(n, len(prompts[i]), len(longest), min(common_prefix(prompts[i], s) for s in sides)))
    return made


def truncation(subject: Subject, sizes: Sequence[Lengths]) -> list[Verdict]:
    """What the length limit cuts: whole prompts, and the ends of answers; with the share and the worst rows."""
    limit, drawn = subject.limit, subject.sample.drawn
    fair, longest = sizes[:drawn], max((s.whole for s in sizes), default=0)
    prompts = [s for s in sizes if s.prompt >= limit + (subject.schema is Schema.PROMPT)]
    said = f"longest row {longest} tokens, {subject.limit_key} = {limit}"
    found = []
    if subject.schema not in (Schema.TEXT, Schema.MESSAGES):
        found.append(_cut(subject, "prompt-truncated", prompts, fair, "the prompt alone fills the limit", said))
    if subject.schema is not Schema.PROMPT:
        answers = [s for s in sizes if s.whole > limit and s not in prompts]
        found.append(_cut(subject, "answer-truncated", answers, fair, "the end is cut off", said))
    return found


def _cut(
    subject: Subject, name: str, rows: Sequence[Lengths], fair: Sequence[Lengths], what: str, said: str
) -> Verdict:
    among = {s.row for s in fair}
    share = sum(s.row in among for s in rows) / max(len(fair), 1)
    worst = sorted(rows, key=lambda s: -s.whole)[:3]
    evidence = [f"row {s.row + 1}: {s.whole} tokens, {excerpt(subject.text(s.row), 50)}" for s in worst]
    data = {"share": share, "rows": [s.row for s in rows][:100], "longest": max((s.whole for s in rows), default=None)}
    if not rows:
        return Verdict(name, "rows", "pass", f"none; {said}", data=data)
    reason = f"in {share:.2%} of {subject.sample.words} {what}; {said}"
    status = "fail" if share > MANY else "warn" if share > FEW else "pass"
    fix = f"set {subject.limit_key} to {max(s.whole for s in rows)}, or leave the long rows out"
    return Verdict(name, "rows", status, reason, evidence, "" if status == "pass" else fix, data)  # type: ignore[arg-type]


def boundary(subject: Subject, sizes: Sequence[Lengths]) -> list[Verdict]:
    """Whether the tokens of the prompt alone begin the tokens of the whole row."""
    if subject.schema not in (Schema.PROMPT_COMPLETION, Schema.PREFERENCE, Schema.UNPAIRED):
        return []
    broken = [s for s in sizes if s.shared < s.prompt]
    if not broken:
        return [Verdict("prompt-boundary", "rows", "pass", "every prompt is read in the same tokens as in its row")]
    return [
        Verdict(
            "prompt-boundary",
            "rows",
            "warn",
            f"in {percent(len(broken), len(sizes))} rows the prompt's last tokens merge with the answer, or the "
            "template renders a prompt alone in another way: the model is asked in other tokens than it has learned",
            [numbers(s.row for s in broken)],
            "end prompts without a space, or use a template whose generation prompt begins the assistant's turn",
            {"rows": [s.row for s in broken][:100]},
        )
    ]


def mean_tokens(subject: Subject, sizes: Sequence[Lengths]) -> float | None:
    """Mean tokens of a row after the limit, over the fair part of the sample."""
    fair: Any = sizes[: subject.sample.drawn]
    return sum(min(s.whole, subject.limit) for s in fair) / len(fair) if fair else None
