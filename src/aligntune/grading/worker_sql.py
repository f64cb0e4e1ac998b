"""The task `sql` of the worker process: run a query on a copy of a database and compare its rows. Never imported.

It is loaded by `worker_main` from its file and uses the standard library alone. A database is copied into memory once;
every query runs there read-only: an authorizer lets nothing through but SELECT, reading, recursion and functions that
give the same value each time, a progress handler ends it at the deadline, and SQLite's own limits bound the length of
values and of the query.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from functools import lru_cache
from typing import Any

MAX_ROWS = 20_000
"""Rows after which a result is given up: it is not the gold one, which is refused at that size."""
MAX_VALUE = 1_000_000
"""Bytes of one value, and of the query."""
GOLD_LIMIT = 30.0
"""Seconds for a gold query."""
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN = {
    "load_extension", "random", "randomblob", "zeroblob", "readfile", "writefile", "edit", "fts3_tokenizer",
    "last_insert_rowid", "changes", "total_changes", "sqlite_offset",
}  # fmt: skip


class Refused(Exception):
    """The gold side of a row cannot be run."""


class Database:
    """A copy of a database in memory, with the locks set.

    Args:
        path: a database file, opened read-only and unchanged; or None.
        script: statements that build it, trusted.
    """

    def __init__(self, path: str | None, script: str | None) -> None:
        self.connection = sqlite3.connect(":memory:", cached_statements=0)  # a cached one is not authorized again
        if path is not None:
            source = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
            source.backup(self.connection)
            source.close()
        if script:
            self.connection.executescript(script)
        self.connection.execute("PRAGMA query_only = 1")
        self.connection.execute("PRAGMA temp_store = 2")
        self.connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        for limit in (sqlite3.SQLITE_LIMIT_LENGTH, sqlite3.SQLITE_LIMIT_SQL_LENGTH):
            self.connection.setlimit(limit, MAX_VALUE)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self.reads: set[str] = set()
        self.connection.set_authorizer(self._authorize)

    def _authorize(self, action: int, first: str | None, second: str | None, *_: Any) -> int:
        if action == sqlite3.SQLITE_READ and first:
            self.reads.add(first.lower())
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_DENY if (second or "").lower() in _FORBIDDEN else sqlite3.SQLITE_OK
        return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY

    def run(self, query: str, end: float) -> tuple[list[tuple[Any, ...]], bool]:
        """Rows of `query`, and whether it read a table. Raises sqlite3.Error, or TimeoutError at `end`."""
        self.reads = set()
        self.connection.set_progress_handler(lambda: int(time.monotonic() > end), 1000)
        try:
            cursor = self.connection.execute(query)
            if cursor.description is None:
                raise sqlite3.ProgrammingError("no rows come of it")
            rows = cursor.fetchmany(MAX_ROWS + 1)
            cursor.close()
        except sqlite3.OperationalError as e:
            if "interrupted" in str(e):
                raise TimeoutError from e
            raise
        if len(rows) > MAX_ROWS:
            raise sqlite3.DataError("too many rows")
        return rows, bool(self.reads)


@lru_cache(maxsize=16)
def _database(path: str | None, stamp: Any, script: str | None) -> Database:
    try:
        return Database(path, script)
    except sqlite3.Error as e:
        raise Refused(f"the database cannot be read: {e}") from e


@lru_cache(maxsize=1024)
def _gold(path: str | None, stamp: Any, script: str | None, query: str) -> tuple[Any, bool]:
    try:
        rows, reads = _database(path, stamp, script).run(query, time.monotonic() + GOLD_LIMIT)
    except TimeoutError as e:
        raise Refused(f"the gold query takes more than {GOLD_LIMIT:g} s") from e
    except (sqlite3.Error, sqlite3.Warning) as e:
        raise Refused(f"the gold query fails: {e}") from e
    return rows, reads


def _plain(value: Any) -> Any:
    """A value in the form that is compared: numbers by value to ten digits, everything else as it is."""
    if isinstance(value, float):
        return float(f"{value:.10g}")
    return value


def _table(rows: Any, ordered: bool) -> Any:
    plain = [tuple(_plain(v) for v in row) for row in rows]
    return plain if ordered else Counter(plain)


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Load the databases and run the gold query (`prepare`), or compare one query with it on each database.

    Returns:
        `{"verdict": "ready" | "equal" | "different" | "error" | "timeout" | "no_table"}`, or `{"refused": why}`.
    """
    end = time.monotonic() + request["deadline"] * 0.9
    sides = []
    for place in request["databases"]:
        where = (place.get("path"), tuple(place.get("stamp") or ()), place.get("script"))
        try:
            gold = (request["rows"], False) if "rows" in request else _gold(*where, request["gold"])
            sides.append((_database(*where), *gold))
        except Refused as e:
            return {"refused": str(e)}
    if request.get("prepare"):
        return {"verdict": "ready"}
    verdicts = (_compare(*side, request["query"], request["ordered"], end) for side in sides)
    return {"verdict": next((v for v in verdicts if v != "equal"), "equal")}


def _compare(database: Database, gold: Any, needs: bool, query: str, ordered: bool, end: float) -> str:
    try:
        rows, reads = database.run(query, end)
    except TimeoutError:
        return "timeout"
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError):
        return "error"
    if needs and not reads:
        return "no_table"
    return "equal" if _table(rows, ordered) == _table(gold, ordered) else "different"
