"""What an evaluation has measured so far, so that a killed one goes on where it stopped.

    journal = Journal.open(folder / "items" / "sums.journal", {"model": ..., "settings": ...}, resume=True)
    journal.done.get(0)          # the items of the first chunk, if it is there
    journal.append(1, items)

One line for each chunk of rows, written and synced before the next chunk begins; a torn last line is one chunk that is
measured again, so that no item is lost or stands twice. The first line says what is measured: a journal of another
model, other data or other settings is refused, never mixed in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.utils.files import disk_errors, jsonable, write_atomic

Items = list[dict[str, Any]]


class Journal:
    """Chunks of items on disk. Make one with `open`.

    Attributes:
        path: of the file.
        done: chunk number to its items.
    """

    def __init__(self, path: Path, done: dict[int, Items]) -> None:
        self.path = path
        self.done = done

    @classmethod
    def open(cls, path: Path, subject: Mapping[str, Any], *, resume: bool = False) -> Journal:
        """Begin a journal, or go on with one.

        Args:
            path: of the file.
            subject: what is measured; plain values.
            resume: take over the whole lines of a journal that is there.

        Raises:
            ConfigurationError: the journal is of another subject (what differs is named), or cannot be written.
        """
        wanted = jsonable(subject)
        done: dict[int, Items] = {}
        if resume and path.exists():
            head, done = _read(path)
            if head is not None and head != wanted:
                changed = [k for k in {**head, **wanted} if head.get(k) != wanted.get(k)]
                raise ConfigurationError(
                    f"{path.parent.parent} holds an unfinished evaluation with another {', '.join(changed)}",
                    hint="evaluate into another output_dir, or put the setting back",
                    context={"path": str(path), "changed": changed},
                )
        journal = cls(path, done)
        lines = [{"subject": wanted}, *({"chunk": k, "items": items} for k, items in sorted(done.items()))]
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, b"".join(_line(line) for line in lines))
        return journal

    def append(self, chunk: int, items: Items) -> Items:
        """Store a chunk; returns its items as a resumed run would read them."""
        data = _line({"chunk": chunk, "items": items})
        with disk_errors(self.path.parent), open(self.path, "ab", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        self.done[chunk] = json.loads(data)["items"]
        return self.done[chunk]

    def remove(self) -> None:
        """Delete the file: the results are written."""
        self.path.unlink(missing_ok=True)


def _line(value: Mapping[str, Any]) -> bytes:
    # Infinities stay numbers (not valid JSON, but this file is ours alone): metrics must read what was measured.
    return (json.dumps(value, default=jsonable) + "\n").encode()


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[int, Items]]:
    """The subject and the whole chunks; None where not even the first line is whole."""
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:  # the end, or a line that was being written when the process died
            break
    if not rows or "subject" not in rows[0]:
        return None, {}
    return rows[0]["subject"], {row["chunk"]: row["items"] for row in rows[1:]}
