"""Rows of published sets in the form that their evaluations ask: a question, its options, the gold answer.

Each function takes a row as the data layer gives it (every column under its own name) and returns the row that is
evaluated. The forms are those of lm-evaluation-harness, so that numbers can be compared with published ones.

>>> arc({"question": {"stem": "2+2?", "choices": [{"text": "4", "label": "A"}]}, "answerKey": "A"})["prompt"]
'Question: 2+2?\\nAnswer:'
"""

from __future__ import annotations

import re
from typing import Any

Row = dict[str, Any]


def arc(row: Row) -> Row:
    """ARC (Clark et al. 2018, arXiv:1803.05457), in its own JSON form or the hub's."""
    question = row["question"]
    stem, choices = (
        (question["stem"], question["choices"]) if isinstance(question, dict) else (question, row["choices"])
    )
    return {**row, "prompt": f"Question: {stem}\nAnswer:", "choices": choices, "reference": row["answerKey"]}


def hellaswag(row: Row) -> Row:
    """HellaSwag (Zellers et al. 2019, arXiv:1905.07830): activity, context, four endings without WikiHow's marks."""
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        **row,
        "prompt": _plain(f"{row['activity_label']}: {context}"),
        "choices": [_plain(ending) for ending in row["endings"]],
        "reference": int(row["label"]),
    }


def _plain(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def mmlu(row: Row) -> Row:
    """MMLU (Hendrycks et al. 2021, arXiv:2009.03300): the options are listed, and their letters are scored."""
    options = row.get("choices") or [row[letter] for letter in "ABCD"]
    listed = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", options, strict=True))
    gold = row["answer"]
    return {
        **row,
        "prompt": f"{str(row['question']).strip()}\n{listed}Answer:",
        "choices": list(options),
        "reference": gold if isinstance(gold, int) else str(gold).strip(),
    }


def truthfulqa_mc1(row: Row) -> Row:
    """TruthfulQA with one true answer among the options (Lin et al. 2022, arXiv:2109.07958)."""
    targets = row["mc1_targets"]
    if "choices" in targets and "labels" in targets:
        options, right = list(targets["choices"]), list(targets["labels"])
    else:
        # A JSON reader that joins rows gives every row the keys of all, with null where they are not its own.
        known = {option: label for option, label in targets.items() if label is not None}
        options, right = list(known), list(known.values())
    return {**row, "prompt": f"Q: {row['question']}\nA:", "choices": options, "reference": right.index(1)}


def gsm8k(row: Row) -> Row:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168) as a question and the cue for an answer."""
    return {**row, "prompt": f"Question: {row['question']}\nAnswer:"}
