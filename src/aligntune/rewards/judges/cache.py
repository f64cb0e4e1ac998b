"""Answers of a judge on disk, so that a question is paid for once: `AnswerCache`, one SQLite file in a folder.

    cache = AnswerCache("runs/judge-cache")
    cache.write({key: "an answer"})
    cache.read([key])                           # {key: 'an answer'}

A key is the SHA-256 of everything that an answer depends on: the judge (its address, model and sampling parameters),
the messages, and the version of the rubric. Several processes may use one folder: SQLite locks the file, a writer waits
up to 60 seconds, and the same answer written twice is one row. The folder holds prompts' answers in plain text and no
key of any API. It must not lie on a file system without locks (some network mounts).

It does not expire: delete the folder to ask again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aligntune import errors

FILE = "answers.sqlite"
WAIT = 60.0
"""Seconds to wait for another process that writes."""
_BLOCK = 500


def question_key(identity: dict[str, Any], messages: Any, version: str) -> str:
    """The key of a question: 64 hexadecimal digits, the same in every process."""
    text = json.dumps([identity, messages, version], sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerCache:
    """The answers of a folder.

    Args:
        folder: made where it does not exist, readable by its owner alone.

    Raises:
        EnvironmentError: the folder cannot be made, or the file in it is no database.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder).expanduser() / FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise errors.EnvironmentError(
                f"the judge's cache {folder} cannot be made: {e}",
                hint="set judge.cache to a folder that can be written",
            ) from e
        with self._open() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        """The answers that there are, by key."""
        found: dict[str, str] = {}
        with self._open() as connection:
            for start in range(0, len(keys), _BLOCK):
                part = keys[start : start + _BLOCK]
                marks = ", ".join("?" * len(part))
                rows = connection.execute(f"SELECT key, answer FROM answers WHERE key IN ({marks})", part)  # noqa: S608
                found.update(rows.fetchall())
        return found

    def write(self, answers: Mapping[str, str]) -> None:
        """Keep answers by key; of several for one key the first is kept."""
        rows = [(key, answer.encode("utf-8", "replace").decode()) for key, answer in answers.items()]
        if rows:
            with self._open() as connection:
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for each use: none crosses a thread or a fork."""
        try:
            connection = sqlite3.connect(self.path, timeout=WAIT)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as e:
            raise errors.EnvironmentError(
                f"the judge's cache {self.path} cannot be used: {e}",
                hint="delete the file, or set judge.cache to another folder",
            ) from e
