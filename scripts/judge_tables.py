"""Write the generated table of docs/judges.md from the table of judged rewards.

python scripts/judge_tables.py          # rewrite what stands between the markers
python scripts/judge_tables.py --check  # exit code 1 if the file is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from aligntune.rewards.builtin.judged import TABLE, WAYS, Key

PAGE = Path(__file__).resolve().parent.parent / "docs" / "judges.md"
BEGIN, END = "<!-- table: begin (scripts/judge_tables.py writes this part) -->", "<!-- table: end -->"
MODELS = {
    "classifier": "a classifier: P(`label`) or 1 - P(`not_label`)",
    "paired": "a classifier: 1 - the difference of P(`label`) to the column `counterpart`",
    "reward_model": "a reward model's logit, standardised and squashed",
    "supported": "NLI: share of sentences that follow from `context`",
    "weakest": "NLI: support of the weakest sentence by `context`",
    "contradiction": "NLI: 1 - the strongest contradiction between sentences",
    "relevance": "embeddings: cosine with the prompt",
    "context": "embeddings: cosine with the nearest passage of `context`",
}
PROGRAMS = {
    "gold": "`gold`: option or short answer",
    "domain": "`gold`: option or short answer, and checkable parts",
    "instructions": "`checks`: IFEval's instructions of the row",
    "times": "`checks`: dates, spans, the order of `events`",
}


def table() -> str:
    """A row for each key, as Markdown."""
    rows = ["| key | 1 means that | `model` | `judge` | other |", "|---|---|---|---|---|"]
    rows += [_row(name, key) for name, key in TABLE.items()]
    return "\n".join(rows) + "\n"


def _row(name: str, key: Key) -> str:
    from aligntune.rewards.judges import load_rubric

    judged = "no"
    if key.judge:
        rubric = load_rubric(name)
        judged = " ".join(["yes", *([f"(needs {', '.join(f'`{c}`' for c in rubric.needs)})"] if rubric.needs else [])])
    other = PROGRAMS.get(key.program or "", "")
    if key.lexical:
        other = f"`lexical`: {WAYS[key.lexical]}"
    return f"| `{name}` | {key.about} | {MODELS.get(key.model or '', 'no')} | {judged} | {other} |"


def main() -> int:
    """Rewrite or check the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    fresh = f"{head}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}"
    if "--check" not in sys.argv:
        PAGE.write_text(fresh, encoding="utf-8")
        return 0
    return int(text != fresh)


if __name__ == "__main__":
    sys.exit(main())
