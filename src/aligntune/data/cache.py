"""Prepared data, kept so that a second run on the same rows takes them as they are.

    <cache>/prepared/<key>/entry.json     what it is made of, and size and checksum of each file
                          /prepared.json  notes, format, source, hash, label names
                          /rows.arrow     the rows; tokens.arrow: the same as the trainer gets them
                          /skipped.jsonl  rows that were left out

The key is a SHA-256 over everything that the rows depend on: the content of every source (hash of the files, the
library's fingerprint at the hub), their settings, the schema, seed, lengths and labels, the tokenizer with its chat
template, the source code of this package's data layer, and the versions of the libraries that it calls. There is no
other way to a wrong entry than a collision.

>>> cache = DatasetCache("/tmp/cache")
>>> prepared, hit = cache.fetch({"source": "..."}, build)
>>> cache.list()[0]["rows"]
3500

Several processes may share a folder: one builds an entry under a lock while the others wait for it, and an entry
appears by one rename. Its files are checked each time that it is opened; an entry with a wrong checksum is built again
and a note says so. Rows are mapped from the file, not read into memory. When the folder outgrows `max_gb`, what was
unused for longest goes first. Nothing is stored for streams.

What it does not do: notice that a file changes while it is read, or share entries between machines.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.data.places import cache_folder
from aligntune.data.spool import BLOCK, METADATA, Spool, as_dataset, map_table, spooling_in
from aligntune.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    import datasets

    from aligntune.core.config import CacheConfig
    from aligntune.data.manager import Prepared

LIBRARIES = ("datasets", "pyarrow", "tokenizers", "transformers", "trl", "jinja2", "datasketch", "py3langid")
ENTRY, PREPARED, ROWS, TOKENS, SKIPPED = "entry.json", "prepared.json", "rows.arrow", "tokens.arrow", "skipped.jsonl"
GIGABYTE = 1_000_000_000
LEFT_OVER = 24 * 3600.0
"""Seconds after which a half-written entry is one of a process that is gone."""


@dataclass(frozen=True)
class Damage(Exception):
    """An entry that is not what was written."""

    reason: str


class DatasetCache:
    """The cache of one folder.

    Args:
        folder: the cache's folder (`cache.dir`); None takes the usual one.
        max_gb: most prepared data to keep, in GB.
    """

    def __init__(self, folder: str | Path | None = None, *, max_gb: float = 20.0) -> None:
        self.root = cache_folder(None if folder is None else str(folder))
        self.entries = self.root / "prepared"
        self.max_bytes = int(max_gb * GIGABYTE)

    @classmethod
    def of(cls, config: CacheConfig) -> DatasetCache | None:
        """The cache of a configuration; None where it is switched off."""
        return cls(config.dir, max_gb=config.max_gb) if config.enabled else None

    def fetch(self, parts: dict[str, Any], build: Callable[[], Prepared]) -> tuple[Prepared, bool]:
        """The prepared rows of a key, stored or built now.

        Args:
            parts: everything that the rows depend on, as plain values; code and versions are added here.
            build: makes them where they are not there.

        Returns:
            The rows, and whether they were there. Either way they come from the stored files, so that a hit and a miss
            are the same thing; where the folder cannot be written they come as built, and a note says why.
        """
        key = cache_key(parts)
        from filelock import FileLock

        lock, note = FileLock(self.entries / f".{key[:32]}.lock"), None
        try:
            self.entries.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            return self._unkept(build(), error), False
        try:
            if (self.entries / key).is_dir():
                try:
                    return self._open(key), True
                except Damage as damage:
                    note = f"The data cache's entry {key[:12]} is damaged ({damage.reason}); it is built again."
                    self._remove(self.entries / key)
            try:
                workspace = Path(tempfile.mkdtemp(dir=self.entries, prefix=".part-"))
            except OSError as error:
                return self._unkept(build(), error), False
            try:
                with spooling_in(workspace):
                    prepared = build()
                try:
                    self._store(key, prepared, parts)
                except OSError as error:
                    return self._unkept(prepared, error), False
            finally:
                shutil.rmtree(workspace, ignore_errors=True)  # what is mapped from it stays mapped
            stored = self._open(key)
        finally:
            lock.release()
        return _with_notes(stored, [*([note] if note else []), *self._make_room(key)]), False

    def _unkept(self, prepared: Prepared, error: OSError) -> Prepared:
        return _with_notes(prepared, [f"The data cache {self.root} cannot be written ({error}): nothing is kept."])

    def _make_room(self, key: str) -> Sequence[str]:
        size = self._size(self.entries / key)
        self._evict()
        if size <= self.max_bytes:
            return []
        limit = self.max_bytes / GIGABYTE
        return [
            f"The prepared rows take {size / GIGABYTE:.3g} GB, more than cache.max_gb = {limit:g}: they are not kept."
        ]

    def list(self) -> list[dict[str, Any]]:
        """The entries, the last used first: `key`, `source`, `rows`, `bytes`, `made`, `used`."""
        found = []
        for folder in self._folders():
            stored = _read_json(folder / ENTRY)
            used = (folder / ENTRY).stat().st_mtime if (folder / ENTRY).is_file() else 0.0
            found.append(
                {
                    "key": folder.name,
                    "source": stored.get("source", "damaged"),
                    "rows": stored.get("rows"),
                    "bytes": self._size(folder),
                    "made": stored.get("made"),
                    "used": datetime.fromtimestamp(used, UTC).isoformat(timespec="seconds"),
                }
            )
        return sorted(found, key=lambda entry: str(entry["used"]), reverse=True)

    def clear(self, key: str | None = None) -> Sequence[str]:
        """Remove every entry, with downloads and rows in memory that were written down, or the one of `key`.

        Args:
            key: the beginning of one entry's key.

        Returns:
            The keys that are gone.

        Raises:
            ValidationError: no entry, or several, begin like `key`.
        """
        folders = self._folders()
        if key is not None:
            folders = [folder for folder in folders if folder.name.startswith(key)]
            if len(folders) != 1:
                raise ValidationError(
                    f"{len(folders)} entries of the data cache begin with '{key}'",
                    hint="see `aligntune data cache list` for the keys",
                )
        for folder in folders:
            self._remove(folder)
        if key is None:
            for name in ("downloads", "objects"):
                shutil.rmtree(self.root / name, ignore_errors=True)
        return [folder.name for folder in folders]

    # ---- one entry -----------------------------------------------------------------------------------------

    def _store(self, key: str, prepared: Prepared, parts: dict[str, Any]) -> None:
        part = Path(tempfile.mkdtemp(dir=self.entries, prefix=".part-"))
        try:
            write_table(prepared.dataset, part / ROWS)
            if prepared.tokens is not None:
                write_table(prepared.tokens, part / TOKENS)
            with open(part / SKIPPED, "w", encoding="utf-8", errors="surrogatepass") as file:
                for row in prepared.skipped:
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            plain = ("format", "notes", "source", "content_hash", "class_names")
            _write(part / PREPARED, {name: getattr(prepared, name) for name in plain})
            files = {path.name: [path.stat().st_size, checksum(path)] for path in sorted(part.iterdir())}
            made = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"key": key, "source": prepared.source, "rows": len(prepared.dataset), "made": made}
            _write(part / ENTRY, {**about, "files": files, "parts": parts})
            os.replace(part, self.entries / key)
        finally:
            shutil.rmtree(part, ignore_errors=True)  # nothing, where it stands in its place

    def _open(self, key: str) -> Prepared:
        """The rows of an entry.

        Raises:
            Damage: a file is missing or is not what was written.
        """
        from aligntune.data.manager import Prepared

        folder = self.entries / key
        files = _read_json(folder / ENTRY).get("files")
        if not isinstance(files, dict) or not {PREPARED, ROWS, SKIPPED} <= set(files):
            raise Damage(f"{ENTRY} is not readable")
        for name, (size, wanted) in files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size or checksum(path) != wanted:
                raise Damage(f"{name} is not what was written")
        os.utime(folder / ENTRY)
        skipped = [
            json.loads(line) for line in (folder / SKIPPED).read_text("utf-8", "surrogatepass").split("\n") if line
        ]
        return Prepared(
            dataset=read_table(folder / ROWS, key),
            tokens=read_table(folder / TOKENS, key + "-tokens") if TOKENS in files else None,
            skipped=skipped,
            **_read_json(folder / PREPARED),
        )

    # ---- the folder ----------------------------------------------------------------------------------------

    def _folders(self) -> Sequence[Path]:
        if not self.entries.is_dir():
            return []
        return sorted(path for path in self.entries.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _size(self, folder: Path) -> int:
        try:
            return sum(path.stat().st_size for path in folder.iterdir())
        except FileNotFoundError:  # there is none, or another process is taking it away
            return 0

    def _remove(self, folder: Path) -> None:
        """Take an entry away at once, then delete it: whoever has it mapped keeps what was mapped."""
        gone = folder.with_name(f".gone-{folder.name[:16]}-{os.getpid()}-{time.monotonic_ns()}")
        try:
            os.replace(folder, gone)
        except FileNotFoundError:  # another process was first
            return
        shutil.rmtree(gone, ignore_errors=True)

    def _evict(self) -> None:
        """Remove what was unused for longest until the rest fits, and what a killed process left."""
        for path in self.entries.glob(".part-*"):
            with contextlib.suppress(FileNotFoundError):  # its process has put it in its place meanwhile
                if time.time() - path.stat().st_mtime > LEFT_OVER:
                    shutil.rmtree(path, ignore_errors=True)
        entries = self.list()
        total = sum(int(entry["bytes"]) for entry in entries)
        stamps = {e["key"]: self._stamp(str(e["key"])) for e in entries}
        for entry in sorted(entries, key=lambda e: stamps[e["key"]]):
            if total <= self.max_bytes:
                return
            self._remove(self.entries / str(entry["key"]))
            total -= int(entry["bytes"])

    def _stamp(self, key: str) -> int:
        try:
            return (self.entries / key / ENTRY).stat().st_mtime_ns
        except OSError:
            return 0


def cache_key(parts: dict[str, Any]) -> str:
    """SHA-256 over the parts, the code of the data layer and the versions of the libraries."""
    text = json.dumps([parts, code_version(), library_versions()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@once
def code_version() -> str:
    """SHA-256 over the source files of this package and of what it shares with the layer above."""
    package = Path(__file__).parent
    files = sorted([*package.rglob("*.py"), package.parent / "algorithms" / "base.py"])
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(package.parent)).encode() + path.read_bytes())
    return digest.hexdigest()


@once
def library_versions() -> dict[str, str | None]:
    """The installed versions of the libraries that prepared rows depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def checksum(path: Path) -> str:
    """XXH3 (128 bit) of a file's bytes: faster than the disk, against damage rather than attack."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_table(dataset: datasets.Dataset, path: Path) -> None:
    """Write a data set's rows and features as one Arrow stream, or take the file that holds them already."""
    import pyarrow as pa

    spooled = Spool.file_of(dataset)
    if spooled is not None and spooled.parent.parent == path.parent.parent:
        os.replace(spooled, path)
        return
    features = dataset.features
    schema = features.arrow_schema.with_metadata({METADATA: json.dumps({"features": features.to_dict()}).encode()})
    arrow = dataset.with_format("arrow")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(dataset), BLOCK):
            writer.write_table(arrow[start : start + BLOCK].replace_schema_metadata(schema.metadata))


def read_table(path: Path, fingerprint: str) -> datasets.Dataset:
    """The data set of a file, mapped into memory.

    The `datasets` library takes it for one without files, so what it derives goes to its temporary folder and not into
    the entry.
    """
    from datasets import Features

    table, _ = map_table(path)
    features = Features.from_dict(json.loads(table.schema.metadata[METADATA])["features"])
    return as_dataset(table, features, fingerprint)


def _with_notes(prepared: Prepared, more: list[str]) -> Prepared:
    from dataclasses import replace

    return replace(prepared, notes=[*prepared.notes, *more]) if more else prepared


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, default=str), encoding="utf-8", errors="surrogatepass")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_key(text: str) -> str:
    """A key, or the beginning of one, as a user types it.

    Raises:
        ConfigurationError: it is none.
    """
    if not text or any(c not in "0123456789abcdef" for c in text.lower()):
        raise ConfigurationError(f"'{text}' is no key of the cache", hint="see `aligntune data cache list`")
    return text.lower()
