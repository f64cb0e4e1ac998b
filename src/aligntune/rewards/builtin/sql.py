"""The reward for SQL: `sql_result`.

    row = {"reference": "SELECT count(*) FROM t", "database": "CREATE TABLE t(x); INSERT INTO t VALUES (1), (2);"}
    get_reward_function("sql_result").compute("```sql\\nSELECT sum(1) FROM t\\n```", **row)           # 1.0

The query runs in a process of its own, on a copy of the database in memory, read-only (`grading/worker_sql.py`).

Source: execution accuracy of Spider (Yu et al. 2018, arXiv:1809.08887) and its test suites (Zhong et al. 2020,
arXiv:2010.02840). Equal rows on one database do not prove equal queries: give several databases. SQLite only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat

from aligntune.errors import ValidationError
from aligntune.grading.extract import strip_reasoning
from aligntune.grading.worker import Worker, WorkerDied, WorkerTimeout
from aligntune.rewards.base import count, reward

MAX_QUERY = 20_000
"""Characters of a query; longer ones are not run."""
PREPARE = 60.0
"""Seconds for copying the databases and for the gold query, which are kept for the next text."""
_ORDERED = re.compile(r"\border\s+by\b(?![^()]*\))", re.IGNORECASE)
_worker = Worker("sql")


@reward("sql_result", kind="verifiable")
def sql_result(
    text: str,
    reference: Any,
    database: Any,
    *,
    order: Literal["gold", "always", "never"] = "gold",
    deadline: PositiveFloat = 5.0,
) -> float | None:
    """1 if the query gives the rows of the gold query on each database of the row, else 0.

    The query is the last fenced block, or the whole text after its thought; one SELECT. Names of columns do not count,
    their order does; numbers are equal to ten digits. A query that reads no table is wrong where the gold one reads
    any: it wrote the result down. Counted: `timeout`, `error`, `no_table`. A row without a gold side is None.

    Args:
        reference: the gold query, or its rows as a list of lists.
        database: path of a SQLite file, or statements that build one, or a list of them (all must agree).
        order: the order of rows counts if the `gold` query has ORDER BY, `always`, or `never`.
        deadline: seconds for one query on all its databases (5: as the other graders).

    >>> get_reward_function("sql_result").compute(
    ...     "SELECT count(*) FROM t", reference=[[0]], database="CREATE TABLE t(x)"
    ... )
    1.0
    """
    if not reference:
        count("no_reference")
        return None
    query = _query(text)
    if not query or len(query) > MAX_QUERY:
        count("error")
        return 0.0
    request: dict[str, Any] = {"query": query, "databases": _places(database)}
    if isinstance(reference, str):
        request |= {
            "gold": reference.strip(),
            "ordered": order == "always" or (order == "gold" and _is_ordered(reference)),
        }
    else:
        if any(isinstance(row, (str, Mapping)) or any(isinstance(v, (list, dict)) for v in row) for row in reference):
            raise ValidationError("the gold rows are no table", hint="give a list of lists of plain values, or SQL")
        request |= {"rows": [list(row) for row in reference], "ordered": order == "always"}
    result = _ask(request, deadline)
    if result["verdict"] in ("timeout", "error", "no_table"):
        count(result["verdict"])
    return float(result["verdict"] == "equal")


def _ask(request: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Prepare the gold side, which has a time of its own, and judge the query."""
    try:
        ready = _worker.ask({**request, "prepare": True}, PREPARE)
    except (WorkerTimeout, WorkerDied) as e:
        ready = {"refused": f"the database cannot be loaded: {e}"}
    if "refused" in ready:
        raise ValidationError(ready["refused"], hint="check the row's columns reference and database")
    try:
        return _worker.ask(request, deadline)
    except WorkerTimeout:
        return {"verdict": "timeout"}
    except WorkerDied:
        return {"verdict": "error"}


def _query(text: str) -> str:
    body = strip_reasoning(text).strip()
    parts = body.split("```")
    if len(parts) >= 3:
        body = re.sub(r"\A(?i:sql|sqlite)\b", "", parts[len(parts) - 2 - (len(parts) % 2 == 0)])
    return body.strip().rstrip(";").strip().encode("utf-8", "replace").decode()


def _is_ordered(query: str) -> bool:
    """ORDER BY outside of brackets."""
    return _ORDERED.search(query) is not None


def _places(database: Any) -> list[dict[str, Any]]:
    items = database if isinstance(database, (list, tuple)) else [database]
    found: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, Mapping) or not isinstance(item, (str, os.PathLike)) or not str(item).strip():
            raise ValidationError(
                f"a database is {type(item).__name__}", hint="give the path of a SQLite file, or SQL that builds one"
            )
        if isinstance(item, str) and re.search(r"\bcreate\s+(?:temp\w*\s+)?(?:table|view)\b", item, re.IGNORECASE):
            found.append({"script": item})
            continue
        path = Path(item).expanduser().absolute()
        if not path.is_file():
            raise ValidationError(f"the database {item} does not exist", hint=f"paths are relative to {Path.cwd()}")
        stat = path.stat()
        found.append({"path": str(path), "stamp": [stat.st_mtime_ns, stat.st_size]})
    if not found:
        raise ValidationError("the column database is empty", hint="give the path of a SQLite file")
    return found
