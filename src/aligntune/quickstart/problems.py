"""Problems of the quickstart: sums of three to five numbers, each with one checkable answer.

A problem is written ``12+34+25=?`` and its answer ends in the line ``#### 71``. There are two ways to answer it:

* at once, ``#### 71``: one glance at all numbers, which a small model often gets wrong;
* step by step, ``46 71`` (the running sums), a line break, ``#### 71``: each step adds two numbers. Such an answer
  opens in one of several ways (``so 46 71``, ``- 46 71``), so no single wording of it is as likely as the short one.

The supervised data mix the two ways, so that a model trained on them has both and reinforcement learning can find out
which one earns more.

Splits are disjoint by problem. A problem is the multiset of its numbers (``12+34+25`` and ``34+12+25`` are one
problem); a hash of that multiset alone decides its split, so a test problem is never in any training data, the base
model's text included, whatever the seed.

>>> problem = Problem((12, 34, 25))
>>> problem.question, problem.answer, problem.running_sums
('12+34+25=?', 71, (46, 71))
>>> worked(problem)
'46 71\\n#### 71'
>>> direct(problem)
'#### 71'

Source: written for this project; the ``####`` line follows GSM8K (arXiv:2110.14168).
Does not: grade answers (see ``aligntune.grading``) or apply a chat template (the tokenizer does).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOWEST, HIGHEST = 2, 99
"""Range of each number, both ends included."""

COUNTS = (3, 4, 5)
"""How many numbers a problem adds, drawn uniformly."""

SPLITS: dict[str, range] = {
    "base": range(0, 50),
    "sft": range(50, 65),
    "rl": range(65, 80),
    "pairs_train": range(80, 88),
    "pairs_test": range(88, 94),
    "test": range(94, 100),
}
"""Per cent of all problems that belong to each split, as ranges of the hash modulo 100."""

OPENINGS = ("", "= ", "- ", "> ", "* ", "so ", "add ", "get ")
"""How an answer step by step may begin, drawn uniformly."""

WORKED_SHARE = 0.5
"""Share of the supervised answers that show the running sums; the rest answer at once."""

SIZES: dict[str, int] = {"sft": 13000, "rl": 2000, "pairs_train": 700, "pairs_test": 600, "test": 500}
"""Rows that ``write_datasets`` writes by default, by split."""

FILES: dict[str, str] = {
    "sft": "sft.jsonl",
    "rl": "prompts.jsonl",
    "pairs_train": "pair_prompts_train.jsonl",
    "pairs_test": "pair_prompts_test.jsonl",
    "test": "test.jsonl",
}
"""File that ``write_datasets`` writes for each split."""


@dataclass(frozen=True)
class Problem:
    """A sum of ``numbers``, each between ``LOWEST`` and ``HIGHEST``."""

    numbers: tuple[int, ...]

    @property
    def question(self) -> str:
        """The text of the user's message, such as ``12+34+25=?``."""
        return "+".join(map(str, self.numbers)) + "=?"

    @property
    def answer(self) -> int:
        """The sum."""
        return sum(self.numbers)

    @property
    def running_sums(self) -> tuple[int, ...]:
        """The sum after the second, third, ... number; the last one is the answer."""
        sums, total = [], self.numbers[0]
        for number in self.numbers[1:]:
            total += number
            sums.append(total)
        return tuple(sums)

    @property
    def split(self) -> str:
        """The split this problem belongs to, whatever the order of its numbers."""
        return split_of(self.numbers)


def split_of(numbers: tuple[int, ...]) -> str:
    """Return the split of the multiset ``numbers``: a key of ``SPLITS``.

    The hash is SHA-256 of the sorted numbers, so it is the same in every process and on every machine.
    """
    key = "+".join(map(str, sorted(numbers))).encode("ascii")
    bucket = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def direct(problem: Problem) -> str:
    """Return the answer given at once: its final line and nothing else."""
    return f"#### {problem.answer}"


def worked(problem: Problem, opening: str = "") -> str:
    """Return the answer step by step: an opening, the running sums, then the final line."""
    return opening + " ".join(map(str, problem.running_sums)) + f"\n#### {problem.answer}"


def generate(split: str, rng: random.Random) -> Iterator[Problem]:
    """Yield problems of one split without end; repeats are possible.

    Raises:
        KeyError: if ``split`` is not a key of ``SPLITS``.
    """
    if split not in SPLITS:
        raise KeyError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    while True:
        count = rng.choice(COUNTS)
        numbers = tuple(rng.randint(LOWEST, HIGHEST) for _ in range(count))
        if split_of(numbers) == split:
            yield Problem(numbers)


def sample(split: str, size: int, seed: int) -> list[Problem]:
    """Return ``size`` different problems of one split; the same ``seed`` gives the same list.

    Two problems differ if their multisets of numbers do.

    Raises:
        KeyError: ``split`` is not a key of ``SPLITS``.
        ValueError: ``size`` is negative, or the split does not hold that many problems.
    """
    if size < 0:
        raise ValueError(f"size must be at least 0, got {size}")
    seen: set[tuple[int, ...]] = set()
    problems: list[Problem] = []
    source = generate(split, random.Random(f"{split}:{seed}"))
    repeats = 0
    while len(problems) < size:
        problem = next(source)
        key = tuple(sorted(problem.numbers))
        if key in seen:
            repeats += 1
            if repeats > 10_000 + size:
                raise ValueError(f"split {split!r} does not hold {size} different problems")
            continue
        seen.add(key)
        problems.append(problem)
    return problems


def supervised_rows(problems: list[Problem], seed: int, worked_share: float = WORKED_SHARE) -> list[dict[str, object]]:
    """Return one supervised row per problem: ``prompt`` and ``completion`` as lists of chat messages.

    A share ``worked_share`` (0 to 1) of the answers, drawn with ``seed``, is step by step, the rest is given at once;
    all of them are right.
    """
    rng = random.Random(f"ways:{seed}")
    rows: list[dict[str, object]] = []
    for problem in problems:
        answer = worked(problem, rng.choice(OPENINGS)) if rng.random() < worked_share else direct(problem)
        rows.append({"prompt": _user(problem), "completion": [{"role": "assistant", "content": answer}]})
    return rows


def prompt_rows(problems: list[Problem]) -> list[dict[str, object]]:
    """Return one row per problem: ``prompt`` as a list of one user message and ``answer`` as text."""
    return [{"prompt": _user(problem), "answer": str(problem.answer)} for problem in problems]


def write_datasets(folder: str | Path, seed: int = 0, sizes: dict[str, int] | None = None) -> dict[str, Path]:
    """Write the data files of the quickstart into ``folder`` and return their paths by split.

    ``seed`` draws other problems from the same splits. ``sizes`` replaces single entries of ``SIZES``. The folder is
    made if it is missing; files in it of the same names are replaced. Raises ``KeyError`` for a split without a file.
    """
    wanted = dict(SIZES)
    for split, size in (sizes or {}).items():
        if split not in FILES:
            raise KeyError(f"unknown split {split!r}; known: {', '.join(FILES)}")
        wanted[split] = size
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for split, size in wanted.items():
        problems = sample(split, size, seed)
        rows = supervised_rows(problems, seed) if split == "sft" else prompt_rows(problems)
        paths[split] = target / FILES[split]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        paths[split].write_text(text, encoding="utf-8")
    return paths


def _user(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}]
