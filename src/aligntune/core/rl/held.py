"""Sampled completions between their reward and the disk: they wait for their advantage and log-probability.

The reward function stores a row for each completion before the trainer has compared them. `Held` numbers the rows,
the number travels with the batch through shuffling and splitting (`ROW`), and what becomes known later is filled in by
number. A row is written when it is complete, and at the latest before the next generation, a checkpoint or the end of
the run; what was not known by then is null.

    numbers = held.take(rows, write)           # 0 .. 7
    held.fill("advantage", numbers, [0.5, -0.5, ...])
    held.flush()

It holds the rows of one generation, so its memory is that of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

ROW = "rollout_row"
"""Entry of the trainer's batch with the numbers of the rows, (B,)."""
Rows = list[dict[str, Any]]
Write = Callable[[Rows], None]


class Held:
    """Rows that are not written yet, by number.

    Args:
        first: the first number; each process of a distributed run needs a range of its own, because some algorithms
            hand completions from one process to another.
    """

    def __init__(self, first: int = 0) -> None:
        self._rows: dict[int, dict[str, Any]] = {}
        self._write: Write | None = None
        self._next = first
        self._latest: list[int] = []
        self._step, self._groups = -1, 0
        self.awaited: set[int] = set()

    def take(self, rows: Rows, write: Write) -> list[int]:
        """Keep rows, and what writes them; their numbers."""
        self._write = write
        self._latest = list(range(self._next, self._next + len(rows)))
        self._next += len(rows)
        self._rows.update(zip(self._latest, rows, strict=True))
        return self._latest

    def groups(self, step: int, count: int) -> int:
        """The number of the first of `count` further groups of a step."""
        if step != self._step:
            self._step, self._groups = step, 0
        first = self._groups
        self._groups += count
        return first

    def latest(self, count: int) -> list[int] | None:
        """The numbers of the rows that were taken last, if they are `count`; each is given once."""
        found, self._latest = self._latest, []
        return found if len(found) == count else None

    def tokens(self, number: int) -> int | None:
        """Tokens of a row's completion."""
        row = self._rows.get(number)
        return None if row is None else row.get("tokens")

    def fill(self, name: str, numbers: Sequence[int], values: Sequence[float | None]) -> None:
        """Set a column of rows that are still here."""
        for number, value in zip(numbers, values, strict=True):
            if number in self._rows:
                self._rows[number][name] = value

    def settle(self, numbers: Sequence[int]) -> None:
        """These rows are complete; once none is awaited, all are written."""
        self.awaited -= set(numbers)
        if not self.awaited:
            self.flush()

    def flush(self) -> None:
        """Write every row, in the order of sampling, as far as it is known."""
        rows, self._rows = [self._rows[n] for n in sorted(self._rows)], {}
        self.awaited = set()
        if rows and self._write is not None:
            self._write(rows)
